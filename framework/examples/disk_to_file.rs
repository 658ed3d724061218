//! Copies a disk to a file by std's own means: disk_to_file [TARGET [FILE]]
//!
//! `cargo run -p wholebar --features sim --example disk_to_file -- sim:nvme,size=64M disk.img`

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader};
use std::time::Instant;
use wholebar::block::{self, DiskConfig};
use wholebar::blocking::{Config, Disk};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or("sim:nvme,size=64M".to_owned());
    let file = arguments.next().unwrap_or("/dev/null".to_owned());
    let disk = Disk::open(block::open_target(&target, &DiskConfig::default())?, &Config::default())?;
    let (size, began) = (disk.size(), Instant::now());
    // Reads as large as what is in flight at once: 32 requests of 128 KiB.
    let bytes = io::copy(&mut BufReader::with_capacity(4 << 20, disk), &mut File::create(&file)?)?;
    println!("{target}: {bytes} of {size} bytes to {file} in {:?}", began.elapsed());
    Ok(())
}
