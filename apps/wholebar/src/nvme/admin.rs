//! What the commands that ask a controller something share: numbers as people write them, data as they want it, the question before what destroys.

use super::Controller;
use crate::args::Usage;
use crate::in_use::{self, Network};
use crate::{output, target};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fs, io};
use wholebar::nvme::Options;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::Sysfs;

/// A number: `18`, `0x12`.
pub fn number(text: &str) -> Result<u64, String> {
    let hex = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    let parsed = hex.map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    parsed.map_err(|_| format!("{text:?} is not a number: write it like 18 or 0x12"))
}

fn narrow<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    T::try_from(number(text)?).map_err(|_| format!("{text} is more than {} bits hold", 8 * size_of::<T>()))
}

/// One of 32 bits.
pub fn dword(text: &str) -> Result<u32, String> {
    narrow(text)
}

/// One of 16 bits.
pub fn word(text: &str) -> Result<u16, String> {
    narrow(text)
}

/// One of 8 bits.
pub fn byte(text: &str) -> Result<u8, String> {
    narrow(text)
}

/// How data that came from the controller is shown.
#[derive(clap::Args)]
pub struct Show {
    /// Write JSON
    #[arg(long, conflicts_with = "hex")]
    pub json: bool,
    /// Show the bytes, as hexadecimal numbers and text
    #[arg(long)]
    pub hex: bool,
    /// Write the bytes to a file; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hex", "json"])]
    pub out: Option<String>,
}

impl Show {
    /// Shows `bytes`: as they are where that is asked for, else `text`, or `json`.
    pub fn put<T: Serialize>(
        &self,
        bytes: &[u8],
        json: impl FnOnce() -> T,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        match &self.out {
            Some(path) if path == "-" => {
                let mut stdout = io::stdout().lock();
                match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
                    done => done.context("cannot write to standard output"),
                }
            }
            Some(path) => fs::write(path, bytes).with_context(|| format!("cannot write {path}")),
            None if self.hex => output::print(dump(bytes)),
            None if self.json => output::print_json(&json()),
            None => output::print(text()),
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Sixteen bytes a line: where, what, and as text.
pub fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, line) in bytes.chunks(16).enumerate() {
        let digits: Vec<_> = line.iter().map(|b| format!("{b:02x}")).collect();
        let shown: String = line.iter().map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '.' }).collect();
        text += &format!("{:06x}  {:<47}  {shown}\n", 16 * i, digits.join(" "));
    }
    text
}

/// What is in a file, of `most` bytes at most; - is standard input.
pub fn read_file(path: &str, most: u64) -> Result<Vec<u8>> {
    let name = if path == "-" { "standard input" } else { path };
    let mut bytes = Vec::new();
    let done = match path {
        "-" => io::stdin().lock().take(most + 1).read_to_end(&mut bytes),
        _ => fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)),
    };
    done.with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > most {
        bail!("{name} has more than {most} bytes, which is too much");
    }
    Ok(bytes)
}

/// Opens a controller to ask it something.
pub fn open(name: &str) -> Result<Controller> {
    open_for(name, None)
}

/// Opens a controller for commands that may take so long, where that is said.
pub fn open_for(name: &str, timeout: Option<Duration>) -> Result<Controller> {
    let usual = Options::default();
    let timeout = timeout.unwrap_or(usual.timeout).max(usual.timeout);
    open_with(name, Options { timeout, ..usual })
}

/// Opens a controller with these options, and one queue.
pub fn open_with(name: &str, options: Options) -> Result<Controller> {
    Controller::open(&target::open(name, &[], None)?, Options { io_queues: 1, ..options })
}

/// For commands that destroy something.
#[derive(clap::Args)]
pub struct Danger {
    /// Do it without a question; needed where no terminal can be asked
    #[arg(long)]
    force: bool,
}

/// What commands have in common that destroy something and take their time over it.
#[derive(clap::Args)]
pub struct Destroys {
    /// The NVMe controller
    pub target: String,
    /// How long the controller may take over it, in milliseconds
    #[arg(short, long, value_name = "MS", default_value = "600000")]
    pub timeout: u64,
    #[command(flatten)]
    pub danger: Danger,
    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

impl Destroys {
    /// The time, and a controller that may be asked for it: see [`Danger::check`].
    pub fn open(&self) -> Result<(Controller, Duration)> {
        self.danger.check(&self.target)?;
        Ok((open(&self.target)?, Duration::from_millis(self.timeout)))
    }
}

impl Danger {
    /// Refuses what cannot be asked for, and a function that the system uses. Nothing is opened yet.
    pub fn check(&self, target: &str) -> Result<()> {
        if !self.force && !io::stdin().is_terminal() {
            bail!(Usage(
                "this destroys data, and there is no terminal to ask whether it shall: --force does it".to_owned()
            ));
        }
        let address = target.split(',').next().and_then(|address| address.parse::<Address>().ok());
        let sysfs = Sysfs::default();
        if let Some(function) = address.and_then(|address| sysfs.function(address)) {
            let uses = in_use::uses(&sysfs, &function, &Network::read());
            if !uses.is_empty() {
                bail!("{target} is in use: {}: nothing was changed", uses.join("; "));
            }
        }
        Ok(())
    }

    /// Asks, unless nobody wants to be asked.
    pub fn ask(&self, question: &str) -> Result<()> {
        if self.force {
            return Ok(());
        }
        output::note(format!("{question} Type yes to go on:"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        match answer.trim() {
            "yes" => Ok(()),
            _ => bail!("that was no yes: nothing was changed"),
        }
    }
}

impl Controller {
    /// What a question names it: its name, model and serial number.
    pub fn described(&self) -> String {
        let found = self.identity();
        format!("{} ({}, serial number {})", self.name, found.model, found.serial)
    }
}

/// Looks at something every now and then, until it is done, or somebody presses Ctrl-C: `check` returns how far it is, in percent, while it is not.
pub fn wait<T>(what: &str, mut check: impl FnMut() -> Result<Result<T, u8>>) -> Result<T> {
    let interrupted = crate::signal::interrupted()?;
    let mut progress = output::Progress::time(what, Duration::from_millis(100));
    let mut pause = Duration::from_millis(50);
    loop {
        match check()? {
            Ok(done) => {
                progress.finish();
                return Ok(done);
            }
            Err(percent) => progress.at(percent.into(), String::new),
        }
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted: {what} goes on without this command, unless a reset ends it");
        }
        // Only how often it is asked: the percentage and the end are the controller's.
        std::thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!((number("18"), number("0x12"), dword("0xffffffff")), (Ok(18), Ok(18), Ok(u32::MAX)));
        for bad in ["", "0x", "x", "-1", "1k"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert!(dword("0x100000000").is_err() && word("65536").is_err() && byte("256").is_err());
    }

    #[test]
    fn dumps_have_sixteen_bytes_a_line() {
        let text = dump(b"0123456789abcdef\x00z");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "000000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef");
        assert_eq!(lines[1], format!("000010  {:<47}  .z", "00 7a"));
        assert!(lines.iter().all(|line| line.len() <= 80));
    }
}
