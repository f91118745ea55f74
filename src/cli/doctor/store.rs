//! The store: its disk, its files, its ledger, and what waits in it.

use jiff::{SignedDuration, Timestamp};

use super::{finding::Finding, service::Service};
use crate::{
    app,
    cli::output::{count, size},
    store::{Engine, EventFilter, EventSummary, HandlerSummary, Inspection, Operator, StoreError},
};

/// Deliveries that have waited longer are behind.
const BEHIND: SignedDuration = SignedDuration::from_mins(10);

/// How many of the newest events the clock is compared with.
const EVENTS: usize = 100;

/// A provider's clock may be ahead by so much, since clocks are never the same.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// Checks the store of `engine`.
pub(super) fn check(engine: &dyn Engine, service: &Service, findings: &mut Vec<Finding>) {
    let inspection = match engine.inspect() {
        Ok(inspection) => inspection,
        Err(error) => return findings.push(Finding::of_error("store", &error.to_string())),
    };
    if let Some(inspection) = &inspection {
        check_disk(inspection, findings);
        if !inspection.exists {
            let what = format!("there is no store at {} yet", inspection.path.display());
            return findings.push(Finding::fine("store", what + "; `serve` makes it"));
        }
        check_files(inspection, service, findings);
        if inspection.is_of_another_user && rustix::process::geteuid().is_root() {
            // A file that root makes is one that the service cannot write.
            return findings.push(Finding::warning(
                "ledger",
                "root has not opened the ledger, since the store belongs to another user",
                "run the command as the user of the service, for example with `sudo -u`",
            ));
        }
    }
    match engine.operator(app::now) {
        Ok(operator) => check_ledger(&*operator, findings),
        Err(StoreError::Absent(place)) => {
            let what = format!("there is no store at {place} yet; `serve` makes it");
            findings.push(Finding::fine("store", what));
        }
        Err(error) => findings.push(Finding::of_error("ledger", &error.to_string())),
    }
}

fn check_disk(inspection: &Inspection, findings: &mut Vec<Finding>) {
    let Inspection {
        free,
        reserve,
        retain,
        bytes,
        ..
    } = *inspection;
    let has = format!("{} free, {} in use by the store", size(free), size(bytes));
    if free <= reserve {
        return findings.push(Finding::blocker(
            "disk",
            format!(
                "{has}; `reserve` is {}, so new events are refused",
                size(reserve)
            ),
            "make room on the disk, or lower `retain`",
        ));
    }
    let Some(daily) = inspection.bytes_a_day else {
        let what = format!("{has}; the store is too young to say how fast it grows");
        return findings.push(Finding::fine("disk", what));
    };
    // The ledger and the index grow with the journal, and take about as much again.
    let daily = daily.saturating_mul(2);
    let days = retain.as_secs().div_ceil(86_400);
    let more = daily.saturating_mul(days).saturating_sub(bytes);
    let grows = format!(
        "{has}; it grows by {} a day, and keeps {days} days",
        size(daily)
    );
    findings.push(match more > free - reserve {
        true => Finding::warning(
            "disk",
            format!("{grows}, for which the disk is too small"),
            "make room on the disk, or lower `retain`",
        ),
        false => Finding::fine("disk", grows),
    });
}

fn check_files(inspection: &Inspection, service: &Service, findings: &mut Vec<Finding>) {
    let path = inspection.path.display();
    findings.push(match (inspection.is_in_use, service.is_running) {
        (true, None | Some(true)) => Finding::fine("store", format!("a service uses {path}")),
        (false, None | Some(false)) => Finding::fine("store", format!("no service uses {path}")),
        (true, Some(false)) => Finding::blocker(
            "store",
            format!("a process uses {path}, and no service answers at the address of [admin]"),
            "is it a service of another configuration, or one that hangs? `fuser` names the process",
        ),
        (false, Some(true)) => Finding::warning(
            "store",
            format!("a service answers, and does not use {path}"),
            "the service has another configuration: compare its `--config`",
        ),
    });
    if let Some(first) = inspection.exposed.first() {
        let others = count(inspection.exposed.len() as u64 - 1, "other file");
        findings.push(Finding::warning(
            "files",
            format!(
                "other users of this machine can use {} and {others}",
                first.display()
            ),
            format!("the store has personal data: chmod -R go-rwx {path}"),
        ));
    }
}

fn check_ledger(operator: &dyn Operator, findings: &mut Vec<Finding>) {
    let filter = EventFilter {
        limit: EVENTS,
        ..EventFilter::default()
    };
    let read = operator.events(&filter);
    match read.and_then(|list| Ok((list.events, operator.handlers()?))) {
        Ok((events, handlers)) => {
            findings.push(Finding::fine("ledger", "it can be read"));
            findings.push(check_clock(&events));
            findings.push(check_parked(&handlers));
            findings.push(check_open(&handlers));
        }
        Err(error) => findings.push(Finding::of_error("ledger", &error.to_string())),
    }
}

fn check_parked(handlers: &[HandlerSummary]) -> Finding {
    const CHECK: &str = "parked";
    let parked: Vec<_> = handlers
        .iter()
        .filter(|handler| handler.parked > 0)
        .collect();
    if parked.is_empty() {
        return Finding::fine(CHECK, "no delivery is parked");
    }
    let total = count(
        parked.iter().map(|handler| handler.parked).sum(),
        "delivery",
    );
    let names: Vec<_> = parked
        .iter()
        .map(|handler| handler.handler.as_str())
        .collect();
    Finding::warning(
        CHECK,
        format!("{total} parked, of {}", names.join(", ")),
        "see `hookswitch parked list`; then `replay --parked`, or `parked skip`",
    )
}

fn check_open(handlers: &[HandlerSummary]) -> Finding {
    const CHECK: &str = "deliveries";
    let oldest = handlers
        .iter()
        .filter_map(|handler| Some((handler.oldest_open?, handler)));
    let Some((oldest, handler)) = oldest.min_by_key(|(oldest, _)| *oldest) else {
        return Finding::fine(CHECK, "none is open");
    };
    let age = app::now().duration_since(oldest);
    let what = format!(
        "the oldest open one is {:#} old, of {}",
        SignedDuration::from_secs(age.as_secs()),
        handler.handler
    );
    match age < BEHIND {
        true => Finding::fine(CHECK, what),
        false => Finding::warning(
            CHECK,
            what,
            "the log says why its attempts fail; `hookswitch events list` shows which events wait",
        ),
    }
}

/// Compares our clock with the providers': no event arrives before it happens.
fn check_clock(events: &[EventSummary]) -> Finding {
    let lag = |event: &EventSummary| -> Option<(SignedDuration, Timestamp)> {
        let lag = event.received_at.duration_since(event.occurred_at?);
        Some((lag, event.received_at))
    };
    let least = events.iter().filter_map(lag).min();
    match least {
        None => Finding::fine("clock", "no event has a provider's time to compare with"),
        Some((lag, at)) if lag < -TOLERANCE => {
            let behind = SignedDuration::from_secs(lag.abs().as_secs());
            Finding::warning(
                "clock",
                format!("an event of {at:.0} came {behind:#} before its provider's time"),
                "the clock of this machine is behind: is NTP running? Zoom's signatures are refused \
                 beyond 5 minutes",
            )
        }
        Some((lag, _)) => {
            let lag = SignedDuration::from_millis(i64::try_from(lag.as_millis()).unwrap_or(0));
            Finding::fine(
                "clock",
                format!("events come {lag:#} or more after their provider's time"),
            )
        }
    }
}
