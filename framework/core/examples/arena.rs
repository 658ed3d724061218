//! Memory for devices, and work handed from core to core: an arena, a pool of buffers in it, and a ring between two reactors.
//!
//!     cargo run -p wholebar-core --example arena

use std::io::Write;
use wholebar_core::channel::bounded;
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar_core::reactor::Reactor;
use wholebar_core::ring::spsc;
use wholebar_core::{Work, cores};

const COUNT: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    // Hugepages where enough are free. A device is let in by `device.dma().attach(arena.clone())`.
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    let pool = Pool::new(arena.clone(), 1024, 2048, 64)?;
    let (mut put, mut take) = spsc::<Buf>(256)?;
    let (done, finished) = bounded(1);

    let (mut cache, mut next) = (pool.cache(32), 0u64);
    let producer = move || {
        if next == COUNT || put.free() == 0 {
            return Work::Idle;
        }
        let Some(mut buf) = cache.get() else { return Work::Idle };
        buf.copy_from(&next.to_le_bytes());
        next += u64::from(put.push(buf).is_ok());
        Work::Busy
    };

    let (mut cache, mut burst, mut seen, mut sum) = (pool.cache(32), Vec::with_capacity(32), 0, 0);
    let consumer = move || {
        if take.pop_burst(&mut burst, 32) == 0 {
            return Work::Idle;
        }
        for buf in &burst {
            sum += buf.bytes().first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            seen += 1;
        }
        cache.put_bulk(&mut burst);
        if seen == COUNT {
            let _ = done.send(sum);
        }
        Work::Busy
    };

    let (first, last) = (cores::allowed()[0], cores::allowed()[cores::allowed().len() - 1]);
    let running = [Reactor::on_core(first)?.with(producer).spawn()?, Reactor::on_core(last)?.with(consumer).spawn()?];
    let sum = finished.recv().unwrap_or_default();
    for reactor in running {
        writeln!(out, "{:?}", reactor.join()?)?;
    }
    writeln!(
        out,
        "{COUNT} buffers from core {first} to core {last}, sum {sum} ({} expected)",
        COUNT * (COUNT - 1) / 2
    )?;
    writeln!(out, "{:?}: {pool:?}", arena.source())?;
    Ok(())
}
