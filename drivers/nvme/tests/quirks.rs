//! Controllers that break rules, as the bundled model plays them: what becomes of each without its quirk, and that the driver knows it by its ids.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Data, Op, Reject, Status};
use wholebar_nvme::{Error, Nvme, Options, QueueOptions, Quirk};

/// As one is opened of which nothing is known.
fn unknown() -> Options {
    Options { quirks: Some(Vec::new()), ..patient() }
}

fn opened(target: &str, options: Options) -> Result<Nvme, Error> {
    Nvme::open(open(target).model.clone(), options)
}

/// Reads and writes data.
fn works(rig: &Rig) {
    let mut queue = rig.nvme.queue(QueueOptions { interrupt: None, ..QueueOptions::default() }).unwrap();
    ok(&mut queue, Op::Write { lba: 5 }, Data::One(rig.pattern(8192, 5)));
    let back = one(ok(&mut queue, Op::Read { lba: 5 }, Data::One(rig.buf(8192))));
    assert!(back.bytes() == pattern(8192, 5));
}

#[test]
fn a_controller_is_left_alone_after_it_was_disabled() {
    let rig = rig("sim:nvme,size=16M,quirk=ready");
    assert_eq!(rig.nvme.quirks(), [Quirk::DelayBeforeReady]);
    rig.nvme.reset().unwrap();
    works(&rig);
    let hasty = rig_with("sim:nvme,size=16M,quirk=ready", unknown());
    assert!(hasty.nvme.reset().is_err(), "it does not come up");
}

#[test]
fn identify_is_asked_for_what_it_knows() {
    let known = rig("sim:nvme,size=16M,ns=3,quirk=cns");
    assert!(known.nvme.quirks().contains(&Quirk::IdentifyOldOnly));
    let found: Vec<_> = known.nvme.namespaces().iter().map(|ns| (ns.nsid, ns.blocks)).collect();
    assert_eq!(found, [1, 2, 3].map(|nsid| (nsid, 32768)));
    works(&known);
    // What it answers instead is the controller's own structure, which is no list of namespaces.
    let fooled = opened("sim:nvme,size=16M,ns=3,quirk=cns", unknown());
    assert!(fooled.is_err() || fooled.is_ok_and(|nvme| nvme.namespaces().len() != 3));
}

#[test]
fn descriptors_that_are_not_answered_are_not_asked_for() {
    let known = rig("sim:nvme,size=16M,quirk=descriptors");
    assert_eq!(known.nvme.quirks(), [Quirk::NoDescriptors]);
    assert_eq!(known.nvme.namespaces()[0].uuid, None);
    works(&known);
    let admin_timeout = std::time::Duration::from_millis(300);
    let waits = opened("sim:nvme,size=16M,quirk=descriptors", Options { admin_timeout, ..unknown() });
    assert!(matches!(waits.err(), Some(Error::Unanswered { .. })));
}

#[test]
fn write_zeroes_that_fails_is_not_used() {
    let zeroes = Op::WriteZeroes { lba: 0, blocks: 8 };
    let rig1 = rig("sim:nvme,size=16M,quirk=zeroes");
    assert!(!rig1.nvme.identify().has_write_zeroes());
    let rejected = rig1.queue().submit(request(1, zeroes, Data::None)).unwrap_err();
    assert!(matches!(rejected.why, Reject::Invalid(_)));
    let rig2 = rig_with("sim:nvme,size=16M,quirk=zeroes", unknown());
    assert!(matches!(run(&mut rig2.queue(), zeroes, Data::None).status, Status::Device(_)));
}

/// Counted by the model: commands that read.
#[test]
fn requests_are_cut_at_stripes() {
    for (options, commands) in [(patient(), 2), (unknown(), 1)] {
        let rig = rig_with("sim:nvme,size=16M,mdts=6,quirk=stripe", options);
        let mut queue = rig.queue();
        let before = rig.nvme.smart().unwrap().reads;
        // The first half before a boundary of 128 KiB, the other behind it.
        ok(&mut queue, Op::Read { lba: 256 - 64 }, Data::One(rig.buf(64 << 10)));
        assert_eq!(rig.nvme.smart().unwrap().reads - before, commands);
    }
}

#[test]
fn addresses_have_48_bits() {
    let rig1 = rig("sim:nvme,size=16M,quirk=dma48");
    assert_eq!(rig1.nvme.quirks(), [Quirk::Dma48]);
    assert_eq!(rig1.nvme.device().dma().dma_mask(), 48);
    works(&rig1);
    let rig2 = rig_with("sim:nvme,size=16M,quirk=dma48", unknown());
    assert_eq!(rig2.nvme.device().dma().dma_mask(), 64);
}

#[test]
fn queues_are_short_and_interrupts_one() {
    let rig1 = rig("sim:nvme,size=16M,quirk=entries");
    assert_eq!((rig1.nvme.max_entries(), rig1.nvme.interrupts().map(|all| all.count())), (2, Some(1)));
    let own = rig1.nvme.queue(QueueOptions { interrupt: Some(1), ..QueueOptions::default() });
    assert!(matches!(own.err(), Some(Error::Vector { count: 1, .. })));
    works(&rig1);
    let rig2 = rig_with("sim:nvme,size=16M,quirk=entries", unknown());
    assert!(matches!(rig2.nvme.queue(QueueOptions::default()).err(), Some(Error::Refused { .. })));
}

#[test]
fn identifiers_that_are_not_unique_are_left_out() {
    let rig1 = rig("sim:nvme,size=16M,ns=2,quirk=identifiers");
    assert!(rig1.nvme.namespaces().iter().all(|ns| ns.uuid.is_none()));
    works(&rig1);
    let rig2 = rig_with("sim:nvme,size=16M,ns=2,quirk=identifiers", unknown());
    let all = rig2.nvme.namespaces();
    assert!(all[0].uuid.is_some() && all[0].uuid == all[1].uuid);
}

/// Entries of 128 bytes, in a queue that shares its identifiers with the admin queue.
#[test]
fn entries_are_long_and_identifiers_shared() {
    let rig1 = rig("sim:nvme,size=16M,ns=2,quirk=entries128");
    let [single, long, shared, old] =
        [Quirk::OneVector, Quirk::LongEntries, Quirk::SharedTags, Quirk::IdentifyOldOnly];
    assert_eq!(rig1.nvme.quirks(), [single, long, shared, old]);
    assert_eq!((rig1.nvme.io_queues(), rig1.nvme.namespaces().len()), (1, 2));
    for entries in [2, 64, 128] {
        let mut queue = rig1.nvme.queue(QueueOptions { entries: Some(entries), ..QueueOptions::default() }).unwrap();
        // All but the admin queue's, and the entry that is always empty.
        assert_eq!((queue.capacity(), queue.in_flight()), (entries.max(64) as usize - 33, 0));
        // Several times around the queue, in batches, and through a reset.
        for round in 0..3u64 {
            for first in (0..120).step_by(30) {
                for tag in first..first + 30 {
                    let data = Data::One(rig1.pattern(512, round << 32 | tag));
                    queue.submit(request(tag, Op::Write { lba: tag }, data)).unwrap();
                }
                queue.ring();
                assert!(wait(&mut queue, 30).iter().all(|done| done.status == Status::Ok));
            }
            reset_polling(&rig1.nvme, &mut queue);
            for lba in 0..120 {
                let back = one(ok(&mut queue, Op::Read { lba }, Data::One(rig1.buf(512))));
                assert!(back.bytes() == pattern(512, round << 32 | lba), "{lba}");
            }
        }
        // More than there are identifiers: the rest is refused, and comes back.
        let capacity = queue.capacity() as u64;
        let sent = (0..=capacity)
            .take_while(|tag| queue.submit(request(*tag, Op::Flush, Data::None)).is_ok())
            .count();
        queue.ring();
        assert_eq!((sent as u64, wait(&mut queue, sent).len()), (capacity, sent));
        // Admin commands go around their identifiers meanwhile.
        assert!((0..100).all(|_| rig1.nvme.smart().is_ok()));
    }
    works(&rig1);
    // Each of the two makes the difference.
    let without = |quirks: &[Quirk]| {
        opened("sim:nvme,size=16M,quirk=entries128", Options { quirks: Some(quirks.into()), ..patient() })
    };
    let short = without(&[single, shared, old]).unwrap().queue(QueueOptions::default()).err();
    assert!(matches!(short, Some(Error::Refused { command: "Create I/O Submission Queue", .. })), "{short:?}");
    let alone = without(&[single, long, old]).err();
    assert!(matches!(alone, Some(Error::Fatal { .. })), "{alone:?}");
}

#[test]
fn who_breaks_no_rule_has_no_quirks() {
    assert_eq!(rig("sim:nvme,size=16M").nvme.quirks(), []);
}
