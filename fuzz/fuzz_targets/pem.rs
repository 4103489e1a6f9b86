//! See the body: what holds for a file of PEM, whatever its bytes.

// libFuzzer has it.
#![no_main]

#[path = "../bodies/pem.rs"]
mod pem;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pem::check(bytes));
