//! A region as a server describes it: the capability chain, the file that came with it, and mapping that.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::peer::{Expect, Failed, Peer};
use super::wire::{self, Command};
use crate::files::can_shrink;
use crate::mem::Mapping;
use crate::pci::{PciDevice, Prot, RegionCap, RegionInfo, RegionMapping};
use crate::{Error, PageSize, Result};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

/// A region of a served device.
#[derive(Default)]
pub struct Region {
    pub info: RegionInfo,
    file: Option<File>,
}

/// What a region is mapped from.
struct File {
    fd: OwnedFd,
    /// Where in it the region begins, in bytes.
    offset: u64,
}

/// A reply's size that is enough for a few capabilities at once; a longer one is asked for again.
const USUAL_ARGSZ: u32 = 512;
/// How many areas of a region can be mapped, at most.
const MOST_AREAS: u32 = 256;
/// The longest description that is believed.
const LONGEST_ARGSZ: u32 = 64 << 10;

/// Asks for region `index`. A server may refuse an index that it doesn't implement; then it is an empty region.
pub fn read_region(peer: &Peer, index: u32) -> Result<Region> {
    const FIXED: usize = size_of::<wire::RegionInfo>();
    let command = Command::GET_REGION_INFO;
    let mut argsz = USUAL_ARGSZ;
    let mut asked_again = false;
    loop {
        let ask = wire::RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        let expect = Expect { payload: argsz as usize, fds: 1 };
        let reply = match peer.call(command, &[ask.as_bytes()], Vec::new(), expect) {
            Ok(reply) => reply,
            Err(Failed::Refused(_)) => return Ok(Region::default()),
            Err(Failed::Lost(error)) => return Err(error),
        };
        let (info, _) = wire::split::<wire::RegionInfo>(&reply.payload).ok_or_else(|| peer.short(command))?;
        if info.index != index {
            return Err(peer.broke(command, "the reply is about another region"));
        }
        if !(FIXED as u32..=LONGEST_ARGSZ).contains(&info.argsz) {
            let what = format!("region {index} is said to take {} bytes to describe", info.argsz);
            return Err(peer.broke(command, &what));
        }
        if info.argsz > argsz {
            // Once: it could ask for a byte more each time.
            if std::mem::replace(&mut asked_again, true) {
                let what = format!("region {index} takes {} bytes to describe, and took {argsz} before", info.argsz);
                return Err(peer.broke(command, &what));
            }
            argsz = info.argsz;
            continue;
        }
        let broke = |what: String| peer.broke(command, &format!("region {index}: {what}"));
        let caps = match info.flags & VFIO_REGION_INFO_FLAG_CAPS {
            0 => Vec::new(),
            _ => read_caps(&reply.payload, &info).map_err(broke)?,
        };
        let broke = |what: String| peer.broke(command, &format!("region {index}: {what}"));
        let flag = |bit| info.flags & bit != 0;
        let mappable = flag(VFIO_REGION_INFO_FLAG_MMAP) && info.size > 0;
        let file = reply.fds.into_iter().next().map(|fd| File { fd, offset: info.offset });
        if mappable && file.is_none() {
            return Err(broke("it can be mapped, they say, but no file came with it".to_owned()));
        }
        let info = RegionInfo {
            size: info.size,
            readable: flag(VFIO_REGION_INFO_FLAG_READ),
            writable: flag(VFIO_REGION_INFO_FLAG_WRITE),
            mappable,
            caps,
        };
        return Ok(Region { info, file: file.filter(|_| mappable) });
    }
}

/// Walks the capability chain. Each capability lies behind the one before, so it ends.
fn read_caps(payload: &[u8], info: &wire::RegionInfo) -> Result<Vec<RegionCap>, String> {
    let (mut caps, mut last, mut at) = (Vec::new(), 0, info.cap_offset as usize);
    while at != 0 {
        if at < size_of::<wire::RegionInfo>() || at <= last {
            return Err(format!("a capability at {at:#x} does not lie behind what comes before it"));
        }
        let rest = payload.get(at..).unwrap_or_default();
        let cut = || format!("the capability at {at:#x} is cut off");
        let (header, rest) = wire::split::<wire::CapHeader>(rest).ok_or_else(cut)?;
        match u32::from(header.id) {
            VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                let (sparse, mut rest) = wire::split::<wire::Sparse>(rest).ok_or_else(cut)?;
                if sparse.areas > MOST_AREAS || caps.iter().any(|c| matches!(c, RegionCap::SparseMmap(_))) {
                    return Err(format!("it lists its areas twice, or more than {MOST_AREAS} of them"));
                }
                let mut areas: Vec<Range<u64>> = Vec::new();
                for _ in 0..sparse.areas {
                    let (area, more) = wire::split::<wire::Area>(rest).ok_or_else(cut)?;
                    rest = more;
                    let end = area.offset.checked_add(area.size).filter(|end| *end <= info.size);
                    let end = end.ok_or_else(|| {
                        let (offset, len, size) = (area.offset, area.size, info.size);
                        format!("{len:#x} bytes at {offset:#x} can be mapped, they say, but it has {size:#x} bytes")
                    })?;
                    areas.extend((area.size > 0).then_some(area.offset..end));
                }
                // Each is mapped: what overlaps could add up to any size.
                let mut sorted: Vec<_> = areas.iter().collect();
                sorted.sort_by_key(|area| area.start);
                if let Some(two) = sorted.windows(2).find(|two| two[1].start < two[0].end) {
                    return Err(format!("the areas {:x?} and {:x?} overlap", two[0], two[1]));
                }
                // One area that is the region says no more than that it can be mapped.
                if areas.as_slice() != std::slice::from_ref(&(0..info.size)) {
                    caps.push(RegionCap::SparseMmap(areas));
                }
            }
            VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => caps.push(RegionCap::MsixMappable),
            _ => caps.push(RegionCap::Other(header.id)),
        }
        (last, at) = (at, header.next as usize);
    }
    Ok(caps)
}

impl Region {
    /// Maps a part of it that the server offers.
    pub fn map(
        &self,
        peer: &Peer,
        device: &dyn PciDevice,
        region: u32,
        range: Range<u64>,
        prot: Prot,
    ) -> Result<RegionMapping> {
        let (offset, len) = (range.start, range.end.saturating_sub(range.start));
        let refuse = |why| Error::NotMappable { device: peer.name.clone(), region, offset, len, why };
        let Some(file) = &self.file else {
            return Err(refuse("the server offers no part of it"));
        };
        let whole = 0..self.info.size;
        let areas = self.info.sparse().unwrap_or(std::slice::from_ref(&whole));
        if range.is_empty() || !areas.iter().any(|a| a.start <= range.start && range.end <= a.end) {
            return Err(refuse("the server does not offer that part of it"));
        }
        let page = PageSize::host();
        let at = file.offset.checked_add(range.start).filter(|at| page.floor(*at) == *at);
        let at = at.ok_or_else(|| refuse("it does not begin on a page of this host"))?;
        // What lies behind a file's end dies by SIGBUS when it is touched.
        let stat = rustix::fs::fstat(&file.fd).map_err(|_| refuse("the server's file cannot be looked at"))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(refuse("what the server sent is not a file"));
        }
        if at.checked_add(len).is_none_or(|end| end > stat.st_size as u64) {
            return Err(refuse("the server's file is shorter than what it offers of it"));
        }
        let len = usize::try_from(len).map_err(|_| refuse("it is larger than this process's addresses"))?;
        let memory = Mapping::of_fd(file.fd.as_fd(), at, len, prot)?;
        let mapping = RegionMapping::new(memory, device, region, offset)?;
        if can_shrink(&file.fd) { mapping.guarded(peer.shrunk.clone()) } else { Ok(mapping) }
    }
}
