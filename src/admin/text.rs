//! Numbers and times in the words of the status and of the pages.

use jiff::{SignedDuration, Timestamp};

/// `time` to the second, in UTC: `2026-01-31 08:00:00`.
pub(super) fn moment(time: Timestamp) -> String {
    format!("{time:.0}").replace('T', " ").replace('Z', "")
}

/// The largest unit of `duration`, rounded down: `14 min`.
pub(super) fn duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `1 delivery`, `2 deliveries`, `12,000 deliveries`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        grouped(number),
        if number == 1 { one } else { many }
    )
}

/// `number` with a comma between each three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short() {
        let time = "2026-01-31T08:00:00.9Z".parse().unwrap();
        assert_eq!(moment(time), "2026-01-31 08:00:00");
        assert_eq!(duration(SignedDuration::from_secs(59)), "59 s");
        assert_eq!(duration(SignedDuration::from_secs(899)), "14 min");
        assert_eq!(duration(SignedDuration::from_hours(47)), "47 h");
        assert_eq!(duration(SignedDuration::from_hours(48)), "2 days");
        assert_eq!(count(1, "delivery", "deliveries"), "1 delivery");
        assert_eq!(
            count(1_234_567, "delivery", "deliveries"),
            "1,234,567 deliveries"
        );
        assert_eq!(grouped(999), "999");
    }
}
