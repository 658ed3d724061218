//! Memory of the driver's for the data of commands that say themselves, in dwords which the driver does not understand, how much there is.
//!
//! Whatever length the controller makes of those dwords, all that it reads and writes lies in here: behind the PRP entries of the data come entries of a
//! page that nobody looks at, to the end of a list that continues in itself. Programs copy to and from it.

use crate::command::DataPointer;
use crate::control::memory;
use crate::error::Result;
use crate::hardware::Hardware;
use crate::raw::Transfer;
use std::sync::Arc;
use wholebar_core::mem::{Chunk, DmaMapping};

/// Pages before the data's: a list, the list that it continues in, and the page that nobody looks at.
const BEFORE: u64 = 3;

pub(crate) struct Bounce {
    /// Keeps it mapped.
    _mapping: Arc<DmaMapping>,
    chunk: Chunk,
    iova: u64,
    page: u64,
    /// Pages of data that there is room for.
    pages: u64,
}

impl Bounce {
    /// What `place` holds, with room for `len` bytes of data; it may be made anew, so no command that uses it is in flight.
    pub fn of<'a>(place: &'a mut Option<Self>, hw: &Hardware, len: usize) -> Result<&'a mut Self> {
        let pages = (len as u64).div_ceil(hw.page).max(1);
        if let Some(small) = place.take_if(|bounce| bounce.pages < pages) {
            small.set_quarantine(false);
        }
        match place {
            Some(bounce) => Ok(bounce),
            None => Ok(place.insert(Self::new(hw, pages)?)),
        }
    }

    fn new(hw: &Hardware, pages: u64) -> Result<Self> {
        let bytes = (BEFORE + pages) * hw.page;
        let mapping = memory(hw, bytes)?;
        let chunk = mapping.arena().alloc(bytes, hw.page)?;
        let iova = hw.aligned(mapping.iova().offset(chunk.offset()).0)?;
        chunk.set_quarantine(true);
        Ok(Self { _mapping: mapping, chunk, iova, page: hw.page, pages })
    }

    /// Whether the memory is leaked when this is dropped: on while the controller may use it.
    pub fn set_quarantine(&self, on: bool) {
        self.chunk.set_quarantine(on);
    }

    /// Page `index` of the data, as the controller sees it.
    fn data(&self, index: u64) -> u64 {
        self.iova + (BEFORE + index) * self.page
    }

    fn list(&self) -> u64 {
        self.iova
    }

    /// The list that continues in itself.
    fn endless(&self) -> u64 {
        self.iova + self.page
    }

    /// The page that nobody looks at.
    fn sink(&self) -> u64 {
        self.iova + 2 * self.page
    }

    /// Entry `i` of a list for `count` pages of data, of which the first is in the command. An entry that is the last of its page points to the next list
    /// where the controller needs more of them, and to data where it does not (NVM Express Base 2.0, 4.1.1): what stands there is good for both.
    fn entry(&self, i: u64, count: u64) -> u64 {
        match i {
            i if i + 1 < count => self.data(i + 1),
            i if i == self.page / 8 - 1 => self.endless(),
            _ => self.sink(),
        }
    }

    /// A page of entries.
    fn entries(&self, count: u64) -> Vec<u8> {
        (0..self.page / 8).flat_map(|i| self.entry(i, count).to_le_bytes()).collect()
    }

    /// Puts the data in that goes to the controller, and zeros where it comes from there; returns what the command has to say of it.
    ///
    /// PRP entry 2 is a page of data or a list, by how long the controller finds the transfer. Where the data has two pages, the second of them is also
    /// a list if the controller writes, so that a transfer longer than that ends up nowhere, too. If the controller reads, no such list can be there: it reads
    /// what it may at most, and never writes.
    pub fn fill(&mut self, data: &Transfer<'_>) -> Result<DataPointer> {
        let count = (data.len() as u64).div_ceil(self.page);
        // Entries 0 to page / 8 - 2 may be data's; the last one leads on.
        debug_assert!(count <= self.pages && count <= self.page / 8);
        self.chunk.zero();
        self.chunk.write(0, &self.entries(count))?;
        self.chunk.write(self.page, &self.entries(0))?;
        if let Transfer::Write(bytes) = data {
            self.chunk.write(BEFORE * self.page, bytes)?;
        } else if count == 2 {
            self.chunk.write((BEFORE + 1) * self.page, &self.entries(0))?;
        }
        Ok(match count {
            0 => DataPointer::prp(self.sink(), self.list()),
            2 => DataPointer::prp(self.data(0), self.data(1)),
            _ => DataPointer::prp(self.data(0), self.list()),
        })
    }

    /// Copies out what the controller wrote, if it was to write.
    ///
    /// A transfer of two pages has its second one where PRP entry 2 points: to the list, if there is data for more. What still is the list was not
    /// written there.
    pub fn take(&self, data: &mut Transfer<'_>) -> Result<()> {
        let Transfer::Read(bytes) = data else { return Ok(()) };
        self.chunk.read(BEFORE * self.page, bytes)?;
        let page = self.page as usize;
        let count = (bytes.len() as u64).div_ceil(self.page);
        if count < 2 {
            return Ok(());
        }
        let (at, before) =
            if count == 2 { ((BEFORE + 1) * self.page, self.entries(0)) } else { (0, self.entries(count)) };
        let mut second = vec![0; page];
        self.chunk.read(at, &mut second)?;
        if count > 2 && second == before {
            return Ok(());
        }
        for (now, before) in second.chunks_mut(8).zip(before.chunks(8)) {
            if now == before {
                now.fill(0);
            }
        }
        let to = &mut bytes[page..];
        let len = to.len().min(page);
        to[..len].copy_from_slice(&second[..len]);
        Ok(())
    }
}
