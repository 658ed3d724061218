//! Two TAP interfaces, each of which has what goes out of the other, for tests/http.sh: the shortest way from one kernel's stack to another that has TAP
//! interfaces in it. Packets pass as they are, segments to be cut and checksums to be filled in included. Until it is killed:
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example tap_bridge -- t0 t1
//! ```

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;
use wholebar::tap::{HEADER, Tap};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [a, b] = &args[..] else { bail!("usage: tap_bridge TAP TAP") };
    let open = |name: &String| Tap::open(name).with_context(|| format!("opening {name}"));
    let taps = [open(a)?, open(b)?];
    let mut packet = vec![0; HEADER + (1 << 16)];
    loop {
        let mut readable = taps.each_ref().map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN));
        match poll(&mut readable, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
        for (from, to) in [(&taps[0], &taps[1]), (&taps[1], &taps[0])] {
            // Not all at once, so that neither waits for long.
            for _ in 0..32 {
                let Some(len) = from.read(&mut packet)? else { break };
                // What there is no room for is lost, as on any wire.
                to.write(&packet[..len])?;
            }
        }
    }
}
