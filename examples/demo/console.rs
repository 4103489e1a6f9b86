//! What the reader sees: chapters, numbered steps, what was seen in each, and a table at the end.

use std::time::Duration;

/// Columns of a line with a time at its end.
const WIDTH: usize = 92;
/// Columns of a time.
const TIME: usize = 12;
/// Columns before the text of a step.
const INDENT: usize = 5;

/// Prints as it is told, and remembers what goes into the table.
#[derive(Default)]
pub struct Console {
    steps: usize,
    table: Vec<(String, Duration)>,
}

impl Console {
    /// A new part of the story, and what to know before it.
    #[expect(clippy::unused_self, reason = "the console is what prints")]
    pub fn chapter(&self, title: &str, introduction: &[&str]) {
        println!("\n\n{title}\n{}", "=".repeat(title.len()));
        for line in introduction {
            println!("{line}");
        }
    }

    /// What happens now.
    pub fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{:<INDENT$}{what}", format!("{:>2}.", self.steps));
    }

    /// A line about it.
    #[expect(clippy::unused_self, reason = "the console is what prints")]
    pub fn note(&self, line: &str) {
        println!("{:INDENT$}{line}", "");
    }

    /// Its effect, seen on real objects, and the time until then.
    #[expect(clippy::unused_self, reason = "the console is what prints")]
    pub fn seen(&self, effect: &str, took: Duration) {
        print_with_time(&format!("{:INDENT$}-> {effect}", ""), took);
    }

    /// The same, with words for the table.
    pub fn measured(&mut self, effect: &str, words: &str, took: Duration) {
        self.seen(effect, took);
        self.table.push((words.to_owned(), took));
    }

    /// What was measured.
    pub fn print_table(&self) {
        println!();
        self.table.iter().for_each(|(words, took)| print_with_time(words, *took));
    }
}

/// A time, in one unit so that times compare at a glance.
pub fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

fn print_with_time(line: &str, took: Duration) {
    let dots = WIDTH.saturating_sub(TIME + 2 + line.chars().count());
    println!("{line} {} {:>TIME$}", ".".repeat(dots), millis(took));
}
