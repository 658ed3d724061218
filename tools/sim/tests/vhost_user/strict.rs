//! What is no message, or comes at the wrong time, or names what isn't there: refused, by an answer or by the end of the connection.

use super::front::*;
use super::{RX, TX};
use std::os::fd::{AsFd, OwnedFd};

/// Whether a message is refused in both ways: answered so, where an answer is asked for, and the next message is answered too; or else the end.
fn refused(params: &str, rings: bool, request: u32, payload: &[u8], fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let begin = || {
        let mut front = Front::net(params);
        front.begin(0, P_MQ | P_CONFIG | P_STATUS);
        if rings {
            assert!(front.acknowledged(SET_STATUS, &15u64.to_ne_bytes(), &[]));
            front.ring(0, RX, 8);
            front.ring(1, TX, 8);
        }
        front
    };
    let mut front = begin();
    assert!(!front.acknowledged(request, payload, &fds), "request {request} with {payload:x?} is accepted");
    assert_eq!(front.ask(GET_FEATURES, &[]).len(), 8);
    let mut front = begin();
    front.tell(request, payload, &fds);
    assert!(!front.until(|_| false), "request {request} with {payload:x?} is let pass");
}

#[test]
fn what_is_no_good_request_is_refused() {
    let (memory, event, not) = (file(MEMORY), event(), file(8));
    let no_fd = |index: u64| (index | 1 << 8).to_ne_bytes();
    let good = region(0, MEMORY, 0);
    let slot = |region: Vec<u8>| [vec![0; 8], region].concat();
    // Sizes.
    for request in [SET_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK]
    {
        refused("", false, request, &[0; 7], &[]);
        refused("", false, request, &[0; 41], &[]);
    }
    for request in [SET_OWNER, RESET_DEVICE, SET_BACKEND_REQ_FD] {
        refused("", false, request, &[0], &[]);
    }
    refused("", false, SET_MEM_TABLE, &table(std::slice::from_ref(&good))[..39], &[&memory]);
    refused("", false, ADD_MEM_REG, &slot(good.clone())[..39], &[&memory]);
    // Descriptors: too few, too many, of the wrong kind, too short.
    refused("", false, SET_MEM_TABLE, &table(std::slice::from_ref(&good)), &[]);
    refused("", false, SET_MEM_TABLE, &table(std::slice::from_ref(&good)), &[&memory, &memory]);
    refused("", false, SET_MEM_TABLE, &table(std::slice::from_ref(&good)), &[&not]);
    refused("", false, SET_MEM_TABLE, &table(std::slice::from_ref(&good)), &[&event]);
    refused("", false, SET_MEM_TABLE, &table(&[]), &[&memory; 20]);
    refused("", false, SET_FEATURES, &VERSION_1.to_ne_bytes(), &[&memory]);
    refused("", false, SET_VRING_KICK, &0u64.to_ne_bytes(), &[]);
    refused("", false, SET_VRING_KICK, &no_fd(0), &[&event]);
    refused("", false, SET_VRING_KICK, &0u64.to_ne_bytes(), &[&not]);
    refused("", false, SET_VRING_CALL, &0u64.to_ne_bytes(), &[&not]);
    refused("", false, SET_VRING_ERR, &0u64.to_ne_bytes(), &[&memory]);
    refused("", false, SET_VRING_ERR, &0u64.to_ne_bytes(), &[&event, &event]);
    refused("", false, SET_BACKEND_REQ_FD, &[], &[]);
    refused("", false, SET_BACKEND_REQ_FD, &[], &[&event]);
    // Numbers.
    refused("", false, SET_FEATURES, &(1u64 << 26).to_ne_bytes(), &[]);
    refused("", false, SET_PROTOCOL_FEATURES, &(1u64 << 1).to_ne_bytes(), &[]);
    refused("", false, SET_VRING_NUM, &state(2, 8), &[]);
    refused("", false, SET_VRING_NUM, &state(0, 0), &[]);
    refused("", false, SET_VRING_NUM, &state(0, 65_536), &[]);
    refused("", false, SET_VRING_BASE, &state(u32::MAX, 0), &[]);
    refused("", false, SET_VRING_ENABLE, &state(0, 2), &[]);
    refused("", false, SET_VRING_ENABLE, &state(200, 1), &[]);
    refused("", false, SET_VRING_KICK, &no_fd(200), &[]);
    refused("", false, SET_VRING_KICK, &no_fd(1 << 9), &[]);
    refused("", false, SET_STATUS, &256u64.to_ne_bytes(), &[]);
    refused("", false, SET_CONFIG, &[words(&[250u32, 8, 0], 4), vec![0; 8]].concat(), &[]);
    refused("", false, SET_CONFIG, &[words(&[100u32, 8, 0], 4), vec![0; 8]].concat(), &[]);
    // Memory over itself, beyond 64 bits, of no bytes.
    refused("", false, ADD_MEM_REG, &slot(good.clone()), &[&memory]);
    refused("", false, ADD_MEM_REG, &slot(region(1 << 40, 0, 0)), &[&memory]);
    refused("", false, ADD_MEM_REG, &slot(region(1 << 40, 4096, u64::MAX)), &[&memory]);
    refused("", false, ADD_MEM_REG, &slot(region(1 << 40, 4096, MEMORY)), &[&memory]);
    refused("", false, REM_MEM_REG, &slot(region(1 << 40, 4096, 0)), &[]);
    // What is not spoken: logs, an MTU, in-band kicks, nothing at all.
    for request in [6, 7, 19, 20, 22, 23, 26, 28, 32, 33, 35, 42, 0, 44, u32::MAX] {
        refused("", false, request, &0u64.to_ne_bytes(), &[]);
    }
    // Order: twice the owner; changes of what runs.
    refused("", false, SET_OWNER, &[], &[]);
    refused("", true, SET_FEATURES, &(VERSION_1 | PACKED | PROTOCOL_FEATURES).to_ne_bytes(), &[]);
    refused("", true, SET_VRING_NUM, &state(0, 4), &[]);
    refused("", true, SET_VRING_BASE, &state(1, 4), &[]);
    refused("", true, SET_MEM_TABLE, &table(&[]), &[]);
}

#[test]
fn rings_that_can_not_be_are_refused_when_they_are_to_run() {
    type Change = fn(&mut Ring) -> Vec<u8>;
    let cases: [(u64, &str, Change); 6] = [
        (0, "not in memory", |ring| [ring.addresses(0, 0)[..8].to_vec(), words(&[1u64 << 50; 4], 8)].concat()),
        (0, "its end is not", |ring| {
            let mut at = ring.addresses(0, 0);
            at[16..24].copy_from_slice(&(USER + MEMORY - 64).to_ne_bytes());
            at
        }),
        (0, "not aligned", |ring| {
            let mut at = ring.addresses(0, 0);
            at[8] += 8;
            at
        }),
        (0, "no power of two", |ring| {
            ring.size = 12;
            ring.addresses(0, 0)
        }),
        (0, "larger than the device's", |ring| {
            ring.size = 512;
            ring.addresses(0, 0)
        }),
        (PACKED, "begins outside of itself", |ring| {
            ring.used = 9;
            ring.addresses(0, 0)
        }),
    ];
    for (features, what, make) in cases {
        let mut front = Front::net("");
        front.begin(features, P_MQ);
        let mut ring = Ring::new(&front, RX, 8);
        let addresses = make(&mut ring);
        assert!(front.acknowledged(SET_VRING_NUM, &state(0, ring.size.into()), &[]));
        assert!(front.acknowledged(SET_VRING_BASE, &state(0, ring.used.into()), &[]));
        assert!(front.acknowledged(SET_VRING_ADDR, &addresses, &[]));
        assert!(front.acknowledged(SET_VRING_KICK, &(1u64 << 8).to_ne_bytes(), &[]));
        assert!(!front.enable(0, true), "{what}");
        // It can be said better.
        assert!(front.enable(0, false));
        front.ring(0, RX, 8);
    }
    // A packed ring with buffers in flight, which nobody knows of here.
    let mut front = Front::net("");
    front.begin(PACKED, P_MQ);
    let ring = Ring::new(&front, RX, 8);
    front.describe(0, &ring, 0x8001_8003);
    assert!(!front.enable(0, true));
    // Flags of an address: nothing is logged.
    assert!(!front.acknowledged(SET_VRING_ADDR, &ring.addresses(0, 1), &[]));
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let message = |request, flags, size: u32| -> Vec<u8> {
        [words(&[request, flags, size], 4), vec![0; size.min(8) as usize]].concat()
    };
    for (bytes, agreed) in [
        (message(GET_FEATURES, 0, 0), true),
        (message(GET_FEATURES, 2, 0), true),
        (message(GET_FEATURES, VERSION | 4, 0), true),
        (message(GET_FEATURES, VERSION | 16, 0), true),
        (message(GET_FEATURES, VERSION, 8), true),
        (message(SET_FEATURES, VERSION, 1 << 20), true),
        (message(SET_FEATURES, VERSION, u32::MAX), true),
        (message(SET_OWNER, VERSION | NEED_REPLY, 0), false),
        (message(GET_VRING_BASE, VERSION, 8)[..16].to_vec(), true),
    ] {
        let mut front = Front::blk("size=1M");
        if agreed {
            front.tell(SET_PROTOCOL_FEATURES, &P_REPLY_ACK.to_ne_bytes(), &[]);
        }
        assert!(send(&front.stream, &bytes, &[]));
        let _ = front.stream.shutdown(std::net::Shutdown::Write);
        assert!(!front.until(|_| false), "{bytes:x?}");
        assert_eq!(receive(&front.stream), None, "{bytes:x?} is answered");
    }
    // A configuration that isn't there has an empty answer: so says the specification.
    let mut front = Front::blk("size=1M");
    for (offset, size, len) in [(250u32, 8u32, 8), (0, 9, 8), (0, 300, 300)] {
        assert_eq!(front.ask(GET_CONFIG, &[words(&[offset, size, 0], 4), vec![0; len]].concat()), Vec::<u8>::new());
    }
}

/// Features that go by the control queue, or need what only a bus has, are not the back end's to offer.
#[test]
fn what_is_offered_is_what_a_back_end_has() {
    let mut front = Front::net("queues=4");
    let offered = u64_of(&front.ask(GET_FEATURES, &[]));
    for bit in [17, 18, 19, 20, 21, 23, 2, 26, 33, 36, 37, 38, 57, 60] {
        assert_eq!(offered >> bit & 1, 0, "feature {bit}");
    }
    for bit in [0, 5, 15, 16, 22, 28, 29, 30, 32, 34, 35, 40] {
        assert_eq!(offered >> bit & 1, 1, "feature {bit}");
    }
    let name = "sim:virtio-blk,queues=4,vectors=2";
    let params = wholebar_sim::virtio::blk::BlkParams::parse("queues=4,vectors=2").unwrap();
    let model = wholebar_sim::virtio::blk::model(params).unwrap().named(name);
    let error = wholebar_core::vhost_user::Server::connect("/nowhere", model).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("2 MSI-X vectors for 4 queues"), "{error}");
}
