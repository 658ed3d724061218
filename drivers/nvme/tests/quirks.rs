//! Controllers that break rules, as the bundled model plays them: what becomes of each without its quirk, and that the driver knows it by its ids.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Data, Op, Reject, Status};
use wholebar_nvme::{Error, Nvme, Options, Protection, QueueOptions, Quirk, SecurityProtocol};

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
    assert!(known.nvme.quirks().contains(&Quirk::NoDescriptors));
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
    let [single, long, shared, old] = [Quirk::OneVector, Quirk::LongEntries, Quirk::SharedTags, Quirk::IdentifyOldOnly];
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
        let sent = (0..=capacity).take_while(|tag| queue.submit(request(*tag, Op::Flush, Data::None)).is_ok()).count();
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

/// Bytes that start in the middle of a page and whose parts meet inside of pages: an SGL describes them in one command, where there are SGLs.
#[test]
fn sgls_that_are_refused_are_not_used() {
    let target = "sim:nvme,size=16M,sgl=1,quirk=sgls";
    let rig1 = rig(target);
    assert_eq!((rig1.nvme.quirks(), rig1.nvme.identify().sgl_alignment()), (&[Quirk::NoSgls][..], None));
    works(&rig1);
    ok(&mut rig1.queue(), Op::Read { lba: 0 }, Data::One(rig1.buf(65536)));
    let rig2 = rig_with(target, unknown());
    // One descriptor for what would take a list of pages.
    assert!(matches!(
        run(&mut rig2.queue(), Op::Read { lba: 0 }, Data::One(rig2.buf(65536))).status,
        Status::Device(_)
    ));
}

/// Counted by the model: commands that read 8 KiB of data, which the limit is, with their metadata between them.
#[test]
fn metadata_is_no_part_of_a_limit_of_data() {
    for (options, commands) in [(patient(), 1), (unknown(), 2)] {
        for pif in ["ms=8", "ms=64"] {
            let rig = rig_with(&format!("sim:nvme,size=16M,{pif},mset=1,mdts=1,quirk=limit"), options.clone());
            let size = 512 + rig.nvme.namespaces()[0].metadata_size as usize;
            let mut queue = rig.queue();
            let mut transfer = |op, buf| {
                queue.submit_with_metadata(request(1, op, Data::One(buf)), Protection::none()).unwrap();
                queue.ring();
                let done = wait(&mut queue, 1).pop().unwrap();
                assert_eq!(done.status, Status::Ok);
                one(done.data)
            };
            transfer(Op::Write { lba: 3 }, rig.pattern(16 * size as u32, 9));
            let before = rig.nvme.smart().unwrap().reads;
            let back = transfer(Op::Read { lba: 3 }, rig.buf(16 * size as u32));
            assert!(back.bytes() == pattern(16 * size, 9));
            assert_eq!(rig.nvme.smart().unwrap().reads - before, commands, "{pif}");
        }
    }
}

#[test]
fn the_admin_queue_has_whole_pages() {
    let known = rig("sim:nvme,size=16M,quirk=admin64");
    assert_eq!(known.nvme.quirks(), [Quirk::WholeAdminPages]);
    // Around that queue.
    assert!((0..200).all(|_| known.nvme.smart().is_ok()));
    works(&known);
    assert!(matches!(opened("sim:nvme,size=16M,quirk=admin64", unknown()).err(), Some(Error::Fatal { .. })));
}

#[test]
fn a_shutdown_whose_end_is_not_told_ends() {
    let target = open("sim:nvme,size=16M,quirk=shutdown");
    let short = |options: Options| Options { admin_timeout: std::time::Duration::from_millis(300), ..options };
    let known = Nvme::open(target.model.clone(), short(patient())).unwrap();
    assert_eq!(known.quirks(), [Quirk::ShutdownNotTold]);
    known.shutdown().unwrap();
    let other = Nvme::open(target.model.clone(), short(unknown())).unwrap();
    let late = other.shutdown().err();
    assert!(matches!(late, Some(Error::Core(wholebar_core::Error::NotReady { .. }))), "{late:?}");
}

#[test]
fn what_is_offered_and_not_there_is_left_out() {
    let of = SecurityProtocol::default();
    let known = rig("sim:nvme,size=16M,quirk=security");
    assert_eq!((known.nvme.quirks(), known.nvme.identify().has_security()), (&[Quirk::NoSecurity][..], false));
    assert!(matches!(known.nvme.security_receive(of, 512), Err(Error::NotOffered { .. })));
    let other = rig_with("sim:nvme,size=16M,quirk=security", unknown());
    assert!(matches!(other.nvme.security_receive(of, 512), Err(Error::Refused { .. })));
    let known = rig("sim:nvme,size=16M,quirk=subnqn");
    assert_eq!((known.nvme.quirks(), &known.nvme.identify().subsystem[..]), (&[Quirk::NoSubsystemName][..], ""));
    let names = ["A", "B"].map(|serial| {
        let nvme = opened(&format!("sim:nvme,size=16M,quirk=subnqn,serial={serial}"), unknown()).unwrap();
        nvme.identify().subsystem.clone()
    });
    assert!(!names[0].is_empty() && names[0] == names[1], "{names:?}");
}

/// Queues whose commands all have lists, each in a place of its own.
#[test]
fn lists_begin_where_they_have_to() {
    let lists = |rig: &Rig| {
        let mut queue = rig.nvme.queue(QueueOptions { entries: Some(16), ..QueueOptions::default() }).unwrap();
        for tag in 0..15 {
            queue.submit(request(tag, Op::Write { lba: tag * 128 }, Data::One(rig.pattern(65536, tag)))).unwrap();
        }
        queue.ring();
        wait(&mut queue, 15).iter().filter(|done| done.status == Status::Ok).count()
    };
    let known = rig("sim:nvme,size=16M,quirk=lists");
    assert_eq!((known.nvme.quirks(), lists(&known)), (&[Quirk::AlignedLists][..], 15));
    // Every other one is aligned by chance.
    assert_eq!(lists(&rig_with("sim:nvme,size=16M,quirk=lists", unknown())), 8);
}

#[test]
fn who_breaks_no_rule_has_no_quirks() {
    assert_eq!(rig("sim:nvme,size=16M").nvme.quirks(), []);
}
