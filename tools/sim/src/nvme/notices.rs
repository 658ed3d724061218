//! What controllers of a subsystem tell their hosts of reservations (base 8.19.7 and 5.16.1.23): a page of the Reservation Notification log for each change that
//! another host made, and an event. Another controller's thread puts it there.

use super::reservation::Who;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// What happened: the log page's types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    RegistrationPreempted = 1,
    ReservationReleased = 2,
    ReservationPreempted = 3,
}

/// How many pages are kept: NALP has 8 bits. Further ones are lost, and their numbers are missing.
const PAGES: usize = 256;

/// What a controller has to tell its host.
pub(super) struct Inbox {
    /// Something came, and no event was raised for it yet.
    came: AtomicBool,
    state: Mutex<State>,
}

struct State {
    who: Who,
    /// Reservation Notification Mask (base 5.27.1.26), by namespace: changes that are not told.
    masks: BTreeMap<u32, u32>,
    /// Number, type and namespace.
    pages: VecDeque<(u64, Change, u32)>,
    count: u64,
}

impl Inbox {
    pub(super) fn new(who: Who) -> Self {
        let state = State { who, masks: BTreeMap::new(), pages: VecDeque::new(), count: 0 };
        Self { came: AtomicBool::new(false), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// It is this host's.
    pub(super) fn belongs_to(&self, who: Who) {
        self.lock().who = who;
    }

    /// A controller level reset.
    pub(super) fn reset(&self, who: Who) {
        let mut state = self.lock();
        let count = state.count;
        *state = State { who, masks: BTreeMap::new(), pages: VecDeque::new(), count };
        self.came.store(false, Ordering::Relaxed);
    }

    /// Takes what its host is to be told.
    pub(super) fn take(&self, nsid: u32, told: &[(Who, Change)]) {
        let mut state = self.lock();
        let mask = state.masks.get(&nsid).copied().unwrap_or(0);
        let who = state.who;
        for (_, change) in told.iter().filter(|(host, change)| *host == who && mask >> *change as u32 & 1 == 0) {
            state.count += 1;
            let page = (state.count, *change, nsid);
            if state.pages.len() < PAGES {
                state.pages.push_back(page);
            }
            // Release pairs with the swap of `came`: who sees it finds the page.
            self.came.store(true, Ordering::Release);
        }
    }

    /// Whether something came since this was asked last.
    #[inline]
    pub(super) fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed) && self.came.swap(false, Ordering::Acquire)
    }

    /// Set Features and Get Features, Reservation Notification Mask.
    pub(super) fn set_mask(&self, nsid: u32, mask: u32) {
        self.lock().masks.insert(nsid, mask & 0b1110);
    }

    pub(super) fn mask(&self, nsid: u32) -> u32 {
        self.lock().masks.get(&nsid).copied().unwrap_or(0)
    }

    /// The oldest page of the log, or an empty one; `keep` leaves it there.
    pub(super) fn page(&self, keep: bool) -> Vec<u8> {
        let mut state = self.lock();
        let page = if keep { state.pages.front().copied() } else { state.pages.pop_front() };
        let mut bytes = vec![0; 64];
        let Some((number, change, nsid)) = page else { return bytes };
        let others = state.pages.len() - usize::from(keep);
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        (bytes[8], bytes[9]) = (change as u8, others.min(255) as u8);
        bytes[12..16].copy_from_slice(&nsid.to_le_bytes());
        bytes
    }
}
