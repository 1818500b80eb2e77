//! Warnings about when a silent backend is given up.

use super::*;

fn warnings(text: &str) -> Vec<String> {
    let loaded = read(&format!("{text}{MINIMAL}")).unwrap_or_else(|failure| panic!("{failure}"));
    let lines = loaded.warnings.iter().map(|w| w.message.clone());
    lines.collect()
}

#[test]
fn what_giving_up_a_silent_backend_risks_is_told() {
    let shared = "[routing]\nmode = \"shared-storage\"\n[failover]\n";
    let sleeps = "failover.hang_timeout: sessions move from a backend that may only sleep";
    let fence = "fence_command = [\"fence\", \"{name}\"]\n";
    for (failover, expected) in [
        (String::new(), &[][..]),
        ("hang_timeout = \"0s\"\n".to_owned(), &[]),
        (format!("hang_timeout = \"6s\"\n{fence}"), &[]),
        (fence.to_owned(), &[]),
        ("hang_timeout = \"6s\"\n".to_owned(), &[sleeps]),
        (
            format!("hang_timeout = \"2s\"\n{fence}"),
            &["failover.hang_timeout: shorter than the 5s until ejection"],
        ),
        (
            "fence_timeout = \"1s\"\n".to_owned(),
            &["failover.fence_timeout: has no effect without fence_command"],
        ),
        (
            format!("hang_timeout = \"0s\"\n{fence}"),
            &["failover.fence_command: has no effect with hang_timeout = \"0s\""],
        ),
    ] {
        assert_eq!(
            warnings(&format!("{shared}{failover}")),
            expected,
            "{failover}"
        );
    }
    assert_eq!(
        warnings("[failover]\nhang_timeout = \"10s\"\n"),
        ["failover.hang_timeout: has no effect with mode = \"sticky\""]
    );
    assert_eq!(
        warnings("[sessions]\nturn_stall_action = \"end\"\n"),
        ["sessions.turn_stall_action: has no effect without turn_stall"]
    );
    assert!(warnings("[sessions]\nturn_stall = \"1m\"\nturn_stall_action = \"end\"\n").is_empty());
}
