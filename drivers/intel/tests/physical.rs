//! The 82576 whose virtual functions are served, on a card that is played by hand: what they ask for by the mailbox, and what they get.

#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::Port;
use wholebar_intel::igb::{I82576Pf, IgbPf};

/// First words of requests and of answers to them, as Linux's `igbvf/mbx.h` has them.
const RESET: u32 = 1;
const SET_ADDRESS: u32 = 2;
const SET_GROUPS: u32 = 3;
const SET_VLAN: u32 = 4;
const ADD: u32 = 1 << 16;
const CONTROL: u32 = 0x100;
const DONE: u32 = 1 << 31;
const REFUSED: u32 = 1 << 30;
const CLEAR_TO_SEND: u32 = 1 << 29;
/// Bits of P2VMAILBOX.
const WRITTEN: u32 = 1;
const READ: u32 = 1 << 1;
const TAKEN: u32 = 1 << 3;

/// A card with two virtual functions.
fn served() -> Rig<I82576Pf> {
    let nic = FakeNic::new::<I82576Pf>();
    nic.inside().functions = 2;
    let device = nic.device();
    let port = IgbPf::open(device.clone(), small(), manual()).unwrap();
    let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
    Rig { port, pool: Pool::new(arena, BUFFERS, 1024, 64).unwrap(), nic, device }
}

/// Has virtual function `n` ask for something; the first word of the answer.
fn ask(rig: &Rig<I82576Pf>, n: u64, words: &[u32]) -> u32 {
    for (at, word) in (0..16).zip(words.iter().copied().chain(std::iter::repeat(0))) {
        rig.nic.set(MAILBOX + 0x40 * n + 4 * at, word);
    }
    // It has read the answer before this one.
    rig.nic.set(MBVFICR, 1 << n | 1 << (16 + n));
    rig.port.service().unwrap();
    assert_eq!(rig.nic.register(MBVFICR), 0, "the request is still there");
    rig.nic.register(MAILBOX + 0x40 * n)
}

fn vlan(rig: &Rig<I82576Pf>, n: u64, vlan: u32, on: bool) -> bool {
    let answer = ask(rig, n, &[SET_VLAN | if on { ADD } else { 0 }, vlan]);
    let [done, refused] = [DONE, REFUSED].map(|how| SET_VLAN | CLEAR_TO_SEND | how);
    assert!(answer == done || answer == refused, "{answer:#x}");
    answer == done
}

#[test]
fn a_virtual_function_has_no_more_than_its_share_of_the_vlans() {
    let rig = served();
    assert_eq!([0, 1].map(|n| ask(&rig, n, &[RESET])), [RESET | DONE; 2]);
    // 32 for three functions.
    assert_eq!((1..=40).filter(|id| vlan(&rig, 0, *id, true)).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    assert!(vlan(&rig, 0, 7, true), "it is in that one");
    // Of those that another one is in, too.
    assert_eq!((5..=40).filter(|id| vlan(&rig, 1, *id, true)).collect::<Vec<_>>(), (5..=14).collect::<Vec<_>>());
    // The physical one has its own still, and more where there is room.
    for id in 100..118 {
        rig.port.set_vlan(id, true).unwrap();
    }
    let entries = (0..32).map(|n| rig.nic.register(0x5d00 + 4 * n)).collect::<Vec<_>>();
    assert!(entries.iter().all(|entry| entry >> 31 == 1), "{entries:x?}");
    // Who leaves one may be in another, if there is room.
    assert!(!vlan(&rig, 0, 11, true) && vlan(&rig, 0, 1, false) && vlan(&rig, 0, 11, true));
    assert!(vlan(&rig, 0, 2, false) && vlan(&rig, 0, 20, true) && !vlan(&rig, 0, 21, true));
    // One that begins anew is in none.
    ask(&rig, 0, &[RESET]);
    assert!(vlan(&rig, 0, 30, true));
    // Alone with the physical one, it may have the half of them.
    rig.nic.inside().functions = 1;
    ask(&rig, 1, &[RESET]);
    (100..118).for_each(|id| rig.port.set_vlan(id, false).unwrap());
    assert_eq!((1..=40).filter(|id| vlan(&rig, 0, *id, true)).count(), 16);
}

/// Else it would wait for one in vain.
#[test]
fn an_answer_is_read_before_the_link_is_told() {
    let rig = served();
    // When it begins, the link comes up.
    assert_eq!(ask(&rig, 0, &[RESET]), RESET | DONE);
    rig.port.service().unwrap();
    assert_eq!(rig.nic.register(MAILBOX), RESET | DONE);
    rig.nic.set(MBVFICR, 1 << 16);
    rig.port.service().unwrap();
    assert_eq!((rig.nic.register(MAILBOX), rig.nic.register(MBVFICR)), (CONTROL | CLEAR_TO_SEND, 0));
    // The other one has not begun.
    assert_eq!(rig.nic.register(MAILBOX + 0x40), 0);
}

/// Linux's igbvf waits for no answer to what it says of groups, and asks for the next at once.
#[test]
fn nobody_else_has_the_mailbox_between_a_request_and_its_answer() {
    let rig = served();
    ask(&rig, 0, &[RESET]);
    rig.nic.inside().mailboxes.clear();
    assert_eq!(ask(&rig, 0, &[SET_GROUPS | ADD, 0x123]), SET_GROUPS | DONE | CLEAR_TO_SEND);
    let written = std::mem::take(&mut rig.nic.inside().mailboxes);
    assert_eq!(written, [(0, TAKEN), (0, READ | TAKEN), (0, TAKEN), (0, WRITTEN)]);
    assert_eq!(rig.nic.register(0x5200 + 4 * (0x123 >> 5)), 1 << (0x123 & 31));
}

/// What Linux's igbvf asks for whenever it sets its filters: to have no address besides its own. A further one it does not get.
#[test]
fn a_virtual_function_has_one_address() {
    let rig = served();
    ask(&rig, 1, &[RESET]);
    let [none, another] = [1, 2].map(|how| ask(&rig, 1, &[SET_ADDRESS | how << 16, 0x0000_0002, 0x0900]));
    assert_eq!((none, another), (SET_ADDRESS | DONE | CLEAR_TO_SEND, SET_ADDRESS | REFUSED | CLEAR_TO_SEND));
    assert_eq!(ask(&rig, 1, &[SET_ADDRESS, 0x0000_0002, 0x0900]), SET_ADDRESS | DONE | CLEAR_TO_SEND);
    // RAL(22) and RAH(22), for pool 1.
    assert_eq!([0x5510, 0x5514].map(|at| rig.nic.register(at)), [2, 1 << 31 | 1 << 19 | 0x0900]);
}
