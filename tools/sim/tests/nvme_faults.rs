//! Faults: each kind does what it says, when it says, and the same every time.

mod common;

use common::{CC, CSTS, Cmd, Done, PAGE, Pair, Rig};
use wholebar_core::pci::{CONFIG, PciDevice};

const READ: u8 = 2;

/// Submits `n` reads with command ids from 1 on, and collects what comes back.
fn reads(rig: &Rig, q: &mut Pair, n: u16) -> Vec<Done> {
    let buf = rig.memory(PAGE);
    let at = rig.at(&buf);
    let mut done = Vec::new();
    for cid in 1..=n {
        q.post(Cmd::rw(READ, 0, 1).prp(at, 0).words(cid));
        rig.ring_pair(q);
        rig.settle();
        while let Some(d) = q.take() {
            done.push(d);
        }
        rig.ring_pair(q);
    }
    done
}

fn cids(done: &[Done]) -> Vec<u16> {
    done.iter().map(|d| d.cid).collect()
}

fn with(faults: &str) -> (Rig, Pair) {
    let mut rig = Rig::new(&format!("size=1M,faults={faults},seed=3,delay=0"));
    let q = rig.pair(1, 16);
    (rig, q)
}

#[test]
fn a_dropped_completion_never_comes() {
    let (rig, mut q) = with("drop:@3");
    assert_eq!(cids(&reads(&rig, &mut q, 5)), [1, 2, 4, 5]);
}

#[test]
fn a_duplicate_comes_twice() {
    let (rig, mut q) = with("dup:@3");
    assert_eq!(cids(&reads(&rig, &mut q, 4)), [1, 2, 3, 3, 4]);
}

#[test]
fn duplicates_never_overrun_the_completion_queue() {
    let mut rig = Rig::new("size=1M,faults=dup:1/1");
    let mut q = rig.pair(1, 4);
    let buf = rig.memory(PAGE);
    for cid in 1..=3 {
        q.post(Cmd::rw(READ, 0, 1).prp(rig.at(&buf), 0).words(cid));
    }
    rig.ring_pair(&q);
    rig.settle();
    let mut done = Vec::new();
    while let Some(d) = q.take() {
        done.push(d);
    }
    // Three entries can be used: two commands were fetched, and the second copy of the second found no room.
    assert_eq!(cids(&done), [1, 1, 2]);
    rig.ring_pair(&q);
    rig.settle();
    assert_eq!(q.take().map(|d| d.cid), Some(3));
}

#[test]
fn a_wrong_id_is_not_the_commands() {
    let (rig, mut q) = with("id:@2");
    let done = reads(&rig, &mut q, 3);
    assert_eq!(done.len(), 3);
    assert_ne!(done[1].cid, 2);
    assert_eq!((done[0].cid, done[2].cid), (1, 3));
}

#[test]
fn a_wrong_phase_hides_what_follows() {
    let (rig, mut q) = with("phase:@3");
    assert_eq!(cids(&reads(&rig, &mut q, 5)), [1, 2]);
}

#[test]
fn a_bad_head_is_outside_of_the_queue() {
    let (rig, mut q) = with("head:@2");
    let done = reads(&rig, &mut q, 3);
    assert!(done[1].sq_head >= 16, "{done:?}");
    assert!(done[0].sq_head < 16 && done[2].sq_head < 16);
}

#[test]
fn a_corrupt_status_is_an_error_of_some_kind() {
    let (rig, mut q) = with("corrupt:@2");
    let done = reads(&rig, &mut q, 3);
    assert_ne!(done[1].status, 0);
    assert_eq!((done[0].status, done[2].status), (0, 0));
}

#[test]
fn wild_dma_is_a_data_transfer_error() {
    let (rig, mut q) = with("dma:@2");
    let codes: Vec<_> = reads(&rig, &mut q, 3).iter().map(Done::code).collect();
    assert_eq!(codes, [0, 4, 0]);
}

#[test]
fn a_delayed_command_comes_later_and_can_be_aborted() {
    let (rig, mut q) = with("delay:@1");
    // Its time has come at the next poll.
    assert_eq!(cids(&reads(&rig, &mut q, 2)), [1, 2]);

    let mut rig = Rig::new("size=1M,faults=delay:@1,delay=60000");
    let mut q = rig.pair(1, 16);
    assert_eq!(cids(&reads(&rig, &mut q, 2)), [2]);
    assert_eq!(rig.admin(Cmd::new(0x08).dw10(2 << 16 | 1)).dw0, 1, "2 is done already");
    assert_eq!(rig.admin(Cmd::new(0x08).dw10(1 << 16 | 1)).dw0, 0);
    rig.settle();
    let done = q.take().expect("the aborted command");
    assert_eq!((done.cid, done.code()), (1, 7));
}

#[test]
fn a_delayed_command_of_a_deleted_queue_is_forgotten() {
    let mut rig = Rig::new("size=1M,faults=delay:@1,delay=60000");
    let mut q = rig.pair(1, 16);
    assert!(reads(&rig, &mut q, 1).is_empty());
    assert_eq!(rig.admin(Cmd::new(0x00).dw10(1)).status, 0);
    assert_eq!(rig.admin(Cmd::new(0x08).dw10(1 << 16 | 1)).dw0, 1, "there is nothing to abort");
}

#[test]
fn a_fatal_controller_says_so_and_recovers_by_reset() {
    let (mut rig, mut q) = with("fatal:@2");
    assert_eq!(cids(&reads(&rig, &mut q, 3)), [1]);
    assert_eq!(rig.read32(CSTS), 3);
    rig.disable();
    rig.enable();
    let mut q = rig.pair(1, 16);
    assert_eq!(cids(&reads(&rig, &mut q, 2)), [1, 2]);
}

#[test]
fn a_hanging_reset_ends_by_function_level_reset() {
    let mut rig = Rig::off("faults=hang:@2");
    rig.enable();
    rig.write32(CC, 0);
    rig.settle();
    assert_eq!(rig.read32(CSTS), 1, "still ready");
    rig.device.reset().unwrap();
    assert_eq!(rig.read32(CSTS), 0);
    rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    rig.enable();
}

#[test]
fn what_vanished_is_all_ones() {
    let (mut rig, mut q) = with("vanish:@3");
    assert_eq!(cids(&reads(&rig, &mut q, 5)), [1, 2]);
    assert_eq!(rig.read64(0), u64::MAX);
    assert_eq!(rig.read32(CSTS), u32::MAX);
    rig.write32(CC, 0);
    rig.settle();
    assert_eq!(rig.read32(CC), u32::MAX);
    rig.device.reset().unwrap();
    assert_eq!(rig.read32(CSTS), u32::MAX);
    let mut id = [0; 4];
    rig.device.read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xff; 4]);
    assert_eq!(rig.try_admin(Cmd::new(0x06).dw10(1)), None);
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let n = if cfg!(miri) { 40 } else { 2000 };
    let run = |seed: u32| {
        let mut rig = Rig::new(&format!("size=1M,faults=drop:1/10+dup:1/20+corrupt:1/7,seed={seed}"));
        let mut q = rig.pair(1, 16);
        reads(&rig, &mut q, n)
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
}

#[test]
fn faults_strike_the_commands_they_are_asked_to() {
    let mut rig = Rig::new("faults=corrupt:1/1,strike=admin");
    assert_ne!(rig.admin(Cmd::new(0x0a).dw10(7)).status, 0);
    let mut rig = Rig::new("faults=corrupt:1/1,strike=io");
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(7)).status, 0);
}
