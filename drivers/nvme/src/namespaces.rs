//! A controller's namespaces: found when it is opened, read again when it says that they changed, and after resets, in which it can't say so.

use crate::admin::AdminQueue;
use crate::bytes::u32_at;
use crate::command;
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::identify::{self, Controller, Namespace, cns, csi};
use crate::quirks::Quirk;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How many namespaces are looked at: a bound for what a controller can say, above what any has.
const MAX_NAMESPACES: usize = 65_536;

/// What is known of the namespaces.
pub(crate) struct Namespaces {
    list: Mutex<Arc<[Namespace]>>,
    generation: AtomicU64,
    /// Those that went away, as they were, while there were queues: which may still use them.
    lost: Mutex<Vec<Namespace>>,
}

/// Which namespaces are to be read again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    All,
    These(Vec<u32>),
}

impl Namespaces {
    pub fn new(list: Vec<Namespace>) -> Self {
        Self { list: Mutex::new(list.into()), generation: AtomicU64::new(0), lost: Mutex::new(Vec::new()) }
    }

    /// There are no queues: nobody uses any that went away.
    pub fn forget_lost(&self) {
        self.lost.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    /// Whether a namespace that is to be attached has other blocks than the one of its identifier that went away before.
    pub fn has_other_blocks(&self, hw: &Hardware, admin: &mut AdminQueue, nsid: u32) -> Result<bool> {
        let lost = self.lost.lock().unwrap_or_else(|e| e.into_inner()).iter().find(|n| n.nsid == nsid).cloned();
        let Some(lost) = lost else { return Ok(false) };
        let allocated = command::identify(cns::ALLOCATED_NAMESPACE, nsid, 0, admin.data_iova());
        let now = match admin.fetch(hw, allocated, identify::LEN) {
            Ok(bytes) => Namespace::parse(nsid, &bytes, &[]),
            // It may be anything.
            Err(Error::Refused { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        Ok(now.layout() != lost.layout())
    }

    /// As they are now.
    pub fn list(&self) -> Arc<[Namespace]> {
        self.lock().clone()
    }

    /// How often they have changed: for those who keep what they made of the list.
    pub fn generation(&self) -> u64 {
        // Acquire pairs with the Release in `read_again`: the list that is taken after this is at least that new.
        self.generation.load(Ordering::Acquire)
    }

    /// Reads them again, as far as they changed.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn read_again(
        &self,
        hw: &Hardware,
        admin: &mut AdminQueue,
        controller: &Controller,
        changed: &Changed,
    ) -> Result<()> {
        let known = self.list();
        let now = read(hw, admin, controller, &known, changed)?;
        if now[..] != known[..] {
            tracing::info!(device = hw.name(), before = known.len(), now = now.len(), "namespaces changed");
            let mut lost = self.lost.lock().unwrap_or_else(|e| e.into_inner());
            for gone in known.iter().filter(|n| now.iter().all(|other| other.nsid != n.nsid)) {
                lost.retain(|n| n.nsid != gone.nsid);
                lost.push(gone.clone());
            }
            let mut list = self.lock();
            *list = now.into();
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[Namespace]>> {
        self.list.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Changed {
    /// The Changed Namespace List (NVM Express Base 2.0, 5.16.1.5): identifiers, then zeros; ffffffffh alone where there are too many.
    pub fn parse(log: &[u8]) -> Self {
        let ids: Vec<_> = (0..log.len() / 4).map(|i| u32_at(log, 4 * i)).take_while(|id| *id != 0).collect();
        if ids.first() == Some(&u32::MAX) { Self::All } else { Self::These(ids) }
    }

    fn has(&self, nsid: u32) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => ids.contains(&nsid),
        }
    }
}

/// Reads the active namespaces, in the order of their identifiers; those that are `known` only where they `changed`.
///
/// # Errors
/// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
/// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
pub(crate) fn read(
    hw: &Hardware,
    admin: &mut AdminQueue,
    controller: &Controller,
    known: &[Namespace],
    changed: &Changed,
) -> Result<Vec<Namespace>> {
    let listed = active(hw, admin)?;
    // Without a list: all identifiers there can be, of which those that aren't active say nothing of themselves.
    let every = || (1..=controller.namespaces.min(MAX_NAMESPACES as u32)).collect();
    let (ids, sure) = listed.map_or_else(|| (every(), false), |ids| (ids, true));
    let mut namespaces = Vec::new();
    for nsid in ids {
        let same = known.iter().find(|n| n.nsid == nsid).filter(|_| !changed.has(nsid));
        match same {
            Some(same) => namespaces.push(same.clone()),
            None => namespaces.extend(read_one(hw, admin, controller, nsid, sure)?),
        }
    }
    Ok(namespaces)
}

/// The identifiers of the active namespaces, where the controller has such a list: from version 1.1 on (CNS 02h), but not all of those do.
fn active(hw: &Hardware, admin: &mut AdminQueue) -> Result<Option<Vec<u32>>> {
    if hw.version < (1, 1, 0) || hw.has(Quirk::IdentifyOldOnly) {
        return Ok(None);
    }
    let mut ids: Vec<u32> = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let list = command::identify(cns::ACTIVE_NAMESPACES, after, 0, admin.data_iova());
        let more = match admin.fetch(hw, list, identify::LEN) {
            Ok(bytes) => identify::namespace_list(&bytes, after),
            Err(Error::Refused { status, .. }) if ids.is_empty() => {
                tracing::info!(device = hw.name(), %status, "no list of active namespaces: all there can be are asked for");
                return Ok(None);
            }
            Err(Error::Refused { status, .. }) => {
                tracing::warn!(device = hw.name(), %status, after, "the list of active namespaces goes no further");
                return Ok(Some(ids));
            }
            Err(error) => return Err(error),
        };
        let full = more.len() == identify::LEN / 4;
        ids.extend(more);
        if !full {
            return Ok(Some(ids));
        }
        if ids.len() >= MAX_NAMESPACES {
            tracing::warn!(device = hw.name(), MAX_NAMESPACES, "it has more namespaces than are looked at");
            return Ok(Some(ids));
        }
    }
}

/// One namespace. `active` says that it certainly is: one that isn't reads as zeros (5.17.2.1), or is refused.
fn read_one(
    hw: &Hardware,
    admin: &mut AdminQueue,
    controller: &Controller,
    nsid: u32,
    active: bool,
) -> Result<Option<Namespace>> {
    let to = admin.data_iova();
    let bytes = match admin.fetch(hw, command::identify(cns::NAMESPACE, nsid, 0, to), identify::LEN) {
        Ok(bytes) => bytes,
        // A namespace of another command set may not have this structure.
        Err(Error::Refused { status, .. }) => {
            tracing::info!(device = hw.name(), nsid, %status, "a namespace cannot be identified");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !active && bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let old = hw.has(Quirk::IdentifyOldOnly);
    let descriptors = match hw.version >= (1, 3, 0) && !old && !hw.has(Quirk::NoDescriptors) {
        true => match admin.fetch(hw, command::identify(cns::DESCRIPTORS, nsid, 0, to), identify::LEN) {
            Err(Error::Refused { .. }) => Vec::new(),
            other => other?,
        },
        false => Vec::new(),
    };
    let mut namespace = Namespace::parse(nsid, &bytes, &descriptors);
    let guarded = namespace.protection.is_some() && controller.has_extended_formats();
    if !old && (namespace.command_set == csi::ZONED || guarded) {
        match admin.fetch(
            hw,
            command::identify(cns::COMMAND_SET_NAMESPACE, nsid, namespace.command_set, to),
            identify::LEN,
        ) {
            Ok(bytes) => namespace.parse_more(&bytes),
            Err(Error::Refused { status, .. }) => {
                tracing::info!(device = hw.name(), nsid, %status, "a namespace says no more of itself");
            }
            Err(error) => return Err(error),
        }
    }
    if hw.has(Quirk::SameIdentifiers) {
        (namespace.eui64, namespace.nguid, namespace.uuid) = (None, None, None);
    }
    if let (Some(stripe), 0) = (controller.stripe, namespace.io_boundary) {
        let blocks = stripe.checked_div(namespace.block_size.into()).unwrap_or(0);
        namespace.io_boundary = u16::try_from(blocks).unwrap_or(0);
    }
    Ok(Some(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_changes_ends_at_a_zero_or_says_all() {
        let list = |ids: &[u32]| Changed::parse(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(list(&[3, 7, 0, 9]), Changed::These(vec![3, 7]));
        assert_eq!(list(&[u32::MAX, 0]), Changed::All);
        assert_eq!(list(&[]), Changed::These(vec![]));
        assert!(list(&[3]).has(3) && !list(&[3]).has(4) && Changed::All.has(4));
    }
}
