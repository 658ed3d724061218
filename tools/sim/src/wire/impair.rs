//! What wires do to packets: lose them, delay them, let others overtake them. By chance, but the same seed and the same packets give the same.

use super::Frame;
use crate::faults::Chance;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u32, pub u32);

/// What a wire does to what a port sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impairments {
    /// How many packets are lost.
    pub loss: Option<Share>,
    /// How many packets are overtaken, by up to eight others.
    pub reorder: Option<Share>,
    /// How long packets take.
    pub delay: Duration,
    /// What chance is made of.
    pub seed: u64,
}

impl Default for Impairments {
    fn default() -> Self {
        Self { loss: None, reorder: None, delay: Duration::ZERO, seed: 1 }
    }
}

impl Impairments {
    pub(super) fn is_none(&self) -> bool {
        self.loss.is_none() && self.reorder.is_none() && self.delay.is_zero()
    }
}

impl Share {
    /// Reads `N/M`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (n, of) = text.split_once('/')?;
        let (n, of) = (n.parse().ok()?, of.parse().ok()?);
        (n <= of && of > 0).then_some(Self(n, of))
    }
}

/// How long a packet waits to be overtaken, where no others come.
const PATIENCE: Duration = Duration::from_millis(1);

/// What a wire did to packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImpairmentCounts {
    /// Packets that it lost.
    pub(crate) lost: u64,
    /// Packets that others overtook.
    pub(crate) reordered: u64,
}

/// A packet that is to be overtaken.
struct Late {
    /// By how many more.
    left: u32,
    /// When it goes on although there weren't as many.
    latest: Instant,
    /// How many packets had passed when it came.
    passed: u64,
    frame: Frame,
}

/// Impairments at work.
pub(super) struct Impair {
    what: Impairments,
    chance: Chance,
    /// Packets that are to be overtaken.
    late: Vec<Late>,
    /// How many packets have passed that were not.
    passed: u64,
    /// Packets on their way, and when they arrive.
    way: VecDeque<(Instant, Frame)>,
    passing: Vec<Frame>,
}

impl Impair {
    pub(super) fn new(what: &Impairments) -> Self {
        let chance = Chance::new(what.seed);
        Self { what: what.clone(), chance, late: Vec::new(), passed: 0, way: VecDeque::new(), passing: Vec::new() }
    }

    /// Replaces what goes in by what comes out now. What is lost goes to `spare`.
    pub(super) fn pass(&mut self, frames: &mut Vec<Frame>, spare: &mut Vec<Frame>) -> ImpairmentCounts {
        let (mut counts, now) = (ImpairmentCounts::default(), Instant::now());
        for frame in frames.drain(..) {
            if self.chance.strikes(self.what.loss) {
                spare.push(frame);
                counts.lost += 1;
                continue;
            }
            self.late.iter_mut().for_each(|late| late.left = late.left.saturating_sub(1));
            if self.chance.strikes(self.what.reorder) {
                // What is overtaken by this one and the next is overtaken by two at most: never by itself.
                let (left, latest) = (1 + self.chance.below(8), now + PATIENCE);
                self.late.push(Late { left, latest, passed: self.passed, frame });
                continue;
            }
            self.passing.push(frame);
            self.passed += 1;
            counts.reordered += self.release(|late| late.left == 0);
        }
        counts.reordered += self.release(|late| late.latest <= now);
        if self.what.delay.is_zero() {
            frames.append(&mut self.passing);
            return counts;
        }
        let due = now + self.what.delay;
        self.way.extend(self.passing.drain(..).map(|frame| (due, frame)));
        while self.way.front().is_some_and(|(due, _)| *due <= now) {
            frames.extend(self.way.pop_front().map(|(_, frame)| frame));
        }
        counts
    }

    /// When the first of the packets that are held goes on.
    pub(super) fn due(&self) -> Option<Instant> {
        let late = self.late.iter().map(|late| late.latest);
        late.chain(self.way.front().map(|(due, _)| *due)).min()
    }

    /// Lets those packets go on of which `which` says so; returns how many of them were overtaken.
    fn release(&mut self, which: impl Fn(&Late) -> bool) -> u64 {
        let mut reordered = 0;
        for late in self.late.extract_if(.., |late| which(late)) {
            reordered += u64::from(self.passed > late.passed);
            self.passing.push(late.frame);
        }
        reordered
    }
}
