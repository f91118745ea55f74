//! One log line now and then where a flood would make thousands.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// How long one line stands for all that are like it.
const INTERVAL: SignedDuration = SignedDuration::from_secs(10);

/// Lets one line through every 10 seconds and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Timestamp>,
    suppressed: u64,
}

impl Throttle {
    /// Whether to write a line at `now`: with how many were held back since the last one, or
    /// `None` to hold this one back as well.
    pub(super) fn pass(&self, now: Timestamp) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The absolute difference, so that a clock that was set back does not silence us.
        let quiet = |last: Timestamp| now.duration_since(last).abs() < INTERVAL;
        if state.last.is_some_and(quiet) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_says_how_many_it_stands_for() {
        let throttle = Throttle::default();
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        assert_eq!(throttle.pass(at(0)), Some(0));
        assert_eq!(throttle.pass(at(1)), None);
        assert_eq!(throttle.pass(at(9)), None);
        assert_eq!(throttle.pass(at(10)), Some(2));
        assert_eq!(throttle.pass(at(11)), None);
        assert_eq!(throttle.pass(at(-50)), Some(1), "the clock was set back");
    }
}
