//! `hello-fpga [TARGET]`: how to write a driver of one's own. Copies data by a DMA engine and checks it; `sim:fpga` without a target.
//!
//! The driver is in `copy_engine.rs`. Four things to see: PCI ids are checked before a register is touched; the interrupt block lies in the page
//! of the MSI-X PBA and is reached all the same; descriptors are posted, then announced by one doorbell; the interrupt is for the slow path.

mod copy_engine;

use anyhow::{Context, Result, bail, ensure};
use copy_engine::{CopyEngine, ENTRIES, PATIENCE};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Instant;
use wholebar::bar::{Bar, BarOptions, DoorbellCounts};
use wholebar::irq::Interrupts;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::pci::Irq;

// The interrupt block.
const IRQ_ENABLE: u64 = 0x2100;
const IRQ_PENDING: u64 = 0x2104;
const IRQ_CLEAR: u64 = 0x2108;
const IRQ_TEST: u64 = 0x210c;

const USAGE: &str = "usage: hello-fpga [TARGET]: vfio-user:/run/fpga.sock; without one, a model";

fn run(target: &str, out: &mut impl Write) -> Result<()> {
    let device = wholebar::open(target)?;
    copy_engine::check_ids(device.as_ref())?;
    let bar = Bar::of(
        device.clone(),
        0,
        BarOptions { registers: &[0x2100..0x2110, 0x3000..0x3044], ..BarOptions::default() },
    )?;
    writeln!(out, "{}: BAR0, {} KiB, {} pages ({})", device.name(), bar.size() >> 10, bar.plan().page, bar.plan().why)?;
    for span in &bar.plan().spans {
        writeln!(out, "  {:#06x}-{:#06x} {:?} ({:?})", span.range.start, span.range.end, span.access, span.why)?;
    }

    let arena = Arena::new(2 << 20, ArenaOptions::default())?;
    let mut engine = CopyEngine::start(bar.clone(), device.dma().attach(arena.clone())?)?;
    let interrupts = Interrupts::new(device.clone(), Irq::Msix, 3)?;
    let wait_for = |vector| match interrupts.vector(vector)?.wait(Some(PATIENCE))? {
        Some(_) => Ok(bar.write(IRQ_CLEAR, 1u32 << vector)?),
        None => bail!("vector {vector} is silent for {PATIENCE:?}"),
    };
    // Those that are waited for have their eventfds before the device raises them.
    (0..3).try_for_each(|vector| interrupts.vector(vector).map(drop))?;
    bar.write(IRQ_ENABLE, 0b111u32)?;

    bar.write(IRQ_TEST, 1u32 << 2)?;
    wait_for(2).context("the test interrupt")?;
    writeln!(out, "test interrupt: vector 2, cleared, pending {:#x}", bar.read::<u32>(IRQ_PENDING)?)?;

    let pool = Pool::new(arena, 2 * ENTRIES, 4096, 4096)?;
    for n in 0..ENTRIES {
        let (mut from, to) = pool.get_len(4096).zip(pool.get_len(4096)).context("no buffer left")?;
        from.bytes_mut().iter_mut().zip(0u32..).for_each(|(b, i)| *b = (i * 31 + n * 7) as u8);
        engine.post(from, to, n == ENTRIES - 1).ok().context("the ring is full")?;
    }
    engine.ring();
    let (mut done, start) = (0, Instant::now());
    while done < ENTRIES {
        let Some((status, from, to)) = engine.poll() else {
            ensure!(start.elapsed() < PATIENCE, "{done} of {ENTRIES} copies done after {PATIENCE:?}");
            continue;
        };
        ensure!(status == 1, "copy {done} failed with status {status}");
        ensure!(from.bytes() == to.bytes(), "copy {done} differs from its source");
        done += 1;
    }
    wait_for(0).context("the interrupt of the last copy")?;
    let DoorbellCounts { direct, trapped } = engine.doorbells();
    writeln!(
        out,
        "{done} copies of 4096 bytes, verified; doorbells: {direct} direct, {trapped} trapped; vector 0 told of the last"
    )?;
    Ok(())
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let target = match (args.next(), args.next()) {
        (Some(help), None) if help == "--help" => {
            let _ = writeln!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        (target, None) => target.unwrap_or_else(|| "sim:fpga".to_owned()),
        (_, Some(_)) => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = run(&target, &mut io::stdout()) else { return ExitCode::SUCCESS };
    match error.downcast_ref::<io::Error>() {
        // Nobody reads any more, as in `hello-fpga | head -1`.
        Some(e) if e.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Some(e) => _ = writeln!(io::stderr(), "hello-fpga: cannot write to standard output: {e}"),
        None => _ = writeln!(io::stderr(), "hello-fpga: {error:#}"),
    }
    let usage = error.downcast_ref().is_some_and(wholebar::OpenError::is_name);
    ExitCode::from(if usage { 2 } else { 1 })
}
