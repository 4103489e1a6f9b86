//! See the body: what holds for a certificate in DER, whatever its bytes.

// libFuzzer has it.
#![no_main]

#[path = "../bodies/der.rs"]
mod der;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| der::check(bytes));
