//! The record of what a disk has in flight: what is written there, how a ring goes on by it wherever the back end was killed, and records that are none.

use super::front::*;
use super::{BUFFERS, RX};
use std::os::fd::{AsFd, OwnedFd};

/// Of one queue of 16 entries.
const LEN: u64 = 32 + 32 * 16;

/// The payload of SET_INFLIGHT_FD: size and offset of the memory, queues and their entries.
fn record(size: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    [words(&[size, offset], 8), words(&[queues, entries, 0, 0], 2)].concat()
}

/// A disk whose front end has this memory and gave it this record.
fn disk(features: u64, memory: &OwnedFd, file: &OwnedFd) -> Front {
    let mut front = Front { memory: memory.try_clone().unwrap(), ..Front::blk("size=1M") };
    front.begin(features, P_CONFIG | P_INFLIGHT);
    assert!(front.acknowledged(SET_INFLIGHT_FD, &record(LEN, 0, 1, 16), &[file.as_fd()]));
    front
}

/// Makes a read of sector `n` available.
fn read(front: &Front, ring: &mut Ring, n: u64) {
    front.write(BUFFERS, &[words(&[0u32, 0], 4), words(&[n], 8)].concat());
    front.write(BUFFERS + 0x1000, &[0xee; 512]);
    front.write(BUFFERS + 0x2000, &[0xff]);
    ring.add(front, &[(BUFFERS, 16, false), (BUFFERS + 0x1000, 512, true), (BUFFERS + 0x2000, 1, true)]);
}

fn is_read(front: &mut Front, ring: &mut Ring) {
    assert!(front.until(|front| ring.take(front, 3).is_some()));
    assert_eq!((front.read(BUFFERS + 0x2000), front.read(BUFFERS + 0x1000)), ([0], [0; 512]));
}

/// The used indexes and their wrap counters: of what is used next, and of what was before.
fn places(file: &OwnedFd) -> [u8; 6] {
    let mut places = [0; 6];
    rustix::io::pread(file, &mut places, 16).unwrap();
    places
}

fn set(file: &OwnedFd, at: u64, bytes: &[u8]) {
    rustix::io::pwrite(file, bytes, at).unwrap();
}

#[test]
fn a_packed_ring_goes_on_wherever_its_back_end_was_killed() {
    let (memory, file) = (file(MEMORY), file(LEN));
    let mut front = disk(PACKED, &memory, &file);
    let mut ring = front.ring(0, RX, 16);
    assert_eq!(places(&file), [0, 0, 0, 0, 1, 1]);
    read(&front, &mut ring, 0);
    is_read(&mut front, &mut ring);
    assert_eq!(places(&file), [3, 0, 3, 0, 1, 1]);

    // Killed while the next was being used: its length and id are overwritten, and its flags are not.
    read(&front, &mut ring, 1);
    drop(front);
    set(&file, 16, &[6, 0, 3, 0, 1, 1]);
    set(&file, 32 + 16, &[words(&[3u16, 0], 2), words(&[16u32], 4)].concat());
    let mut front = disk(PACKED, &memory, &file);
    front.write(RX + 16 * 3 + 8, &[0xff; 6]);
    front.describe(0, &ring, 0x8000_8000);
    assert!(front.enable(0, true));
    is_read(&mut front, &mut ring);

    // Killed behind the flags, before that was recorded.
    drop(front);
    assert_eq!(places(&file), [6, 0, 6, 0, 1, 1]);
    set(&file, 16, &[6, 0, 3, 0, 1, 1]);
    let mut front = disk(PACKED, &memory, &file);
    front.describe(0, &ring, 0x8000_8000);
    assert!(front.enable(0, true));
    assert_eq!(places(&file), [6, 0, 6, 0, 1, 1]);
    // And over the end of the ring.
    for n in 0..4 {
        read(&front, &mut ring, n);
        is_read(&mut front, &mut ring);
    }
    assert_eq!((places(&file), front.stop(0)), ([2, 0, 2, 0, 0, 0], 0x0002_0002));
}

#[test]
fn what_is_no_record_is_refused() {
    let (memory, good) = (file(MEMORY), file(LEN));
    for (payload, fds) in [
        (record(LEN, 0, 1, 16), 0),
        (record(LEN, 0, 1, 16), 2),
        (record(LEN, 0, 1, 17), 1),
        (record(LEN, 0, 2, 16), 1),
        (record(LEN, 0, 1, 0), 1),
        (record(LEN, 4, 1, 8), 1),
        (record(LEN + 1, 0, 1, 16), 1),
        (record(u64::MAX, 8, u16::MAX, u16::MAX), 1),
        (record(LEN, 0, 1, 16)[..20].to_vec(), 1),
    ] {
        let mut front = Front::blk("size=1M");
        front.begin(0, P_CONFIG | P_INFLIGHT);
        assert!(!front.acknowledged(SET_INFLIGHT_FD, &payload, &vec![good.as_fd(); fds]), "{payload:x?}");
    }
    // Records of more queues than there are, or of none, are not made.
    for payload in [record(0, 0, 2, 16), record(0, 0, 0, 16), record(0, 0, 1, 0)] {
        let mut front = Front::blk("size=1M");
        front.begin(0, P_CONFIG | P_INFLIGHT);
        assert_eq!(front.ask_with(0, GET_INFLIGHT_FD, &payload, &[]), None);
    }
    // Nor where that was not agreed on; a network device has none.
    let mut front = Front::blk("size=1M");
    front.begin(0, P_CONFIG);
    assert!(!front.acknowledged(SET_INFLIGHT_FD, &record(LEN, 0, 1, 16), &[good.as_fd()]));
    let mut front = Front::net("");
    front.tell(SET_OWNER, &[], &[]);
    assert_eq!(u64_of(&front.ask(GET_PROTOCOL_FEATURES, &[])) & P_INFLIGHT, 0);

    // What another back end has in flight is not lost in silence; a ring that the record has no room for, or that it is not of, does not begin.
    let refused = |features: u64, size: u16, at: u64, bytes: &[u8]| {
        let bad = file(LEN);
        set(&bad, at, bytes);
        let mut front = disk(features, &memory, &bad);
        let ring = Ring::new(&front, RX, size);
        front.describe(0, &ring, if features == 0 { 0 } else { 0x8000_8000 });
        assert!(!front.enable(0, true), "{features:x}, {size} entries, {bytes:?} at {at}");
    };
    refused(0, 16, 16 + 16 * 15, &[1]);
    refused(PACKED, 16, 32 + 32 * 15, &[1]);
    refused(0, 32, 0, &[]);
    refused(PACKED, 16, 8, &[1, 0, 0, 0, 0, 0, 0, 0, 17, 0, 16, 0, 1, 1]);
}
