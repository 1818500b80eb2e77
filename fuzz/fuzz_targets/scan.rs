//! Any body: the scanner against serde_json and the CLI's rules.
#![no_main]

#[path = "../checks/mod.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::scan::check_scan(input));
