//! Packets and capture files, as bytes, through a network card's model, which completes checksums, and cuts TCP segments: no panic, and nothing
//! longer than what was sent.
#![no_main]

#[path = "../../../tools/sim/tests/virtio/net.rs"]
#[allow(dead_code, unused_imports)]
mod net;
#[path = "../../../tools/sim/tests/virtio/rig.rs"]
#[allow(dead_code)]
mod rig;

use libfuzzer_sys::fuzz_target;
use net::{Nic, bytes};
use rig::*;
use std::cell::RefCell;
use std::path::PathBuf;
use wholebar::mem::Chunk;
use wholebar::model::InProcess;
use wholebar::sim::virtio::net::{NetParams, model};

/// CSUM, HOST_TSO4, HOST_TSO6.
const OFFLOADS: u64 = 1 | 1 << 11 | 1 << 12;
/// GUEST_CSUM, GUEST_TSO4.
const TAKEN: u64 = 1 << 1 | 1 << 7;
const ENTRIES: u16 = 128;
const ROOM: u64 = 2048;
const HEADER: usize = 12;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    match first & 7 {
        0 => captured(rest),
        1 => TAKES.with_borrow_mut(|(nic, buffers)| sent(rest, nic, buffers)),
        _ => TAKES_NOTHING.with_borrow_mut(|(nic, buffers)| sent(rest, nic, buffers)),
    }
});

// Made once: that takes longer than a packet.
thread_local! {
    static TAKES: RefCell<(Nic, Vec<Chunk>)> = RefCell::new(nic("mtu=9000", OFFLOADS | TAKEN).unwrap());
    static TAKES_NOTHING: RefCell<(Nic, Vec<Chunk>)> = RefCell::new(nic("mtu=9000", OFFLOADS).unwrap());
}

/// A header and a packet, sent round a loop.
fn sent(input: &[u8], nic: &mut Nic, buffers: &[Chunk]) {
    let Some((header, packet)) = input.split_at_checked(HEADER) else { return };
    let packet = &packet[..packet.len().min(1500)];
    let sent = nic.send(header, packet);
    nic.rig.settle();
    let (gso, size) = (header[1], u16::from_le_bytes([header[4], header[5]]));
    for (id, len) in nic.rx.take_all() {
        let buffer = &buffers[usize::from(id)];
        let got = bytes(buffer, len as usize);
        // Identifiers come round in the buffers' order.
        assert_eq!(nic.rx.add(&[(nic.rig.at(buffer), ROOM as u32, true)]), id);
        assert!(got.len() >= HEADER && got.len() <= HEADER + packet.len(), "{} bytes of {}", got.len(), packet.len());
        // Addresses and type are nobody's business, unless the sender wants its checksum there.
        let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let same = 14.min(packet.len()).min(if header[0] & 1 != 0 { half(6) + half(8) } else { 14 });
        assert_eq!(got[HEADER..HEADER + same], packet[..same]);
        if got[1] == 0 && gso & 0x7f == 0 {
            assert_eq!(got.len(), HEADER + packet.len(), "one that is not cut is whole");
        }
        assert!(gso & 0x7f == 0 || size > 0, "what cannot be cut was cut");
    }
    assert!(!nic.rig.needs_reset());
    assert_eq!(nic.tx.take_all().len(), 1);
    drop(sent);
}

/// A capture file, whose packets are received.
fn captured(file: &[u8]) {
    let path = PathBuf::from(format!("/dev/shm/wholebar-fuzz-{}", std::process::id()));
    std::fs::write(&path, file).unwrap();
    if let Some((mut nic, buffers)) = nic(&format!("wire=pcap,replay={}", path.display()), 0) {
        nic.rig.settle();
        for (id, len) in nic.rx.take_all() {
            assert!(u64::from(len) <= buffers[usize::from(id)].len());
        }
    }
    let _ = std::fs::remove_file(&path);
}

/// A card, and buffers for what it receives; `None` where it cannot be made.
fn nic(params: &str, features: u64) -> Option<(Nic, Vec<Chunk>)> {
    let (model, port) = model(NetParams::parse(params).ok()?).ok()?;
    let mut rig = Rig::with_memory(InProcess::new(model).ok()?, Some(port.handle), 1 << 19);
    assert_eq!(rig.agree(VERSION_1 | features), 11);
    let (rx, tx) = (rig.queue(0, ENTRIES), rig.queue(1, ENTRIES));
    rig.ok();
    let mut nic = Nic { rig, rx, tx };
    let buffers = (0..ENTRIES).map(|_| nic.buffer(ROOM)).collect();
    Some((nic, buffers))
}
