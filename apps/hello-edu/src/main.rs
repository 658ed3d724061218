//! `hello-edu ADDRESS [intx] [stay]`: a driver of one's own, from its registers to the end of its device.
//!
//! The device is QEMU's `edu` (docs/specs/edu in its documentation). It computes factorials, copies up to 4096 bytes between memory and a buffer
//! of its own, and interrupts after each. A driver says how its device is stopped, started and looked after; the rest is the framework's.

use anyhow::{Context, Result, bail, ensure};
use std::io::{self, ErrorKind, Write};
use std::time::Duration;
use wholebar::bar::{Bar, BarOptions};
use wholebar::control_plane::{ControlPlane, DeviceEvent, Driver, Event, QueueContext};
use wholebar::irq::Interrupts;
use wholebar::mem::{Arena, ArenaOptions, Buf, DmaMapping, Pool};
use wholebar::pci::{Config, Irq, config, function};

// Registers are offsets in BAR0. Below 0x80 they have 4 bytes, from there on 8.
const ID: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const STATUS_INTERRUPT: u32 = 0x80;
const CAUSES: u64 = 0x24;
const CAUSE_FACTORIAL: u32 = 0x001;
const CAUSE_DMA: u32 = 0x100;
const ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const DMA_RUN: u64 = 0x01;
const DMA_FROM_DEVICE: u64 = 0x02;
const DMA_INTERRUPT: u64 = 0x04;
/// Where the device's own buffer is, for DMA, and its size.
const BUFFER: u64 = 0x40000;
const BUFFER_SIZE: u32 = 4096;
/// How long the device is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const USAGE: &str = "usage: hello-edu ADDRESS [intx] [stay]: of QEMU's -device edu, which vfio-pci has";

struct Edu(Bar);
impl Driver for Edu {
    const NAME: &'static str = "edu";
    type State = ();
    type Event = Event<u32>;
    type QueueFault = String;
    type Error = wholebar::Error;

    /// The device reaches no memory when this returns: a transfer that runs has ended.
    fn stop(&self, (): &mut ()) -> wholebar::Result<()> {
        self.0.write(STATUS, 0u32)?;
        self.0.wait_for("end its DMA", DMA_COMMAND, PATIENCE, |command: u64| command & DMA_RUN == 0)?;
        self.0.write(ACKNOWLEDGE, u32::MAX)
    }

    /// At first, and after each reset.
    fn restart(&self, (): &mut (), _: &[u32]) -> wholebar::Result<()> {
        config::enable_bus_master(self.0.device().as_ref(), true)?;
        self.0.write(STATUS, STATUS_INTERRUPT)
    }

    /// An interrupt came, or nothing did for a while.
    fn poll_events(&self, (): &mut (), tell: &mut dyn FnMut(Event<u32>)) -> wholebar::Result<()> {
        function::check(self.0.device().as_ref())?;
        let causes: u32 = self.0.read(CAUSES)?;
        if causes != 0 {
            self.0.write(ACKNOWLEDGE, causes)?;
            tell(Event::Driver(causes));
        }
        Ok(())
    }
}

fn wait_for(edu: &ControlPlane<Edu>, cause: u32) -> Result<()> {
    loop {
        match edu.events().recv_timeout(PATIENCE).context("no interrupt came")? {
            Event::Driver(causes) if causes & cause != 0 => return Ok(()),
            Event::Device(DeviceEvent::Ended { why }) => bail!("the device has ended: {why}"),
            _ => {}
        }
    }
}

/// Fills the device's buffer from `buf`, or `buf` from the device's. Until the device is done it may write to `buf`, which otherwise is never used again.
fn transfer(edu: &ControlPlane<Edu>, memory: &DmaMapping, buf: Buf, from_device: bool) -> Result<Buf> {
    let bar = &edu.driver().0;
    let ours = memory.iova().offset(buf.arena_offset()).0;
    let (source, destination, direction) =
        if from_device { (BUFFER, ours, DMA_FROM_DEVICE) } else { (ours, BUFFER, 0) };
    bar.write(DMA_SOURCE, source)?;
    bar.write(DMA_DESTINATION, destination)?;
    bar.write(DMA_COUNT, u64::from(buf.len()))?;
    bar.write(DMA_COMMAND, DMA_RUN | direction | DMA_INTERRUPT)?;
    let Err(error) = wait_for(edu, CAUSE_DMA) else { return Ok(buf) };
    buf.quarantine();
    Err(error)
}

fn show(edu: &ControlPlane<Edu>, memory: &DmaMapping, pool: &Pool, out: &mut impl Write) -> Result<()> {
    let bar = &edu.driver().0;
    bar.write(LIVENESS, 0x1234_5678u32)?;
    ensure!(bar.read::<u32>(LIVENESS)? == !0x1234_5678, "the device does not answer");
    bar.write(FACTORIAL, 10u32)?;
    wait_for(edu, CAUSE_FACTORIAL)?;
    let mut sent = pool.get_len(BUFFER_SIZE).context("no buffer is left")?;
    sent.bytes_mut().iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = (i * 7 + i / 256) as u8);
    let sent = transfer(edu, memory, sent, false)?;
    let back = transfer(edu, memory, pool.get_len(BUFFER_SIZE).context("no buffer is left")?, true)?;
    ensure!(back.bytes() == sent.bytes(), "what came back is not what was sent");
    Ok(writeln!(out, "10! is {}; {BUFFER_SIZE} bytes went there and back", bar.read::<u32>(FACTORIAL)?)?)
}

fn main() -> Result<()> {
    // Nobody may read to the end, as in `hello-edu ... | head -1`.
    let unread = |e: &anyhow::Error| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe);
    run(&mut io::stdout()).or_else(|e| if unread(&e) { Ok(()) } else { Err(e) })
}

fn run(out: &mut impl Write) -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let target = args.first().context(USAGE)?;
    if target == "--help" {
        return Ok(writeln!(out, "{USAGE}")?);
    }
    let asked = |word: &str| args[1..].iter().any(|arg| arg == word);
    // What it is, before a register of it is touched; and how many bits of an address it has, before it is given memory.
    let device = wholebar::open(target)?;
    let ids = Config::of(device.as_ref())?;
    ensure!((ids.vendor(), ids.device()) == (0x1234, 0x11e8), "{} is no edu device", device.name());
    device.dma().set_dma_mask(28);
    let bar = Bar::of(device.clone(), 0, BarOptions::default())?;
    let id: u32 = bar.read(ID)?;
    let interrupts = match asked("intx") {
        true => Interrupts::new(device.clone(), Irq::Intx, 1)?,
        false => Interrupts::best(device.clone(), 1)?.context("it has no interrupts")?,
    };
    writeln!(out, "{}: edu {}, which interrupts by {}", device.name(), id >> 24, interrupts.info().0)?;
    let edu = ControlPlane::start(Edu(bar), (), QueueContext::new(device.clone(), Some(interrupts))?, PATIENCE)?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    let memory = edu.queue_context().attach(arena.clone())?;
    let pool = Pool::new(arena.clone(), 2, BUFFER_SIZE, 64)?;
    writeln!(out, "{} KiB of memory are at {} for it", arena.len() >> 10, memory.iova())?;
    show(&edu, &memory, &pool, out)?;
    edu.reset()?;
    writeln!(out, "it was reset")?;
    show(&edu, &memory, &pool, out)?;
    // Until the kernel wants the device back, or it is gone. Then it is stopped for good, as it is when `edu` is dropped.
    let over = |event| matches!(event, Event::Device(DeviceEvent::UnbindRequest | DeviceEvent::Ended { .. }));
    while asked("stay") && !over(edu.events().recv()?) {}
    Ok(edu.shut_down()?)
}
