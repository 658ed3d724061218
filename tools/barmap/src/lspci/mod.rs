//! The text of `lspci -vv`: of whole machines, of any architecture and any version of pciutils since 2.2, with `-n`, `-nn`, `-D`, `-P`, `-PP`, `-k`
//! and hex dumps (`-x` to `-xxxx`) or without; pasted into mails and bug trackers, indented, quoted, wrapped, coloured, cut off.
//!
//! Text is input: whatever it is, this ends, without panic. What isn't there isn't claimed: capabilities that were hidden, a size that isn't
//! written, a line that was cut off are [unknown](crate::MsixFact::Unknown), `None`, or a note; what is skipped is counted.
//! Where there is a hex dump, configuration space itself is believed rather than the text.
//!
//! It is read a line at a time: `paste` has the lines as `lspci` wrote them, `line` knows what a line is, `block` what the lines of a
//! function say, `listing` what the functions say of each other. What is kept is a record a function, some hundred bytes: neighbours, and
//! what is listed twice, can only be told at the end.

mod block;
mod line;
mod listing;
mod paste;

use crate::{Machine, MsixFact};
use block::{Block, Whose};
use listing::Listing;
use paste::{Line, Lines, ReadError};
use std::collections::HashMap;
use std::io::{self, Read};
use wholebar_core::pci::Address;

/// Why text is not of use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing.
    #[error("it is empty: write it with `lspci -vv`, as root")]
    Empty,
    /// It isn't text.
    #[error("it is not text (there is a zero byte at offset {at}): write it with `lspci -vv`, as root")]
    Binary {
        /// Where, in bytes.
        at: u64,
    },
    /// No PCI function is in it.
    #[error("no PCI function is in it: write it with `lspci -vv`, as root")]
    NoFunction,
    /// It is the output of `lspci -vmm` or `lspci -mm`.
    #[error("it is `lspci`'s output for programs (-m), which has no BARs: write it with `lspci -vv`, as root")]
    ForPrograms,
    /// It is the output of `lspci -t`.
    #[error("it is `lspci`'s tree (-t), which has no BARs: write it with `lspci -vv`, as root")]
    Tree,
    /// Plain `lspci`, or `lspci -v`.
    #[error(
        "it has {functions} PCI function(s), and nothing tells which BAR is which: it was written by `lspci` or `lspci -v`, or its lines \
         are not in their order. Write it with `lspci -vv` (better: `lspci -vvxxxx`), as root"
    )]
    NotVerbose {
        /// How many functions.
        functions: usize,
    },
    /// It can't be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

/// Reads text to its end.
///
/// # Errors
/// [`Error`]: what cannot be read, or cannot be of use.
pub fn read(bytes: impl Read) -> Result<Machine, Error> {
    let mut parser = Parser::default();
    parser.all(bytes)?;
    let functions = parser.listing.len();
    match () {
        () if functions > 0 && parser.useful => Ok(parser.finish()),
        () if functions > 0 => Err(Error::NotVerbose { functions }),
        () if parser.programs => Err(Error::ForPrograms),
        () if parser.tree => Err(Error::Tree),
        () if !parser.unnamed.is_empty() => Ok(parser.finish()),
        () if parser.lines == 0 => Err(Error::Empty),
        () => Err(Error::NoFunction),
    }
}

/// All that some text tells. Lines that aren't `lspci`'s are passed over.
pub fn parse(text: &str) -> Machine {
    let mut parser = Parser::default();
    // What stands before a zero byte is of use; nothing else goes wrong with bytes that are there.
    let _ = parser.all(text.as_bytes());
    parser.end(false);
    parser.finish()
}

/// More than `lspci` writes in a line, in bytes: no more is taken for the rest of a wrapped one.
const LONGEST_JOINED: usize = 1024;

/// The start of a line, to be told of.
fn shortened(line: &str) -> String {
    const MOST: usize = 48;
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[derive(Default)]
struct Parser {
    block: Option<Block>,
    listing: Listing,
    /// Functions whose first lines are missing: of use where all are so, as of `grep -A2 MSI-X`.
    unnamed: Vec<crate::Function>,
    /// Lines that belong to no function.
    before: Skipped,
    between: Skipped,
    /// Lines that aren't empty.
    lines: u64,
    /// Something is told that can be mapped, or a capability.
    useful: bool,
    /// It looks like the output of `lspci -m`, or of `lspci -t`.
    programs: bool,
    tree: bool,
}

/// How many, and the first.
#[derive(Default)]
struct Skipped {
    lines: u64,
    first: Option<(u64, String)>,
}

impl Skipped {
    fn add(&mut self, number: u64, line: &str) {
        self.lines += 1;
        if self.first.is_none() {
            self.first = Some((number, shortened(line)));
        }
    }

    fn note(&self, which: &str) -> Option<String> {
        let (number, line) = self.first.as_ref()?;
        Some(match self.lines {
            1 => format!("line {number}, {which}, is no function's and is skipped: `{line}`"),
            n => format!("{n} lines {which} are no function's and are skipped, the first is line {number}: `{line}`"),
        })
    }
}

impl Parser {
    fn all(&mut self, bytes: impl Read) -> Result<(), Error> {
        let mut lines = Lines::of(bytes).map_err(Error::Read)?;
        // A line that was wrapped has its rest behind it.
        let (mut held, mut next) = (Line::default(), Line::default());
        let mut more = true;
        while more {
            more = lines.next(&mut next).map_err(|trouble| match trouble {
                ReadError::Io(e) => Error::Read(e),
                ReadError::Zero(at) => Error::Binary { at },
            })?;
            let short = held.text.len() < LONGEST_JOINED;
            if more && short && line::continues(&held.text, held.width, &next.text) {
                held.text.push(' ');
                held.text.push_str(&next.text);
                (held.width, held.cut) = (next.width, next.cut);
                continue;
            }
            if held.number > 0 {
                self.line(&held);
            }
            std::mem::swap(&mut held, &mut next);
        }
        self.end(false);
        Ok(())
    }

    fn line(&mut self, line: &Line) {
        let text = line.text.as_str();
        if text.is_empty() {
            // What was cut off may have begun with its indentation.
            match &mut self.block {
                Some(block) if !block.is_named() => self.end(true),
                Some(block) if !line.cut => block.blank(),
                _ => {}
            }
            return;
        }
        self.lines += 1;
        if self.listing.len() == 0 {
            let of_programs = |key| text.strip_prefix(key).is_some_and(line::is_like_slot);
            let quoted =
                || line::is_like_slot(text) && text.split_once(' ').is_some_and(|(_, rest)| rest.starts_with('"'));
            self.programs |= of_programs("Slot: ") || of_programs("Device: ") || quoted();
            self.tree |= text.contains("-[0000:");
        }
        if let Some(slot) = line::slot(text).filter(|_| !line.cut) {
            self.end(true);
            self.unnamed.clear();
            self.block = Some(Block::new(&slot));
            return;
        }
        let mut before = None;
        match self.block.as_mut().map(|block| block.whose(text)) {
            Some(Whose::Own) => {}
            Some(Whose::Others(held)) => {
                before = held;
                self.end(false);
            }
            None => {}
        }
        let named = self.block.as_ref().is_some_and(Block::is_named);
        for text in before.iter().map(String::as_str).chain([text]) {
            if !named {
                let skipped = if self.listing.len() == 0 { &mut self.before } else { &mut self.between };
                skipped.add(line.number, text);
            }
            self.block.get_or_insert_with(Block::unnamed).line(text, line.cut);
        }
    }

    /// The function ends whose lines came; `whole`: all of them.
    fn end(&mut self, whole: bool) {
        let Some(block) = self.block.take() else { return };
        let named = block.is_named();
        let (mut function, useful) = block.finish(whole);
        if named {
            self.useful |= useful || !function.bars.is_empty();
            self.listing.add(function);
        } else if self.listing.len() == 0 && matches!(function.msix, MsixFact::Present(_)) {
            function.name = format!("function {}", self.unnamed.len() + 1);
            function.notes.push(
                "which function it is isn't known: its first line isn't in the text, or can't be read".to_owned(),
            );
            self.unnamed.push(function);
        }
    }

    fn finish(self) -> Machine {
        let mut machine = Machine { partial: true, ..Machine::default() };
        let told = self.listing.finish(&mut machine);
        let unnamed = told == 0 && !self.unnamed.is_empty();
        if unnamed {
            machine.functions = self.unnamed;
            let note = "no function's first line is in it, or can be read: what follows are the MSI-X capabilities, in their order";
            machine.notes.push(note.to_owned());
        } else {
            machine.notes.extend(self.before.note("before the first function"));
            machine.notes.extend(self.between.note("between functions"));
        }
        machine.auto = listing::auto(&machine);
        machine.complete();
        machine
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
