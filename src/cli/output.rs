//! Tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The flag of every command that prints a table.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Format {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

impl Format {
    /// Prints `rows` as JSON, or as a table of `cells` under `header`. Prints `empty` on standard error
    /// in place of a table without rows.
    pub(super) fn print<T: Serialize, const N: usize>(
        self,
        rows: &[T],
        header: [&str; N],
        cells: impl Fn(&T) -> [String; N],
        empty: &str,
    ) -> anyhow::Result<()> {
        if self.json {
            return print_json(rows);
        }
        if rows.is_empty() {
            writeln!(io::stderr(), "{empty}")?;
            return Ok(());
        }
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header.map(str::to_uppercase));
        for row in rows {
            table.add_row(cells(row));
        }
        writeln!(io::stdout(), "{}", table.trim_fmt())?;
        Ok(())
    }
}

/// Prints `value` as JSON: indented on a terminal, or else on one line.
pub(super) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        serde_json::to_writer_pretty(&mut stdout, value)?;
    } else {
        serde_json::to_writer(&mut stdout, value)?;
    }
    writeln!(stdout)?;
    Ok(())
}

/// The text of a cell; `-` when it is empty.
pub(super) fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// `1 attempt`, `2 attempts`, `2 deliveries`.
pub(super) fn count(number: u64, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}
