//! The memory that a back end is let into: arenas, sent as their memory files.
//!
//! A back end that configures slots gets a region at a time; others get the whole table anew at each change. An arena's address in the back end's eyes
//! (`user_address`) is its device address: rings are named by it, as descriptors are.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::peer::{Failed, Peer};
use crate::mem::{Arena, Iova};
use crate::vhost_user::wire::{self, MAX_REGIONS, MemRegion, Region, Request, protocol};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// The maps of a device.
#[derive(Default)]
pub struct Memory {
    maps: BTreeMap<u64, Map>,
}

struct Map {
    arena: Arc<Arena>,
    /// The back end has it.
    sent: bool,
}

/// Why an arena could not be sent.
#[derive(Debug)]
pub enum Unsent {
    /// This side has no descriptor to send.
    Local(io::Error),
    Peer(Failed),
}

impl From<Failed> for Unsent {
    fn from(failed: Failed) -> Self {
        Self::Peer(failed)
    }
}

/// How many slots are used of a back end that has more: libvhost-user has 509.
const MOST_SLOTS: u64 = 509;

/// How many maps a back end can have.
pub fn max_maps(slots: Option<u64>) -> usize {
    slots.map_or(MAX_REGIONS, |slots| slots.min(MOST_SLOTS) as usize)
}

impl Memory {
    /// Enters a map. It is sent by [`sync`](Self::sync).
    ///
    /// # Errors
    /// Where the arena has no file.
    pub fn insert(&mut self, iova: Iova, arena: Arc<Arena>) -> Result<(), Unsent> {
        file(&arena)?;
        self.maps.insert(iova.0, Map { arena, sent: false });
        Ok(())
    }

    /// Another back end, which has nothing yet.
    pub fn forget_sent(&mut self) {
        self.maps.values_mut().for_each(|map| map.sent = false);
    }

    /// The map that `iova` is in, and how far from its start.
    fn find(&self, iova: u64) -> Option<(&Arc<Arena>, u64)> {
        let (start, map) = self.maps.range(..=iova).next_back()?;
        let at = iova.checked_sub(*start).filter(|at| *at < map.arena.len())?;
        Some((&map.arena, at))
    }

    /// Copies from the driver's memory; false where that is not in one map.
    pub fn read(&self, iova: u64, out: &mut [u8]) -> bool {
        self.find(iova).is_some_and(|(arena, at)| arena.mapping().read(at, out))
    }

    /// Copies to the driver's memory; false where that is not in one map.
    pub fn write(&self, iova: u64, bytes: &[u8]) -> bool {
        self.find(iova).is_some_and(|(arena, at)| arena.mapping().write(at, bytes))
    }

    /// Sends what the back end does not have yet.
    pub fn sync(&mut self, peer: &mut Peer) -> Result<(), Unsent> {
        if self.maps.values().all(|map| map.sent) {
            return Ok(());
        }
        if !peer.has(protocol::CONFIGURE_MEM_SLOTS) {
            self.send_table(peer)?;
            self.maps.values_mut().for_each(|map| map.sent = true);
            return Ok(());
        }
        for (iova, map) in self.maps.iter_mut().filter(|(_, map)| !map.sent) {
            let region = MemRegion { padding: 0, region: region(*iova, &map.arena) };
            peer.set_now(Request::ADD_MEM_REG, region.as_bytes(), vec![file(&map.arena)?])?;
            map.sent = true;
        }
        Ok(())
    }

    /// Takes a map away. With a back end that has it, that back end has let go of it when this returns.
    pub fn remove(&mut self, iova: Iova, peer: Option<&mut Peer>) -> Result<(), Unsent> {
        let Some(map) = self.maps.get(&iova.0) else { return Ok(()) };
        let (sent, region) = (map.sent, MemRegion { padding: 0, region: region(iova.0, &map.arena) });
        let Some(peer) = peer.filter(|_| sent) else {
            self.maps.remove(&iova.0);
            return Ok(());
        };
        if peer.has(protocol::CONFIGURE_MEM_SLOTS) {
            peer.set_now(Request::REM_MEM_REG, region.as_bytes(), Vec::new())?;
            self.maps.remove(&iova.0);
            return Ok(());
        }
        let removed = self.maps.remove(&iova.0);
        let sent = self.send_table(peer);
        if let (Err(_), Some(map)) = (&sent, removed) {
            self.maps.insert(iova.0, map);
        }
        sent
    }

    fn send_table(&self, peer: &mut Peer) -> Result<(), Unsent> {
        let regions: Vec<_> = self.maps.iter().map(|(iova, map)| region(*iova, &map.arena)).collect();
        let files = self.maps.values().map(|map| file(&map.arena)).collect::<Result<_, _>>()?;
        Ok(peer.set_now(Request::SET_MEM_TABLE, &wire::mem_table(&regions), files)?)
    }
}

fn region(iova: u64, arena: &Arena) -> Region {
    Region { guest_address: iova, size: arena.len(), user_address: iova, mmap_offset: 0 }
}

fn file(arena: &Arena) -> Result<OwnedFd, Unsent> {
    // SAFETY: it goes to the device that is let into the arena, which is the back end; see the boundary in `mem`.
    let fd = unsafe { arena.fd() };
    let none = "this memory has no file, so no other process can map it: use hugepage or plain memory files";
    let fd = fd.ok_or_else(|| Unsent::Local(io::Error::new(io::ErrorKind::Unsupported, none)))?;
    fd.try_clone_to_owned().map_err(Unsent::Local)
}
