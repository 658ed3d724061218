use super::*;
use crate::mem::{Arena, ArenaOptions, L4, Pool};

fn pool(count: u32, size: u32) -> Pool {
    Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), count, size, 64).unwrap()
}

#[test]
fn data_moves_within_its_buffer() {
    let pool = pool(1, 100);
    let mut buf = pool.get().unwrap();
    let start = buf.arena_offset();
    assert!(!buf.reserve(101) && buf.reserve(40));
    assert_eq!((buf.headroom(), buf.tailroom(), buf.len()), (40, 60, 0));
    assert_eq!(buf.copy_from(&[7; 100]), 60);
    assert_eq!((buf.arena_offset(), buf.tailroom()), (start + 40, 0));
    buf.set_len(10);
    buf.prepend(4).unwrap().copy_from_slice(b"head");
    assert_eq!(buf.bytes(), b"head\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07");
    assert_eq!((buf.headroom(), buf.arena_offset()), (36, start + 36));
    assert!(buf.prepend(37).is_none() && buf.len() == 14);
    assert!(!buf.advance(15) && buf.advance(6));
    assert_eq!((buf.bytes(), buf.headroom()), (&[7; 8][..], 42));
    buf.set_len(u32::MAX);
    assert_eq!((buf.len(), buf.tailroom()), (58, 0));
    drop(buf);
    let buf = pool.get().unwrap();
    assert_eq!((buf.headroom(), buf.len(), buf.arena_offset()), (0, 0, start));
}

#[test]
fn a_raw_handle_is_taken_back_once() {
    let pool = pool(2, 64);
    let mut buf = pool.get().unwrap();
    buf.copy_from(b"abc");
    let raw = buf.into_raw();
    assert_eq!(pool.available(), 1, "it is out");
    // SAFETY: `into_raw` gave it just now; the pool lives, and nobody else has it.
    let (back, again) = unsafe { (Buf::from_raw(raw), Buf::from_raw(raw)) };
    assert!(again.is_none());
    assert_eq!(back.as_ref().map(Buf::bytes), Some(&b"abc"[..]));
    drop(back);
    assert_eq!(pool.available(), 2);
    // SAFETY: as above; it is home now.
    assert!(unsafe { Buf::from_raw(raw) }.is_none());
    assert_eq!(pool.available(), 2);
}

#[test]
fn chains_are_owned_by_their_first_buffer() {
    let (pool, other) = (pool(8, 64), pool(2, 64));
    let mut first = pool.get_len(10).unwrap();
    first.append(pool.get_len(20).unwrap());
    let mut tail = other.get_len(30).unwrap();
    tail.append(pool.get_len(4).unwrap());
    first.append(tail);
    assert_eq!(first.segments().map(Buf::len).collect::<Vec<_>>(), [10, 20, 30, 4]);
    assert_eq!((first.packet_len(), pool.available(), other.available()), (64, 5, 1));
    let mut rest = first.take_next().unwrap();
    assert_eq!((first.packet_len(), rest.packet_len()), (10, 54));
    rest.clear();
    assert_eq!((rest.packet_len(), pool.available(), other.available()), (0, 6, 2));
    first.append(rest);
    // Through a cache, and in bulk, a chain comes home whole.
    let mut cache = pool.cache(2);
    cache.put(first);
    assert_eq!(pool.available(), 8);
    let mut bufs: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    bufs[1].append(other.get().unwrap());
    cache.put_bulk(&mut bufs);
    assert_eq!((pool.available() as usize + cache.len(), other.available()), (8, 2));
}

#[test]
fn what_is_quarantined_never_comes_home() {
    let pool = pool(3, 64);
    let mut first = pool.get().unwrap();
    first.append(pool.get().unwrap());
    assert_eq!(first.quarantine(), 2);
    assert_eq!((pool.available(), pool.get().unwrap().quarantine()), (1, 1));
    assert!(pool.get().is_none());
}

#[test]
fn bulks_of_several_pools_come_home() {
    let (a, b) = (pool(8, 64), pool(8, 64));
    let mut bufs = Vec::new();
    for i in 0..8 {
        bufs.push(if i % 3 == 0 { b.get().unwrap() } else { a.get().unwrap() });
    }
    bufs[4].append(b.get().unwrap());
    give_back(&mut bufs);
    assert_eq!((bufs.len(), a.available(), b.available()), (0, 8, 8));
}

#[test]
fn what_is_known_of_a_packet_is_forgotten_at_home() {
    let pool = pool(1, 64);
    let mut buf = pool.get().unwrap();
    assert_eq!((buf.hash(), buf.vlan(), buf.timestamp(), buf.offload()), (None, None, None, None));
    assert!(buf.is_plain());
    buf.set_hash(0xdead_beef);
    buf.set_vlan(Some(0x6123));
    buf.set_timestamp(u64::MAX);
    buf.set_checked(Checked::Good, Checked::Bad);
    assert_eq!((buf.hash(), buf.vlan(), buf.timestamp()), (Some(0xdead_beef), Some(0x6123), Some(u64::MAX)));
    assert_eq!(buf.checked(), (Checked::Good, Checked::Bad));
    buf.set_checked(Checked::Unknown, Checked::Good);
    assert_eq!(buf.checked(), (Checked::Unknown, Checked::Good));
    for l4 in [None, Some(L4::Tcp), Some(L4::Udp)] {
        let offload =
            Offload { l2_len: 127, l3_len: 511, l4_len: 60, ipv6: l4.is_none(), l3: true, l4, segment: 0xffff };
        buf.set_offload(Some(offload));
        assert_eq!((buf.offload(), buf.timestamp(), offload.l4_start()), (Some(offload), None, 638));
    }
    assert!(!buf.is_plain());
    buf.set_offload(None);
    buf.set_vlan(None);
    assert!(buf.is_plain() && buf.hash().is_some() && !buf.timesync());
    buf.set_timesync(true);
    assert!(buf.timesync() && !buf.is_plain() && buf.hash().is_some());
    buf.set_timesync(false);
    assert!(!buf.timesync() && buf.is_plain());
    buf.set_timesync(true);
    drop(buf);
    let buf = pool.get().unwrap();
    assert_eq!((buf.hash(), buf.checked(), buf.timesync()), (None, Default::default(), false));
}
