//! Any first bytes: the reader of PROXY headers.
#![no_main]

#[path = "../checks/mod.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::proxy_header::check_header(input));
