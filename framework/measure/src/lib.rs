//! What benchmarks of wholebar's disks and ports measure with: histograms of latencies, rates, sequence marks, load generators, and the accounting of what
//! became of each command and packet. The `wholebar` command is a program over it; yours can be another.
//!
//! It opens no device, reads no command line and prints nothing: a program brings queues, and gets figures.
//!
//! | module | what it has | its like elsewhere |
//! |---|---|---|
//! | [`block`] | a load on queues of disks, over a window: IOPS, latencies, errors, verified data | fio, SPDK's `perf` |
//! | [`net`] | packets with sequence marks, at a rate; what was lost, reordered, duplicated or damaged of them | DPDK's pktgen, RFC 2544, RFC 4737 |
//! | [`latency`] | histograms and percentiles | HdrHistogram |
//! | [`rounds`] | cases that take turns, so that a noisy machine disturbs all of them alike | |
//! | [`ratio`] | ratios of rates with the interval in which they lie | the sign test, the Mann-Whitney test |
//! | [`idle`] | what polling costs and what sleeping costs: CPU shares and latencies, at loads and under policies | |
//! | [`cpu`] | which share of a CPU a thread had | `pidstat -t` |
//!
//! ```
//! use wholebar_measure::latency::{Latency, Percentiles};
//! use wholebar_measure::quanta::Clock;
//!
//! let clock = Clock::new();
//! let mut latency = Latency::new(&clock);
//! for _ in 0..1000 {
//!     let begun = clock.raw();
//!     std::hint::black_box((0..100).sum::<u32>());
//!     latency.record(clock.raw() - begun);
//! }
//! let p = Percentiles::of(&latency.into_histogram());
//! assert!(p.min <= p.p50 && p.p50 <= p.p99 && p.p99 <= p.max);
//! println!("half of all took {} ns at most, 99 % took {} ns", p.p50, p.p99);
//! ```

pub mod block;
pub mod cpu;
mod error;
pub mod idle;
pub mod latency;
pub mod net;
pub mod ratio;
pub mod rounds;

pub use error::Error;
pub use {hdrhistogram, quanta};

/// What comes back of calls that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;
