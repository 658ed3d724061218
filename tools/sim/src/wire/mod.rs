//! Wires: what stands between the network models of a machine, and between them and the rest of the world.
//!
//! A `Port` is a model's end of one. Frames are owned and come home: after the first lap nothing is allocated, and nothing is ever locked.
//! Where a wire has no room, a port says so, and its driver's packets wait in their queue. This file does *not* know of queues or drivers.

mod capture;
mod frame;
mod impair;
mod offload;
mod pair;
#[cfg(not(miri))]
mod tap;

pub(crate) use frame::{
    DATA_VALID, Frame, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEAD, HEADER, LONGEST, NEEDS_CSUM, Offload,
};
pub(crate) use impair::ImpairmentCounts;
pub use impair::{Impairments, Share};
pub(crate) use offload::{Accepts, Fit, check, cut, fit};

use crate::Result;
use capture::Capture;
use impair::Impair;
use pair::End;
pub(crate) use pair::PairThread;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
#[cfg(not(miri))]
use tap::TapEnd;
use wholebar_core::reactor::Armed;

/// Frames that a port has under way at most.
const FRAMES: usize = 512;
/// The same for one whose frames are held on their way.
const FRAMES_HELD: usize = 8192;
/// A burst.
pub(crate) const BURST: usize = 32;

/// A wire by name: what `wire=` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// What is sent comes back.
    Loop,
    /// Two ports that give the same name, back to back.
    Pair(String),
    /// A TAP interface of this name.
    Tap(String),
    /// Capture files: what is sent goes to one, what is received comes from another.
    Capture {
        /// The file that is read.
        from: Option<PathBuf>,
        /// The file that is written.
        to: Option<PathBuf>,
    },
}

impl Wire {
    /// Reads `loop`, `pair:NAME`, `tap:NAME`, `pcap` or `pcap:FILE`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "loop" => Some(Self::Loop),
            None if text == "pcap" => Some(Self::Capture { from: None, to: None }),
            Some(("pair", name)) if !name.is_empty() => Some(Self::Pair(name.to_owned())),
            Some(("tap", name)) if !name.is_empty() => Some(Self::Tap(name.to_owned())),
            Some(("pcap", file)) if !file.is_empty() => Some(Self::Capture { from: None, to: Some(file.into()) }),
            _ => None,
        }
    }
}

/// An address, locally administered: made of a name, and which of those that have it this is.
pub(crate) fn mac_of(name: &str, which: u8) -> [u8; 6] {
    let sum = name.bytes().fold(0x811c_9dc5u32, |sum, b| (sum ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let [a, b, c, _] = sum.to_be_bytes();
    [0x02, 0x57, a, b, c, which]
}

/// A model's end of a wire.
pub(crate) struct Port {
    medium: Medium,
    /// Frames of this port's own that are home.
    spare: Vec<Frame>,
    made: usize,
    most: usize,
    outgoing: Vec<Frame>,
    impair: Option<Box<Impair>>,
}

enum Medium {
    Loop(VecDeque<Frame>),
    Pair(End),
    #[cfg(not(miri))]
    Tap(Box<TapEnd>),
    Capture(Box<Capture>),
}

impl Port {
    /// Plugs into a wire.
    pub(crate) fn open(wire: &Wire, impairments: &Impairments) -> Result<Self> {
        let most = if impairments.is_none() { FRAMES } else { FRAMES_HELD };
        let medium = match wire {
            Wire::Loop => Medium::Loop(VecDeque::with_capacity(most)),
            Wire::Pair(name) => Medium::Pair(End::join(name, FRAMES_HELD)?),
            #[cfg(not(miri))]
            Wire::Tap(name) => Medium::Tap(Box::new(TapEnd::open(name)?)),
            #[cfg(miri)]
            Wire::Tap(_) => return Err(crate::Error::Conflict("Miri has no TAP".to_owned())),
            Wire::Capture { from, to } => Medium::Capture(Box::new(Capture::open(from.as_deref(), to.as_deref())?)),
        };
        let impair = (!impairments.is_none()).then(|| Box::new(Impair::new(impairments)));
        Ok(Self { medium, spare: Vec::with_capacity(most), made: 0, most, outgoing: Vec::with_capacity(most), impair })
    }

    /// How many frames can be taken now.
    #[inline]
    pub(crate) fn room(&mut self) -> usize {
        if self.spare.len() < BURST
            && let Medium::Pair(end) = &mut self.medium
        {
            end.home(&mut self.spare);
        }
        self.spare.len() + self.most - self.made
    }

    /// A frame to fill; `None` where [`room`](Self::room) said that there is none.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Frame> {
        match self.spare.pop() {
            None if self.made < self.most => {
                self.made += 1;
                Some(Frame::new(self.side()))
            }
            frame => frame,
        }
    }

    /// Sends a frame that was taken here, with the next [`flush`](Self::flush).
    #[inline]
    pub(crate) fn send(&mut self, frame: Frame) {
        self.outgoing.push(frame);
    }

    /// Puts on the wire what was sent; says what became of that.
    #[inline]
    pub(crate) fn flush(&mut self) -> ImpairmentCounts {
        let mut counts = match &mut self.impair {
            None => ImpairmentCounts::default(),
            Some(impair) => impair.pass(&mut self.outgoing, &mut self.spare),
        };
        if self.outgoing.is_empty() {
            if let Medium::Capture(capture) = &mut self.medium {
                capture.idle();
            }
            return counts;
        }
        match &mut self.medium {
            Medium::Loop(queue) => queue.extend(self.outgoing.drain(..)),
            Medium::Pair(end) => end.send(&mut self.outgoing),
            #[cfg(not(miri))]
            Medium::Tap(tap) => counts.lost += tap.send(&mut self.outgoing),
            Medium::Capture(capture) => counts.lost += capture.send(&mut self.outgoing),
        }
        // Nobody else keeps them.
        self.spare.append(&mut self.outgoing);
        counts
    }

    /// Takes up to `max` frames off the wire.
    #[inline]
    pub(crate) fn receive(&mut self, out: &mut Vec<Frame>, max: usize) {
        match &mut self.medium {
            Medium::Loop(queue) => out.extend(queue.drain(..max.min(queue.len()))),
            Medium::Pair(end) => end.receive(out, max),
            #[cfg(not(miri))]
            Medium::Tap(_) => self.fill(out, max),
            Medium::Capture(_) => self.fill(out, max),
        }
    }

    /// Frames of this port's own, filled from elsewhere.
    fn fill(&mut self, out: &mut Vec<Frame>, max: usize) {
        for _ in 0..max {
            let Some(mut frame) = self.take() else { return };
            let more = match &mut self.medium {
                #[cfg(not(miri))]
                Medium::Tap(tap) => tap.receive(&mut frame),
                Medium::Capture(capture) => capture.receive(&mut frame),
                Medium::Loop(_) | Medium::Pair(_) => false,
            };
            if !more {
                return self.spare.push(frame);
            }
            out.push(frame);
        }
    }

    /// Gives received frames back, and those that were taken and not sent.
    #[inline]
    pub(crate) fn give_back(&mut self, frames: &mut Vec<Frame>) {
        let side = self.side();
        match &mut self.medium {
            Medium::Pair(end) => {
                if frames.iter().any(|f| f.owner == side) {
                    self.spare.extend(frames.extract_if(.., |f| f.owner == side));
                }
                end.give_back(frames);
            }
            _ => self.spare.append(frames),
        }
    }

    /// Tells the other end whether a driver is here.
    pub(crate) fn run(&mut self, on: bool) {
        match &mut self.medium {
            Medium::Pair(end) => end.run(on),
            Medium::Capture(capture) => capture.run(on),
            _ => {}
        }
    }

    /// Whether there is a carrier: of a pair, whether a driver is at the other end.
    #[inline]
    pub(crate) fn carrier(&self) -> bool {
        match &self.medium {
            Medium::Pair(end) => end.carrier(),
            _ => true,
        }
    }

    /// An address for it, locally administered: made of the wire's name, and of which end this is.
    pub(crate) fn mac(&self, wire: &Wire) -> [u8; 6] {
        let name = match wire {
            Wire::Loop | Wire::Capture { .. } => "",
            Wire::Pair(name) | Wire::Tap(name) => name,
        };
        mac_of(name, self.side() + 1)
    }

    /// What it waits for, after a poll that found nothing: as [`Model::arm`](wholebar_core::model::Model::arm) says it.
    pub(crate) fn arm(&self) -> Armed {
        let yes = match &self.medium {
            Medium::Loop(queue) => queue.is_empty(),
            // Another thread's packets wake nobody here.
            Medium::Pair(end) => end.runs_beside(),
            #[cfg(not(miri))]
            Medium::Tap(tap) => !tap.is_gone(),
            Medium::Capture(_) => true,
        };
        match (yes, self.impair.as_ref().and_then(|impair| impair.due())) {
            (false, _) => Armed::No,
            (true, None) => Armed::Yes,
            (true, Some(due)) => Armed::Until(due),
        }
    }

    /// The descriptor of a wire that leads out of this process.
    pub(crate) fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        match &self.medium {
            #[cfg(not(miri))]
            Medium::Tap(tap) => vec![tap.as_fd()],
            _ => Vec::new(),
        }
    }

    /// The model at the other end, to run beside.
    pub(crate) fn pair_thread(&self) -> PairThread {
        match &self.medium {
            Medium::Pair(end) => end.pair_thread(),
            _ => PairThread::default(),
        }
    }

    #[inline]
    fn side(&self) -> u8 {
        match &self.medium {
            Medium::Pair(end) => end.side(),
            _ => 0,
        }
    }
}
