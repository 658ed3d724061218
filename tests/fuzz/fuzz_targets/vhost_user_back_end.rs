//! A vhost-user back end with a front end that says anything: no panic, no hang, and nothing outside of the memory that was shared.
//!
//! The input's first byte says which model, which layout, and whether things begin as they should; then comes a row of steps: messages made up of the
//! input, rings described well but for what the input says of them, memory written, taken away or put elsewhere, kicks.
#![no_main]

#[path = "../../../tools/sim/tests/vhost_user/front.rs"]
#[allow(dead_code)]
mod front;

use front::*;
use libfuzzer_sys::fuzz_target;
use std::os::fd::{AsFd, BorrowedFd};

/// Takes bytes off the input's front; zeros behind its end.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let n = N.min(rest.len());
    bytes[..n].copy_from_slice(&rest[..n]);
    *rest = &rest[n..];
    bytes
}

fn slice<'a>(rest: &mut &'a [u8], len: u8) -> &'a [u8] {
    let (bytes, more) = rest.split_at(rest.len().min(len.into()));
    *rest = more;
    bytes
}

/// Says something, and reads what is answered after some polls.
fn say(front: &mut Front, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    if front.is_connected() {
        send(&front.stream, &message(request, flags, payload), fds);
    }
    polls(front, 4);
}

fn polls(front: &mut Front, n: usize) {
    for _ in 0..n {
        front.step();
    }
    while receive(&front.stream).is_some() {}
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let [start] = take(&mut rest);
    let mut front =
        if start & 1 == 0 { Front::net("queues=2,entries=16") } else { Front::blk("size=64K,queues=4,entries=16") };
    front.features = VERSION_1 | PROTOCOL_FEATURES | if start & 2 != 0 { PACKED } else { 0 };
    if start & 4 == 0 {
        let (features, memory) = (front.features, front.memory.try_clone().unwrap());
        let protocol = P_REPLY_ACK | P_MQ | P_CONFIG | P_BACKEND_REQ | if start & 1 == 0 { 0 } else { P_INFLIGHT };
        say(&mut front, SET_PROTOCOL_FEATURES, VERSION, &protocol.to_ne_bytes(), &[]);
        say(&mut front, SET_FEATURES, VERSION, &features.to_ne_bytes(), &[]);
        say(&mut front, SET_MEM_TABLE, VERSION, &table(&[region(0, MEMORY, 0)]), &[memory.as_fd()]);
    }
    let (eventfd, not) = (event(), file(64));
    while !rest.is_empty() && front.is_connected() {
        let [step, index] = take(&mut rest);
        let (ring, flags) = (u32::from(index % 5), VERSION | u32::from(step >> 4 & NEED_REPLY as u8));
        match step % 8 {
            0 => {
                let [fds, len] = take(&mut rest);
                let payload = slice(&mut rest, len);
                let memory = front.memory.try_clone().unwrap();
                let fds: Vec<_> = (0..fds & 3)
                    .map(|_| [memory.as_fd(), eventfd.as_fd(), not.as_fd()][usize::from(fds >> 2) % 3])
                    .collect();
                say(&mut front, u32::from(index % 46), flags | u32::from(step >> 3 & 1) << 6, payload, &fds);
            }
            // A ring, with a size, a base and an address of the input's.
            1 => {
                let [size, a, b, c, d, at] = take(&mut rest);
                let new = Ring::new(&front, u64::from(at) << 14, 1 << (size % 6));
                say(&mut front, SET_VRING_NUM, flags, &state(ring, new.size.into()), &[]);
                say(&mut front, SET_VRING_BASE, flags, &state(ring, u32::from_ne_bytes([a, b, c, d])), &[]);
                say(&mut front, SET_VRING_ADDR, flags, &new.addresses(ring, 0), &[]);
                say(&mut front, SET_VRING_CALL, flags, &u64::from(ring).to_ne_bytes(), &[eventfd.as_fd()]);
                say(&mut front, SET_VRING_KICK, flags, &u64::from(ring).to_ne_bytes(), &[eventfd.as_fd()]);
                say(&mut front, SET_VRING_ENABLE, flags, &state(ring, 1), &[]);
            }
            2 => {
                let [low, high, len] = take(&mut rest);
                let bytes = slice(&mut rest, len);
                let at = u64::from(u16::from_ne_bytes([low, high])) * 16;
                let _ = rustix::io::pwrite(&front.memory, bytes, at.min(MEMORY - 256));
            }
            3 => {
                let _ = rustix::io::write(&eventfd, &1u64.to_ne_bytes());
            }
            4 => {
                let [n, ..] = take::<1>(&mut rest);
                let memory = front.memory.try_clone().unwrap();
                let regions: Vec<_> = (0..n % 10)
                    .map(|_| {
                        let [guest, size, user, offset] = take(&mut rest);
                        let at = |page: u8| u64::from(page) << 14;
                        words(&[GUEST + at(guest), at(size), USER + at(user), at(offset)], 8)
                    })
                    .collect();
                let fds: Vec<_> = regions.iter().map(|_| memory.as_fd()).collect();
                say(&mut front, SET_MEM_TABLE, flags, &table(&regions), &fds);
            }
            5 if step & 0x80 != 0 => {
                let _ = rustix::fs::ftruncate(&front.memory, u64::from(index) << 12);
            }
            // A record of what is in flight, over whatever the memory has there.
            5 => {
                let [queues, entries, at] = take(&mut rest);
                let (memory, place) = (front.memory.try_clone().unwrap(), [64 << 10, u64::from(at) << 10]);
                let payload = [words(&place, 8), words(&[u16::from(queues), u16::from(entries), 0, 0], 2)].concat();
                say(&mut front, SET_INFLIGHT_FD, flags, &payload, &[memory.as_fd()]);
            }
            6 => say(&mut front, GET_VRING_BASE, VERSION, &state(ring, 0), &[]),
            _ => {
                let features = front.features ^ 1 << (index % 64);
                say(&mut front, SET_FEATURES, flags, &features.to_ne_bytes(), &[]);
            }
        }
        polls(&mut front, 16);
    }
});
