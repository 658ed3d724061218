//! Packets that measure: made with sequence marks and a known payload ([`template`], [`mark`]), of sizes and at a rate that are asked for
//! ([`generator`], [`sizes`], [`rate`]), known again wherever they come out ([`packet`]), and accounted for by their numbers ([`accounting`], [`ledger`]).
//!
//! It has no queues: whoever calls sends and receives, and tells it of packets.
//!
//! ```
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//! use wholebar::net::Mac;
//! use wholebar_measure::net::accounting::Accounting;
//! use wholebar_measure::net::mark::Mark;
//! use wholebar_measure::net::template::{Headers, Template};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let headers = Headers { from: Mac([2, 0, 0, 0, 0, 1]), to: Mac([2, 0, 0, 0, 0, 2]), vlan: None, v6: false };
//! let (template, mut accounting) = (Template::new(&headers, 1, 1)?, Accounting::new(Some(1)));
//! let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default())?, 8, 2048, 64)?;
//! // Three packets are sent, and the one in the middle is lost.
//! for number in [0, 2] {
//!     let mut packet = pool.get().ok_or("no buffer is left")?;
//!     packet.set_len(template.least() as u32 + 50);
//!     template.write(packet.bytes_mut(), Mark { run: 1, flow: 0, number, sent: 1000 });
//!     accounting.record(&packet, 1500);
//! }
//! let found = accounting.findings();
//! assert_eq!((found.arrivals.received, found.missing, found.latency.min()), (2, 1, 500));
//! # Ok(()) }
//! ```

pub mod accounting;
pub mod generator;
pub mod ledger;
pub mod mark;
pub mod packet;
pub mod rate;
pub mod sizes;
pub mod template;
