//! Pauses after failures. PURE.

use std::time::Duration;

/// The pause after `attempts` failures: `first`, doubling up to `longest`, less up to a half by
/// chance so that those who failed together do not come back together.
pub fn pause(attempts: u32, first: Duration, longest: Duration) -> Duration {
    let full = first.saturating_mul(1 << attempts.min(16)).min(longest);
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(30));
        for (attempts, full) in [(0, 200), (1, 400), (4, 3_200), (8, 30_000), (u32::MAX, 30_000)] {
            let full = Duration::from_millis(full);
            let pause = pause(attempts, first, longest);
            assert!(pause <= full && pause >= full / 2, "{attempts}: {pause:?}");
        }
    }
}
