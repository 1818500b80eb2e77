//! Any stream in any chunks: the cutter against the slow reference.
#![no_main]

#[path = "../checks/mod.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::frame::fuzz_frames(input));
