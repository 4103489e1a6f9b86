//! See the body: what holds for the query of a review, whatever its bytes.

// libFuzzer has it.
#![no_main]

#[path = "../bodies/timeout.rs"]
mod timeout;
#[path = "../bodies/world.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| timeout::check(bytes));
