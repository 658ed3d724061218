//! Reads the first block of a disk, whatever its driver: read_block TARGET

use std::error::Error;
use wholebar::block::{self, Data, DiskConfig, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Pool};

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("read_block TARGET")?;
    let disk = block::open_target(&target, &DiskConfig::default())?;
    let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, 1, ns.block_size, ns.block_size)?;
    let data = Data::One(pool.get_len(ns.block_size).ok_or("no buffer is left")?);
    let mut queue = disk.queue()?;
    queue.submit(Request { tag: 0, nsid: ns.nsid, op: Op::Read { lba: 0 }, data, deadline: None })?;
    queue.ring();
    while queue.poll(1, &mut |done| println!("{target}: {:?}, {} bytes", done.status, done.data.len())) == 0 {}
    Ok(())
}
