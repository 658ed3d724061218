//! `forward TARGET TARGET`: what one port receives, the other sends, whichever drivers they need. A packet goes round a thousand times.

use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, PortConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = PortConfig { headroom: 128, promiscuous: true, ..PortConfig::default() };
    let arena = Arena::new(16 << 20, ArenaOptions::default())?;
    let pool = Pool::new(arena.clone(), 4096, 2048 + 128, 64)?;
    let mut ends = Vec::new();
    for target in std::env::args().skip(1) {
        let port = net::open_target(&target, &config)?;
        port.attach(arena.clone())?;
        println!("{}: {}, driver {}", port.name(), port.mac(), port.driver());
        let (rx, tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
        ends.push((port, rx, tx));
    }
    let [(port_a, rx_a, tx_a), (port_b, rx_b, tx_b)] = &mut ends[..] else {
        return Err("two targets are wanted".into());
    };
    // What is sent before is lost.
    while !port_a.link().up || !port_b.link().up {}

    let (mut to_a, mut to_b) = (Burst::new(32), Burst::new(32));
    if !to_a.fill(&mut pool.cache(1), 1) {
        return Err("the pool is empty".into());
    }
    to_a[0].reserve(128);
    to_a[0].copy_from(&[&[0xff; 12][..], &[0x88, 0xb5], &[0; 46]].concat());
    let mut passed = 0;
    while passed < 1000 {
        for (rx, tx, burst) in [(&mut *rx_a, &mut *tx_b, &mut to_b), (&mut *rx_b, &mut *tx_a, &mut to_a)] {
            passed += rx.rx(burst);
            match burst.is_empty() {
                true => tx.reclaim(),
                false => _ = tx.tx(burst),
            }
        }
    }
    println!("{passed} packets were passed on");
    Ok(())
}
