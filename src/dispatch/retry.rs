//! When a failed delivery is attempted again, and when it is parked. Pure: time and randomness are
//! arguments.

use std::{num::NonZeroU32, time::Duration};

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity;

/// When a failed delivery is attempted again, and when it is parked.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The most attempts before a delivery is parked.
    pub attempts: NonZeroU32,
    /// The pause after the first failure. Each further pause is twice as long, less a random part
    /// of up to half.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub first: Duration,
    /// The longest pause, even if the receiver asks for a longer one.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub ceiling: Duration,
    /// The age at which a delivery is parked, whatever the number of attempts. A last attempt is
    /// made at that age.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub age: Duration,
}

impl Default for Retry {
    /// Attempts over two to four hours, three on average.
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(16).unwrap_or(NonZeroU32::MIN),
            first: Duration::from_secs(1),
            ceiling: Duration::from_secs(3600),
            age: Duration::from_secs(24 * 3600),
        }
    }
}

/// A failed attempt whose cause may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    /// The number of the attempt, from 1.
    pub(super) attempt: u32,
    /// When the delivery first became due.
    pub(super) since: Timestamp,
    /// When the attempt ended.
    pub(super) now: Timestamp,
    /// The pause that the receiver asked for.
    pub(super) after: Option<Duration>,
    /// A random number from 0 to 1.
    pub(super) jitter: f64,
}

/// What follows a failed attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    /// Another attempt at this time.
    At(Timestamp),
    /// No attempt, since this limit is reached.
    Never(String),
}

impl Retry {
    /// Decides what follows `failure`.
    pub(super) fn next(&self, failure: Failure) -> Next {
        let attempts = self.attempts.get();
        if failure.attempt >= attempts {
            let plural = if attempts == 1 { "" } else { "s" };
            return Next::Never(format!("gave up after {attempts} attempt{plural}"));
        }
        let old_at = later(failure.since, self.age);
        if failure.now >= old_at {
            let age = humantime::format_duration(self.age);
            return Next::Never(format!("gave up at the age of {age}"));
        }
        let asked_for = failure.after.unwrap_or_default().min(self.ceiling);
        let pause = self.pause(failure.attempt, failure.jitter).max(asked_for);
        Next::At(later(failure.now, pause).min(old_at))
    }

    /// The pause after attempt number `attempt`: between half and all of the full pause, so that
    /// deliveries that failed together are not attempted together.
    fn pause(&self, attempt: u32, jitter: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let full = self.first.saturating_mul(doubled).min(self.ceiling);
        let half = full / 2;
        let cut = Duration::try_from_secs_f64(half.as_secs_f64() * jitter).unwrap_or(half);
        full - cut.min(half)
    }
}

/// `pause` after `time`, or the latest representable time.
fn later(time: Timestamp, pause: Duration) -> Timestamp {
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    time.checked_add(pause).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

    fn failure(attempt: u32) -> Failure {
        Failure {
            attempt,
            since: NOW,
            now: NOW,
            after: None,
            jitter: 0.0,
        }
    }

    fn pause_of(retry: &Retry, failure: Failure) -> Duration {
        match retry.next(failure) {
            Next::At(at) => at.duration_since(failure.now).unsigned_abs(),
            Next::Never(why) => panic!("parked: {why}"),
        }
    }

    #[test]
    fn pauses_double_up_to_the_ceiling() {
        let retry = Retry {
            attempts: NonZeroU32::new(100).unwrap(),
            ceiling: Duration::from_secs(60),
            ..Retry::default()
        };
        let seconds = |attempt| pause_of(&retry, failure(attempt)).as_secs();
        let pauses: Vec<_> = (1..=8).map(seconds).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(99), 60);
    }

    #[test]
    fn chance_takes_up_to_half_of_a_pause() {
        let with = |jitter| {
            let failure = Failure {
                jitter,
                ..failure(4)
            };
            pause_of(&Retry::default(), failure)
        };
        assert_eq!(with(0.0), Duration::from_secs(8));
        assert_eq!(with(0.5), Duration::from_secs(6));
        assert_eq!(with(1.0), Duration::from_secs(4));
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_up_to_the_ceiling() {
        let retry = Retry::default();
        let asked = |seconds| {
            let failure = Failure {
                after: Some(Duration::from_secs(seconds)),
                ..failure(3)
            };
            pause_of(&retry, failure).as_secs()
        };
        assert_eq!(asked(0), 4);
        assert_eq!(asked(120), 120);
        assert_eq!(asked(1_000_000), 3600);
    }

    #[test]
    fn the_last_attempt_is_the_last() {
        let retry = Retry::default();
        assert!(matches!(retry.next(failure(15)), Next::At(_)));
        let parked = Next::Never("gave up after 16 attempts".to_owned());
        assert_eq!(retry.next(failure(16)), parked);
        assert_eq!(retry.next(failure(17)), parked);
        let once = Retry {
            attempts: NonZeroU32::MIN,
            ..Retry::default()
        };
        let parked = Next::Never("gave up after 1 attempt".to_owned());
        assert_eq!(once.next(failure(1)), parked);
    }

    #[test]
    fn an_old_delivery_is_tried_once_more_at_its_age_limit_and_then_parked() {
        let retry = Retry {
            age: Duration::from_secs(100),
            ..Retry::default()
        };
        let at = |now| Failure {
            now: later(NOW, Duration::from_secs(now)),
            ..failure(6)
        };
        assert_eq!(retry.next(at(90)), Next::At(at(100).now));
        let parked = Next::Never("gave up at the age of 1m 40s".to_owned());
        assert_eq!(retry.next(at(100)), parked);
    }

    fn any_retry() -> impl Strategy<Value = Retry> {
        let length = || prop_oneof![0..10_000_u64, any::<u64>()].prop_map(Duration::from_millis);
        (1..=u32::MAX, length(), length(), length()).prop_map(|(attempts, first, ceiling, age)| {
            Retry {
                attempts: NonZeroU32::new(attempts).unwrap_or(NonZeroU32::MIN),
                first,
                ceiling,
                age,
            }
        })
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_an_answer_within_every_limit(
            retry in any_retry(),
            attempt in any::<u32>(),
            waited in any::<u32>(),
            after in any::<Option<Duration>>(),
            jitter in any::<f64>(),
        ) {
            let now = later(NOW, Duration::from_millis(waited.into()));
            let failure = Failure { attempt, since: NOW, now, after, jitter };
            match retry.next(failure) {
                Next::At(at) => {
                    prop_assert!(attempt < retry.attempts.get());
                    prop_assert!(at >= now);
                    prop_assert!(at <= later(now, retry.ceiling));
                    prop_assert!(at <= later(NOW, retry.age));
                }
                Next::Never(_) => prop_assert!(
                    attempt >= retry.attempts.get() || now >= later(NOW, retry.age)
                ),
            }
        }

        #[test]
        fn a_later_attempt_never_waits_less(attempt in 1..200_u32, jitter in 0.0..=1.0_f64) {
            let retry = Retry::default();
            prop_assert!(retry.pause(attempt, jitter) <= retry.pause(attempt + 1, jitter));
        }
    }
}
