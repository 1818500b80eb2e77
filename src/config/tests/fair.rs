//! Turn locks and caps.

use super::*;

#[test]
fn whole_connections_have_neither_turns_nor_calls() {
    let text = |more: &str| format!("[routing]\ngranularity = \"connection\"\n{more}{MINIMAL}");
    for (more, told) in [
        ("[sessions]\nturn_lock = \"queue\"\n", "sessions.turn_lock"),
        (
            "[sessions]\nmax_open_per_user = 5\n",
            "sessions.max_open_per_user",
        ),
        (
            "[limits]\nconnections_per_user = 5\n",
            "limits.connections_per_user",
        ),
        ("[limits]\nturns_per_user = 5\n", "limits.turns_per_user"),
        (
            "[limits]\ncalls_per_second = 5\n",
            "limits.calls_per_second",
        ),
        (
            "[limits]\nbytes_per_second = \"5MiB\"\n",
            "limits.bytes_per_second",
        ),
    ] {
        let failure = read(&text(more)).unwrap_err().to_string();
        let expected = format!("{told}: cannot be used with granularity = \"connection\"");
        assert!(failure.contains(&expected), "{failure}");
    }
    // What is off is none.
    let off = "[sessions]\nturn_lock = \"off\"\nmax_open_per_user = 0\n[limits]\n\
               connections_per_user = 0\nturns_per_user = 0\ncalls_per_second = 0\n\
               bytes_per_second = \"0B\"\n";
    good(&text(off));
}
