//! See the body: what holds for a review, whatever its bytes.

// libFuzzer has it.
#![no_main]

mod mutate;
#[path = "../bodies/review.rs"]
mod review;
#[path = "../bodies/world.rs"]
mod world;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|body: &[u8]| review::check(body));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed)
});
