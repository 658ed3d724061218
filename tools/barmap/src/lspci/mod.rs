//! The text of `lspci -vv`: of whole machines, of any architecture and any version of pciutils since 2.2, with `-n`, `-nn`, `-D`, `-k` and hex
//! dumps (`-x` to `-xxxx`) or without; pasted into mails and bug trackers, indented, quoted, cut off.
//!
//! Text is input: whatever it is, this ends, without panic. What isn't there isn't claimed: capabilities that were hidden, a size that isn't
//! written, a line that was cut off are [unknown](crate::MsixFact::Unknown), `None`, or a note.
//! Where there is a hex dump, configuration space itself is believed rather than the text.

mod block;
mod line;

use crate::Machine;
use block::Block;
use std::collections::HashMap;
use wholebar::pci::Address;

/// Why text is not of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing.
    #[error("it is empty: write it with `lspci -vv`, as root")]
    Empty,
    /// It isn't text.
    #[error("it is not text (there is a zero byte at offset {at}): write it with `lspci -vv`, as root")]
    Binary {
        /// Where, in bytes.
        at: usize,
    },
    /// No PCI function is in it.
    #[error("no PCI function is in it: write it with `lspci -vv`, as root")]
    NoFunction,
    /// It is the output of `lspci -vmm` or `lspci -mm`.
    #[error("it is `lspci`'s output for programs (-m), which has no BARs: write it with `lspci -vv`, as root")]
    ForPrograms,
    /// Plain `lspci`, or `lspci -v`.
    #[error(
        "it has {functions} PCI function(s), and nothing tells which BAR is which: it was written by `lspci` or `lspci -v`. \
         Write it with `lspci -vv` (better: `lspci -vvxxxx`), as root"
    )]
    NotVerbose {
        /// How many functions.
        functions: usize,
    },
}

/// Reads a file's bytes: as [`parse`], but what cannot be of use is an error.
///
/// # Errors
/// [`Error`].
pub fn read(bytes: &[u8]) -> Result<Machine, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::Empty);
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(Error::Binary { at });
    }
    let text = String::from_utf8_lossy(bytes);
    let machine = parse(&text);
    let useful =
        |line: &str| ["Region ", "Control:", "Status:"].iter().any(|start| line.trim_start().starts_with(start));
    if machine.functions.is_empty() {
        let programs = text.lines().any(|line| line.starts_with("Slot:\t") || line.contains(" \"Host bridge\" \""));
        return Err(if programs { Error::ForPrograms } else { Error::NoFunction });
    }
    if !text.lines().any(|line| useful(line::clean(line))) && machine.functions.iter().all(|f| f.bars.is_empty()) {
        return Err(Error::NotVerbose { functions: machine.functions.len() });
    }
    Ok(machine)
}

/// All that some text tells. Lines that aren't `lspci`'s are passed over.
pub fn parse(text: &str) -> Machine {
    // Of a mail as it was sent. `lspci` itself writes its hex digits small.
    let decoded = text.contains("BAR=3D").then(|| text.replace("=3D", "=").replace("=\n", ""));
    let text = decoded.as_deref().unwrap_or(text);
    let mut machine = Machine::default();
    let mut block: Option<Block> = None;
    // A last line without its end may have lost more than that.
    let ended = text.ends_with('\n');
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let cut = !ended && lines.peek().is_none();
        let line = line::decoded(line::clean(line));
        if let Some((address, rest)) = line::slot(&line).filter(|_| !cut) {
            machine.functions.extend(block.replace(Block::new(address, rest)).map(|block| block.finish(true)));
        } else if let Some(block) = &mut block {
            block.line(&line, cut);
        }
    }
    machine.functions.extend(block.map(|block| block.finish(false)));
    tell_doubles(&mut machine);
    machine.complete();
    machine
}

fn tell_doubles(machine: &mut Machine) {
    let mut seen: HashMap<Address, usize> = HashMap::new();
    for function in &machine.functions {
        if let Some(address) = function.address {
            *seen.entry(address).or_default() += 1;
        }
    }
    if let Some((address, count)) = seen.into_iter().filter(|(_, count)| *count > 1).min() {
        let note = format!("{address} is there {count} times: if this is of several machines, read them one by one");
        machine.notes.push(note);
    }
}

impl Machine {
    /// What one function tells of another: the sizes of virtual functions' BARs.
    pub(crate) fn complete(&mut self) {
        let places: HashMap<Address, usize> =
            self.functions.iter().enumerate().filter_map(|(i, f)| Some((f.address?, i))).collect();
        for i in 0..self.functions.len() {
            let function = &self.functions[i];
            let (Some(sriov), Some(address)) = (&function.sriov, function.address) else { continue };
            let first =
                address.routing_id().checked_add(sriov.offset).filter(|_| sriov.enabled > 0 && sriov.offset > 0);
            let first = first.map(|id| address.with_routing_id(id));
            let Some(first) = first.and_then(|at| self.functions.get(*places.get(&at)?)) else { continue };
            let sizes: Vec<(u8, Option<u64>)> = first.bars.iter().map(|bar| (bar.index, bar.place.size)).collect();
            let Some(sriov) = &mut self.functions[i].sriov else { continue };
            for bar in sriov.bars.iter_mut().filter(|bar| bar.place.size.is_none()) {
                bar.place.size = sizes.iter().find(|(index, _)| *index == bar.index).and_then(|(_, size)| *size);
            }
        }
    }
}

#[cfg(test)]
mod tests;
