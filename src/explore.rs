//! Every state that can be reached: for small models of what runs side by side. Only for tests. PURE.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Debug,
    hash::Hash,
};

/// What was explored.
pub(crate) struct Explored<S> {
    /// Each state once.
    pub(crate) states: Vec<S>,
    /// Which states each one leads to.
    next: Vec<Vec<usize>>,
    /// How each one was first reached: from where, by what.
    from: Vec<Option<(usize, String)>>,
}

/// Visits every state that `start` leads to, the nearest first, and checks each.
///
/// # Panics
/// With the shortest way to a state that is not as it must be.
pub(crate) fn explore<S, A>(
    start: S,
    successors: impl Fn(&S) -> Vec<(A, S)>,
    check: impl Fn(&S) -> Result<(), String>,
) -> Explored<S>
where
    S: Clone + Eq + Hash + Debug,
    A: Debug,
{
    let mut explored = Explored { states: vec![start.clone()], next: vec![Vec::new()], from: vec![None] };
    let (mut known, mut queue) = (HashMap::from([(start, 0)]), VecDeque::from([0]));
    while let Some(index) = queue.pop_front() {
        let state = explored.states[index].clone();
        if let Err(problem) = check(&state) {
            panic!("{problem}\n{}", explored.way_to(index));
        }
        for (action, next) in successors(&state) {
            let found = *known.entry(next).or_insert_with_key(|next| {
                explored.states.push(next.clone());
                explored.next.push(Vec::new());
                explored.from.push(Some((index, format!("{action:?}"))));
                queue.push_back(explored.states.len() - 1);
                explored.states.len() - 1
            });
            explored.next[index].push(found);
        }
    }
    explored
}

impl<S: Debug> Explored<S> {
    /// From every state there is a way to one of which this is true.
    ///
    /// # Panics
    /// With the shortest way to a state from which there is none.
    pub(crate) fn always_leads_to(&self, is_goal: impl Fn(&S) -> bool) {
        let mut before = vec![Vec::new(); self.states.len()];
        for (index, next) in self.next.iter().enumerate() {
            for other in next {
                before[*other].push(index);
            }
        }
        let mut leads: Vec<_> = self.states.iter().map(&is_goal).collect();
        let mut queue: VecDeque<_> = (0..leads.len()).filter(|index| leads[*index]).collect();
        while let Some(index) = queue.pop_front() {
            for other in &before[index] {
                if !std::mem::replace(&mut leads[*other], true) {
                    queue.push_back(*other);
                }
            }
        }
        if let Some(lost) = leads.iter().position(|leads| !leads) {
            panic!("no way leads on\n{}", self.way_to(lost));
        }
    }

    fn way_to(&self, index: usize) -> String {
        let step = |index: &usize| self.from[*index].as_ref().map(|(from, _)| *from);
        let mut way: Vec<_> = std::iter::successors(Some(index), step).collect();
        way.reverse();
        let line = |index: &usize| {
            let action = self.from[*index].as_ref().map_or("start", |(_, action)| action.as_str());
            format!("{action}: {:?}\n", self.states[*index])
        };
        way.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to five, or gets stuck at two.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "a state may be large")]
    fn count(state: &u8) -> Vec<(&'static str, u8)> {
        if *state < 5 { vec![("next", state + 1), ("stuck", 9)] } else { Vec::new() }
    }

    #[test]
    fn each_state_is_visited_once() {
        let explored = explore(0, count, |_| Ok(()));
        assert_eq!(explored.states, [0, 1, 9, 2, 3, 4, 5]);
        explored.always_leads_to(|state| *state == 5 || *state == 9);
    }

    #[test]
    #[should_panic(expected = "three\nstart: 0\n\"next\": 1\n\"next\": 2\n\"next\": 3\n")]
    fn what_is_wrong_comes_with_the_way_to_it() {
        explore(0, count, |state| if *state == 3 { Err("three".to_owned()) } else { Ok(()) });
    }

    #[test]
    #[should_panic(expected = "no way leads on\nstart: 0\n\"stuck\": 9\n")]
    fn a_state_without_a_way_on_is_found() {
        explore(0, count, |_| Ok(())).always_leads_to(|state| *state == 5);
    }
}
