//! A limit on the rate of similar log lines.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// The least time between two lines.
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
    /// The number of lines suppressed since the last one, if a line may be written at `now`. `None`
    /// suppresses this line too.
    pub(super) fn pass(&self, now: Timestamp) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The absolute difference, so that setting the clock back does not suppress lines for long.
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
    fn one_line_in_ten_seconds_counts_the_suppressed_ones() {
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
