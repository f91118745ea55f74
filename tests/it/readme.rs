//! What the README says is so.

use hookswitch::telemetry::METRICS;

#[test]
fn every_metric_is_listed_with_its_meaning() {
    let readme = include_str!("../../README.md");
    for metric in METRICS {
        let line = format!("| `hookswitch_{}` | {} |", metric.name, metric.help);
        assert!(
            readme.contains(&line),
            "the README lacks this line:\n{line}"
        );
    }
}
