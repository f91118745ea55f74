//! The user of this process, for error messages.

use std::fs;

/// The name and the number of the user, or the number of a user without a name.
pub(super) fn name() -> String {
    let id = rustix::process::geteuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    match users.lines().find_map(|line| named(line, id)) {
        Some(name) => format!("{name:?} ({id})"),
        None => id.to_string(),
    }
}

/// The name in `line` of `/etc/passwd`, if that is the line of the user `id`.
fn named(line: &str, id: u32) -> Option<&str> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let found = fields.nth(1)?.parse::<u32>().ok()?;
    (found == id).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_its_number() {
        let line = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin";
        assert_eq!(named(line, 65534), Some("nobody"));
        assert_eq!(named(line, 6553), None);
        assert_eq!(named("+::::::", 0), None);
    }
}
