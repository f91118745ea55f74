//! Tables and colors for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::config;

/// Whether `stream` shows colors: a terminal does, unless `NO_COLOR` or `TERM=dumb` says otherwise.
pub(super) fn has_color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && allows_color(config::environment)
}

fn allows_color(env: impl Fn(&str) -> Option<String>) -> bool {
    let is_refused = env("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_refused && env("TERM").as_deref() != Some("dumb")
}

/// The width of the terminal in characters; `None` where standard output is none.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col.into()).filter(|width| *width > 0)
}

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
        let rows: Vec<_> = rows.iter().map(cells).collect();
        let header = header.map(str::to_uppercase);
        writeln!(io::stdout(), "{}", layout(&header, &rows, terminal_width()))?;
        Ok(())
    }
}

/// The least width of a text that is wrapped, in characters. A narrower text is hard to read.
const LEAST_WRAPPED: usize = 30;

/// The rows as a table, within `width` characters if that is given. The last column is wrapped where
/// that is enough. Otherwise each row has a line for each column, as in psql's expanded form.
fn layout<const N: usize>(
    header: &[String; N],
    rows: &[[String; N]],
    width: Option<usize>,
) -> String {
    let length = |text: &String| text.chars().count();
    let mut widths = header.each_ref().map(length);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(length(cell));
        }
    }
    // A space stands on both sides of each cell.
    let total = widths.iter().sum::<usize>() + 2 * N;
    let (needed, last) = (width.unwrap_or(total), widths.last().copied().unwrap_or(0));
    if total.min(total - last + LEAST_WRAPPED) > needed {
        return expanded(header, rows);
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table.add_rows(rows);
    if total > needed {
        let width = u16::try_from(needed).unwrap_or(u16::MAX);
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
        let fixed = table.column_iter_mut().take(N - 1);
        fixed.for_each(|column| {
            column.set_constraint(ColumnConstraint::ContentWidth);
        });
    }
    table.trim_fmt()
}

/// Each row as a paragraph, with a line for each column.
fn expanded<const N: usize>(header: &[String; N], rows: &[[String; N]]) -> String {
    let width = header.iter().map(String::len).max().unwrap_or(0);
    let paragraph = |row: &[String; N]| -> String {
        let lines = header.iter().zip(row);
        lines
            .map(|(name, cell)| format!("{name:width$}  {cell}\n"))
            .collect()
    };
    let paragraphs: Vec<_> = rows.iter().map(paragraph).collect();
    paragraphs.join("\n").trim_end().to_owned()
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

/// `512 B`, `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_can_be_refused() {
        let allows = |name: &'static str, value: &'static str| {
            allows_color(|asked| (asked == name).then(|| value.to_owned()))
        };
        assert!(allows("TERM", "xterm-256color"));
        assert!(allows("NO_COLOR", ""), "an empty value refuses nothing");
        assert!(!allows("NO_COLOR", "1"));
        assert!(!allows("TERM", "dumb"));
    }

    #[test]
    fn a_table_keeps_within_the_terminal() {
        let header = ["ID", "EVENT", "WHY"].map(str::to_owned);
        let id = "01a203eb-0f3f-797b-9600-3580fa44e674";
        let why = "the receiver answered with the status 500 and no reason";
        let rows = [[id, "zoom.number-management", why].map(str::to_owned)];
        let whole = layout(&header, &rows, None);
        assert_eq!(whole.lines().count(), 2, "{whole}");
        assert_eq!(layout(&header, &rows, Some(119)), whole);
        for (width, lines) in [(118, 3), (94, 3), (93, 3), (20, 3)] {
            let text = layout(&header, &rows, Some(width));
            let is_table = width >= 94;
            assert_eq!(text.lines().count(), lines, "{text}");
            assert_eq!(text.contains(why), !is_table, "{text}");
            assert!(text.contains(id), "an id is never broken: {text}");
            if is_table {
                assert!(
                    text.lines().all(|line| line.chars().count() <= width),
                    "{text}"
                );
            }
        }
    }
}
