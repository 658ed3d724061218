//! The front end's memory: regions that the model reaches by guest addresses, and in which rings are named by the front end's own addresses.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Function;
use crate::files::Files;
use crate::mem::{Iova, Mapping};
use crate::vhost_user::wire::Region;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How many regions there may be at once: as many as QEMU has slots for memory.
pub const SLOTS: usize = 509;

/// The regions, as they were told of, and their files.
#[derive(Default)]
pub struct Memory {
    regions: Vec<Region>,
    files: Files,
}

impl Memory {
    /// Whether the front end took memory away that it had shared, and that was touched.
    #[inline]
    pub fn has_shrunk(&self) -> bool {
        self.files.have_shrunk()
    }

    /// Replaces all regions by those of a table, with a file each.
    ///
    /// # Errors
    /// What is wrong with one of them; then all is as it was.
    pub fn set(&mut self, function: &mut Function, regions: Vec<Region>, fds: &[OwnedFd]) -> Result<(), String> {
        if fds.len() != regions.len() {
            return Err(format!("{} regions of memory came with {} file descriptors", regions.len(), fds.len()));
        }
        // What stays from before is found mapped, since the old maps go last.
        let mapped = regions.iter().zip(fds).map(|(region, fd)| self.map(region, fd)).collect::<Result<Vec<_>, _>>()?;
        function.dma_clear();
        self.regions.clear();
        for (region, (memory, at)) in regions.iter().zip(mapped) {
            reach(function, region, memory, at)?;
        }
        self.regions = regions;
        Ok(())
    }

    /// Adds a region.
    ///
    /// # Errors
    /// What is wrong with it; then it is not there.
    pub fn add(&mut self, function: &mut Function, region: Region, fd: &OwnedFd) -> Result<(), String> {
        let over = |a: (u64, u64), b: (u64, u64)| a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1);
        let clash = |other: &&Region| {
            over((region.guest_address, region.size), (other.guest_address, other.size))
                || over((region.user_address, region.size), (other.user_address, other.size))
        };
        if !region.is_sound() {
            return Err(format!("no region has {:#x} bytes at {:#x}", region.size, region.guest_address));
        }
        if let Some(other) = self.regions.iter().find(clash) {
            return Err(format!(
                "the region at {:#x} overlaps that at {:#x}",
                region.guest_address, other.guest_address
            ));
        }
        if self.regions.len() >= SLOTS {
            return Err(format!("there are {SLOTS} regions of memory already"));
        }
        let (memory, at) = self.map(&region, fd)?;
        reach(function, &region, memory, at)?;
        self.regions.push(region);
        Ok(())
    }

    /// Removes a region. Where it was in its file plays no part.
    ///
    /// # Errors
    /// That there is none like it.
    pub fn remove(&mut self, function: &mut Function, region: Region) -> Result<(), String> {
        let key = |r: &Region| (r.guest_address, r.user_address, r.size);
        let there = self.regions.iter().position(|r| key(r) == key(&region));
        let there = there
            .ok_or_else(|| format!("there is no region of {:#x} bytes at {:#x}", region.size, region.guest_address))?;
        self.regions.swap_remove(there);
        function
            .dma_unmap(Iova(region.guest_address), region.size)
            .map_err(|_| format!("the region at {:#x} is not mapped", region.guest_address))
    }

    /// The guest address of `len` bytes at an address of the front end's; `None` where they are not in one region.
    pub fn guest(&self, user: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user_address)?;
            let inside = offset.checked_add(len).is_some_and(|end| end <= region.size);
            if inside { region.guest_address.checked_add(offset) } else { None }
        })
    }

    fn map(&mut self, region: &Region, fd: &OwnedFd) -> Result<(Arc<Mapping>, u64), String> {
        self.file(fd, region.mmap_offset, region.size)
    }

    /// `size` bytes of a memory file, which need not be a region's: a mapping, and where in it they begin.
    ///
    /// # Errors
    /// That they can't be mapped.
    pub fn file(&mut self, fd: &OwnedFd, offset: u64, size: u64) -> Result<(Arc<Mapping>, u64), String> {
        self.files.memory(fd, offset, size, true).map_err(|errno| {
            let why = std::io::Error::from_raw_os_error(errno);
            format!("{size:#x} bytes at {offset:#x} of a memory file can't be mapped: {why}")
        })
    }
}

fn reach(function: &mut Function, region: &Region, memory: Arc<Mapping>, at: u64) -> Result<(), String> {
    let done = function.dma_map(Iova(region.guest_address), memory, at, region.size, true);
    done.map_err(|_| format!("the region at {:#x} overlaps another", region.guest_address))
}
