//! A fact that may happen often and is to be told seldom.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Says when to tell, and how often it happened since it was told last.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// It is told at once, and then once in this time.
    pub fn new(every: Duration) -> Throttle {
        Throttle {
            every,
            state: Mutex::new((None, 0)),
        }
    }

    /// It happened. Returns how often since it was told last, if it is to be told now.
    pub fn happened(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, times) = &mut *state;
        *times += 1;
        let now = Instant::now();
        if told.is_some_and(|told| now.saturating_duration_since(told) < self.every) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_then_seldom() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!(throttle.happened(), Some(1));
        assert_eq!(throttle.happened(), None);
        let throttle = Throttle::new(Duration::ZERO);
        assert_eq!(
            (throttle.happened(), throttle.happened()),
            (Some(1), Some(1))
        );
    }
}
