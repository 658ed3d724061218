//! Captures of what queues move: packets of any queue of [`wholebar_core::net`] are copied to a pcapng file, with nanoseconds, while a program runs.
//!
//! Wireshark, tcpdump and tshark read the file. [`Capture`] is a file and its thread, [`Captured`] a queue around a queue, and [`PcapNg`] a file
//! without queues, for who has packets already. Files are not read here.
//!
//! ```no_run
//! use std::path::Path;
//! use wholebar_capture::{Capture, Direction};
//! # use wholebar_core::{mem::Pool, net::Port};
//! # fn example(port: &dyn Port, pool: &Pool) -> Result<(), Box<dyn std::error::Error>> {
//!
//! let capture = Capture::create(Path::new("all.pcapng"), 8192)?;
//! let rx = capture.tap(port.rx_queue(0, pool)?, "rx0", Direction::In)?;
//! let tx = capture.tap(port.tx_queue(0)?, "tx0", Direction::Out)?;
//! // ... `rx` and `tx` are used as any queue, on their cores; then they are dropped, and the capture is finished:
//! # drop((rx, tx));
//! println!("{} packets are in the file", capture.finish()?);
//! # Ok(()) }
//! ```

mod captured;
mod pcapng;

pub use captured::{Capture, CaptureCounters, Captured};
pub use pcapng::{Direction, PcapNg};
