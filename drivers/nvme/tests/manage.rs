//! What is done to a controller besides I/O: commands of the program's own, log pages, features, formats, sanitizing, self-tests, firmware, security
//! protocols, namespaces that come and go; on the bundled model.
#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::block::{Data, Op, Reject, Status};
use wholebar_nvme::feature::{self, Select};
use wholebar_nvme::{
    BlockRange, CommitAction, DatasetAttributes, Error, Format, IdentifyRequest, LogRequest, NewNamespace, Options,
    RawCommand, Sanitize, SanitizeAction, SecurityProtocol, SelfTest, StatusCode, Transfer,
};

fn named(status: Status) -> Option<&'static str> {
    let Status::Device(code) = status else { return None };
    StatusCode(code).name()
}

/// The name of the status that the controller refused a command with.
fn refused<T: std::fmt::Debug>(done: Result<T, Error>) -> Option<&'static str> {
    let Err(Error::Refused { status, .. }) = done else { panic!("{done:?}") };
    status.name()
}

fn identify(cns: u32) -> RawCommand {
    RawCommand { opcode: 0x06, cdw10: cns, ..RawCommand::default() }
}

#[test]
fn raw_admin_commands_bring_status_result_and_data() {
    for target in ["sim:nvme,serial=RAW7", "sim:nvme,serial=RAW7,mps=16k-64k,page=64k", "sim:nvme,serial=RAW7,shadow=1"]
    {
        let rig = rig(target);
        let mut page = [0xff; 4096];
        let done = rig.nvme.admin_command(&identify(1), Transfer::Read(&mut page), None).unwrap();
        assert!(done.status.is_success());
        assert_eq!(&page[4..24], b"RAW7                ");
        let set = RawCommand { opcode: 0x09, cdw10: 0x04, cdw11: 350, ..RawCommand::default() };
        rig.nvme.admin_command(&set, Transfer::None, None).unwrap();
        let get = RawCommand { opcode: 0x0a, ..set };
        assert_eq!(rig.nvme.admin_command(&get, Transfer::None, None).unwrap().result, 350);
        let unknown = RawCommand { opcode: 0xc1, cdw15: 7, ..RawCommand::default() };
        let done = rig.nvme.admin_command(&unknown, Transfer::Write(&[1; 64]), None).unwrap();
        assert_eq!(done.status.name(), Some("Invalid Command Opcode"));
        // What its dwords 2, 3, 14 and 15 were is not there for the next.
        assert_eq!(rig.nvme.smart().unwrap().temperature, 313);
    }
}

/// Whatever length a command's dwords have, neither the program's other memory nor the driver's is written, and the controller finds all that it writes.
#[test]
fn a_command_that_says_more_than_it_has_harms_nothing() {
    let rig = rig("sim:nvme,size=16M,mdts=0");
    let mut queue = rig.queue();
    let len = 4u64 << 20;
    // Blocks without a zero, and a buffer of the program's in the same address space that has another pattern.
    for lba in (0..len / 512).step_by(128) {
        ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(65536, 1 + lba)));
    }
    let mut bystanders: Vec<_> = (0..90).map(|i| rig.pattern(65536, 7000 + i)).collect();
    for data_len in [0, 4, 512, 4096, 4100, 8192, 8196, 65536, 1 << 20] {
        for blocks in [1, 8, 9, 16, 17, 64, 128, 2048, 8192] {
            let read = RawCommand { opcode: 0x02, nsid: 1, cdw12: blocks - 1, ..RawCommand::default() };
            let mut data = vec![0xaa; data_len];
            let transfer = if data_len == 0 { Transfer::None } else { Transfer::Read(&mut data) };
            let done = queue.execute(&read, transfer, None).unwrap();
            assert!(done.status.is_success(), "{data_len} bytes, {blocks} blocks: {}", done.status);
            let sure = data_len.min(blocks as usize * 512);
            let want: Vec<u8> = (0..).step_by(128).flat_map(|lba| pattern(65536, 1 + lba)).take(sure).collect();
            // A short command fills what it has; the rest is zeros. One that is too long has its first pages right.
            let right = if blocks as usize * 512 <= data_len.next_multiple_of(4096) { sure } else { sure.min(4096) };
            assert!(data[..right] == want[..right], "{data_len} bytes, {blocks} blocks");
            if sure < data_len {
                assert!(data[sure..].iter().all(|byte| *byte == 0), "{data_len} bytes, {blocks} blocks");
            }
        }
    }
    for (i, buf) in bystanders.iter_mut().enumerate() {
        assert!(buf.bytes() == pattern(65536, 7000 + i as u64), "buffer {i}");
    }
    // The queue and the admin queue go on.
    let read = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(512))));
    assert!(read.bytes() == pattern(65536, 1)[..512].to_vec());
    assert!(rig.nvme.error_log().unwrap().is_empty());
}

#[test]
fn what_could_write_elsewhere_is_not_sent() {
    let rig = rig("sim:nvme,size=16M");
    let set = |cdw10| RawCommand { opcode: 0x09, cdw10, ..RawCommand::default() };
    let op = |opcode| RawCommand { opcode, ..RawCommand::default() };
    let commands =
        [op(0x00), op(0x01), op(0x04), op(0x05), op(0x0c), op(0x45), op(0x7c), op(0x7f), set(0x0d), set(0x800d)];
    for command in commands {
        let done = rig.nvme.admin_command(&command, Transfer::None, None);
        assert!(matches!(done, Err(Error::NotSent { .. })), "{command:?}: {done:?}");
    }
    let mut page = [0; 64];
    for (command, data, why) in [
        (identify(1), Transfer::Write(&[0; 64][..]), "comes from"),
        (set(4), Transfer::Read(&mut page), "goes to"),
        (op(0x14), Transfer::Write(&[0; 4]), "no data"),
        (op(0xc3), Transfer::None, "both ways"),
    ] {
        let error = rig.nvme.admin_command(&command, data, None).unwrap_err();
        assert!(matches!(error, Error::NotSent { .. }) && error.to_string().contains(why), "{error}");
    }
    let mut much = vec![0; 128 * 1024 + 4];
    let error = rig.nvme.admin_command(&identify(1), Transfer::Read(&mut much), None).unwrap_err();
    assert!(matches!(error, Error::TooMuchData { max: 0x20000, .. }), "{error}");
    let mut queue = rig.queue();
    assert!(matches!(queue.execute(&op(0x7f), Transfer::None, None), Err(Error::NotSent { .. })));
}

#[test]
fn raw_io_commands_share_a_queue_with_requests() {
    let rig = rig("sim:nvme,size=16M");
    let mut queue = rig.queue();
    let write = RawCommand { opcode: 0x01, nsid: 1, cdw10: 8, cdw12: 7, cdw2: 5, cdw14: 6, ..RawCommand::default() };
    for seed in 0..600 {
        // More than the queue has entries: each is used again.
        let bytes = pattern(4096, seed);
        assert!(queue.execute(&write, Transfer::Write(&bytes), None).unwrap().status.is_success());
        let read = one(ok(&mut queue, Op::Read { lba: 8 }, Data::One(rig.buf(4096))));
        assert!(read.bytes() == bytes);
    }
    queue.submit(request(1, Op::Read { lba: 0 }, Data::One(rig.buf(512)))).unwrap();
    assert!(matches!(
        queue.execute(&write, Transfer::Write(&[0; 4096]), None),
        Err(Error::QueueBusy { in_flight: 1, .. })
    ));
    queue.ring();
    wait(&mut queue, 1);
    let past = RawCommand { opcode: 0x02, nsid: 1, cdw10: u32::MAX, ..RawCommand::default() };
    let done = queue.execute(&past, Transfer::Read(&mut [0; 512]), None).unwrap();
    assert_eq!(done.status.name(), Some("LBA Out of Range"));
}

#[test]
fn a_raw_command_that_takes_too_long_is_given_up() {
    let rig = rig("sim:nvme,size=16M,faults=drop:@1");
    let mut queue = rig.queue();
    let read = RawCommand { opcode: 0x02, nsid: 1, ..RawCommand::default() };
    // Dropped: an abort finds nothing, so the controller is reset.
    let error = queue.execute(&read, Transfer::Read(&mut [0; 512]), Some(Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, Error::GivenUp { command: "Read", .. }), "{error}");
    let done = loop {
        match queue.execute(&read, Transfer::Read(&mut [0; 512]), None) {
            Err(Error::Resetting { .. } | Error::QueueBusy { .. }) => {
                queue.poll_each(1, |_| ());
            }
            done => break done.unwrap(),
        }
    };
    assert!(done.status.is_success());
}

#[test]
fn log_pages_are_read_in_pieces() {
    let options = Options { max_transfer: 4096, ..patient() };
    let rig = rig_with("sim:nvme,size=16M", options);
    let whole = rig.nvme.log_page(LogRequest::new(0x05), 4096).unwrap();
    let long = rig.nvme.log_page(LogRequest::new(0x05), 8000).unwrap();
    assert!(long[..4096] == whole[..] && long[4096..].iter().all(|b| *b == 0) && long.len() == 8000);
    // A third piece would begin past its end.
    assert_eq!(refused(rig.nvme.log_page(LogRequest::new(0x05), 8196)), Some("Invalid Field in Command"));
    let later = rig.nvme.log_page(LogRequest { offset: 24, ..LogRequest::new(0x05) }, 5).unwrap();
    assert_eq!(later, &whole[24..29]);
    assert!(matches!(
        rig.nvme.log_page(LogRequest { offset: 2, ..LogRequest::new(5) }, 4),
        Err(Error::NotOffered { .. })
    ));
    assert_eq!(refused(rig.nvme.log_page(LogRequest::new(0xd0), 512)), Some("Invalid Log Page"));
    let effects = rig.nvme.command_effects().unwrap();
    assert!(effects.iter().any(|e| e.name() == "Format NVM" && e.admin && e.effects & 2 != 0));
    assert!(effects.iter().any(|e| e.name() == "Copy" && !e.admin));
}

#[test]
fn features_have_values_by_selection() {
    let rig = rig("sim:nvme,size=16M");
    let none: &mut [u8] = &mut [];
    rig.nvme.set_feature_with(feature::ERROR_RECOVERY, 0, 9, false, &[]).unwrap();
    assert_eq!(rig.nvme.get_feature(feature::ERROR_RECOVERY, Select::Current, 0, 0, none).unwrap(), 9);
    let other = rig.nvme.get_feature(feature::ERROR_RECOVERY, Select::Supported, 0, 0, &mut []);
    assert_eq!(refused(other), Some("Invalid Field in Command"));
    assert_eq!(refused(rig.nvme.set_feature_with(0x04, 0, 1, true, &[])), Some("Feature Identifier Not Saveable"));
    assert!(matches!(rig.nvme.set_feature_with(0x0d, 0, 1, false, &[]), Err(Error::NotSent { .. })));
    let data = rig.nvme.identify_data(IdentifyRequest { cns: 0, nsid: 1, ..IdentifyRequest::default() }).unwrap();
    assert_eq!(data[..8], (16u64 << 20 >> 9).to_le_bytes());
}

#[test]
fn ranges_are_deallocated_copied_and_made_to_fail() {
    let rig = rig("sim:nvme,size=16M");
    let mut queue = rig.queue();
    let range = |lba, blocks| BlockRange { lba, blocks };
    for i in 0..16 {
        ok(&mut queue, Op::Write { lba: 8 * i }, Data::One(rig.pattern(4096, i)));
    }
    let finish = |queue: &mut wholebar_nvme::Queue| {
        queue.ring();
        let done = wait(queue, 1).pop().unwrap();
        assert_eq!(done.tag, 5);
        done.status
    };
    let blocks = |queue: &mut wholebar_nvme::Queue, i: u64| {
        one(ok(queue, Op::Read { lba: 8 * i }, Data::One(rig.buf(4096)))).bytes().to_vec()
    };
    // Every second one of them, in one command.
    let holes: Vec<_> = (0..8).map(|i| range(16 * i, 8)).collect();
    let attributes = DatasetAttributes { deallocate: true, ..DatasetAttributes::default() };
    queue.submit_dataset_management(5, 1, attributes, &holes, None).unwrap();
    assert_eq!(finish(&mut queue), Status::Ok);
    for i in 0..16 {
        let want = if i % 2 == 0 { vec![0; 4096] } else { pattern(4096, i) };
        assert!(blocks(&mut queue, i) == want, "{i}");
    }
    let most: Vec<_> = (0..queue.max_ranges() as u64).map(|i| range(1000 + 2 * i, 1)).collect();
    queue.submit_dataset_management(5, 1, attributes, &most, None).unwrap();
    assert_eq!(finish(&mut queue), Status::Ok);

    // Three ranges to one place.
    queue.submit_copy(5, 1, 4096, &[range(8, 8), range(24, 4), range(28, 4)], None).unwrap();
    assert_eq!(finish(&mut queue), Status::Ok);
    assert!(blocks(&mut queue, 512) == pattern(4096, 1) && blocks(&mut queue, 513) == pattern(4096, 3));

    queue.submit_write_uncorrectable(5, 1, range(9, 2), None).unwrap();
    assert_eq!(finish(&mut queue), Status::Ok);
    for op in [Op::Read { lba: 8 }, Op::Compare { lba: 8 }] {
        assert_eq!(named(run(&mut queue, op, Data::One(rig.buf(4096))).status), Some("Unrecovered Read Error"));
    }
    let verify = run(&mut queue, Op::Verify { lba: 8, blocks: 2 }, Data::None);
    assert_eq!(named(verify.status), Some("Unrecovered Read Error"));
    ok(&mut queue, Op::Write { lba: 8 }, Data::One(rig.pattern(4096, 50)));
    assert!(blocks(&mut queue, 1) == pattern(4096, 50));

    let last = 16 << 20 >> 9;
    let many = vec![range(0, 1); queue.max_ranges() + 1];
    let invalid = |done: Result<(), Reject>| assert!(matches!(done, Err(Reject::Invalid(_))), "{done:?}");
    for bad in [&[][..], &[range(0, 0)], &[range(last, 1)], &[range(0, 1), range(u64::MAX, 2)], &many] {
        invalid(queue.submit_dataset_management(5, 1, attributes, bad, None));
        invalid(queue.submit_copy(5, 1, 0, bad, None));
    }
    invalid(queue.submit_copy(5, 1, last - 1, &[range(0, 2)], None));
    invalid(queue.submit_copy(5, 1, 0, &[range(0, 257)], None));
    invalid(queue.submit_copy(5, 1, 0, &[range(0, 256); 5], None));
    invalid(queue.submit_write_uncorrectable(5, 1, range(last - 1, 2), None));
    invalid(queue.submit_write_uncorrectable(5, 9, range(0, 1), None));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_format_changes_blocks_and_is_refused_while_queues_know_the_old_ones() {
    let rig = rig("sim:nvme,size=16M,ns=2");
    let minute = Duration::from_secs(60);
    let mut queue = rig.queue();
    ok(&mut queue, Op::Write { lba: 0 }, Data::One(rig.pattern(4096, 3)));
    let to_4096 = Format { lba_format: 1, ..Format::default() };
    assert!(matches!(rig.nvme.format(1, to_4096, minute), Err(Error::QueuesExist { queues: 1, .. })));
    // So is one that the program makes itself.
    let raw = RawCommand { opcode: 0x80, nsid: 1, cdw10: 1, ..RawCommand::default() };
    assert!(matches!(rig.nvme.admin_command(&raw, Transfer::None, None), Err(Error::QueuesExist { .. })));
    assert!(one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).bytes() == pattern(4096, 3));
    drop(queue);

    for (format, why) in [
        (Format { lba_format: 2, ..Format::default() }, "Invalid Format"),
        (Format { protection: 1, ..Format::default() }, "Invalid Format"),
    ] {
        assert_eq!(refused(rig.nvme.format(1, format, minute)), Some(why));
    }
    assert_eq!(refused(rig.nvme.format(3, to_4096, minute)), Some("Invalid Namespace or Format"));
    let bad = Format { lba_format: 64, ..Format::default() };
    assert!(matches!(rig.nvme.format(1, bad, minute), Err(Error::NotOffered { .. })));
    let mut queue = rig.queue();
    assert!(
        one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).bytes() == pattern(4096, 3),
        "nothing lost"
    );
    drop(queue);

    rig.nvme.format(1, to_4096, minute).unwrap();
    let sizes: Vec<_> = rig.nvme.namespaces().iter().map(|n| (n.block_size, n.blocks, n.format)).collect();
    assert_eq!(sizes, [(4096, 4096, 1), (512, 32768, 0)]);
    let mut queue = rig.queue();
    assert!(one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).bytes().iter().all(|b| *b == 0));
    ok(&mut queue, Op::Write { lba: 4095 }, Data::One(rig.pattern(4096, 4)));
}

#[test]
fn sanitizing_erases_all_and_ends_with_an_event() {
    let rig = rig("sim:nvme,size=16M,ns=2");
    let mut queue = rig.queue();
    for nsid in [1, 2] {
        let written = run_on(&mut queue, nsid, Op::Write { lba: 7 }, Data::One(rig.pattern(512, 3)));
        assert_eq!(written.status, Status::Ok);
    }
    assert_eq!(rig.nvme.sanitize_status().unwrap().outcome(), "never sanitized");
    let erase = |action| Sanitize { action, allow_unrestricted_exit: false, no_deallocate: false };
    let none = SanitizeAction::Overwrite { passes: 0, pattern: 0, invert: false };
    assert!(matches!(rig.nvme.sanitize(erase(none)), Err(Error::NotOffered { .. })));
    rig.nvme.sanitize(erase(SanitizeAction::BlockErase)).unwrap();
    let read = run(&mut queue, Op::Read { lba: 7 }, Data::One(rig.buf(512)));
    assert_eq!(named(read.status), Some("Sanitize In Progress"));
    assert_eq!(refused(rig.nvme.sanitize(erase(SanitizeAction::CryptoErase))), Some("Sanitize In Progress"));
    let running = rig.nvme.sanitize_status().unwrap();
    assert_eq!((running.status, running.progress, running.cdw10), (2, 0x8000, 2));
    let done = rig.nvme.sanitize_status().unwrap();
    assert_eq!((done.status, done.progress, done.global_data_erased), (1, 0xffff, true));
    for nsid in [1, 2] {
        let read = run_on(&mut queue, nsid, Op::Read { lba: 7 }, Data::One(rig.buf(512)));
        assert_eq!(read.status, Status::Ok);
        assert!(one(read.data).bytes().iter().all(|b| *b == 0));
    }
    let event = rig.nvme.events().recv_timeout(LONG).unwrap();
    assert!(format!("{event:?}").contains("Sanitize Operation Completed"), "{event:?}");
}

#[test]
fn self_tests_run_end_and_are_aborted() {
    let rig = rig("sim:nvme,size=16M");
    let log = || rig.nvme.self_test_log().unwrap();
    assert!(log().results.is_empty());
    rig.nvme.self_test(u32::MAX, SelfTest::Short).unwrap();
    assert_eq!(refused(rig.nvme.self_test(0, SelfTest::Extended)), Some("Device Self-test In Progress"));
    let running = log();
    assert_eq!((running.current, running.completion), (1, 50));
    let done = log();
    assert_eq!((done.current, done.results.len(), done.results[0].result, done.results[0].kind), (0, 1, 0, 1));
    assert_eq!((done.results[0].nsid, done.results[0].outcome()), (Some(u32::MAX), "completed without error"));
    rig.nvme.self_test(0, SelfTest::Extended).unwrap();
    rig.nvme.self_test(0, SelfTest::Abort).unwrap();
    assert_eq!(log().results[0].outcome(), "aborted by a Device Self-test command");
    // A reset ends a short one.
    rig.nvme.self_test(0, SelfTest::Short).unwrap();
    rig.nvme.reset().unwrap();
    assert_eq!(log().results[0].outcome(), "aborted by a controller level reset");
    assert_eq!(refused(rig.nvme.self_test(7, SelfTest::Short)), Some("Invalid Namespace or Format"));
}

#[test]
fn firmware_goes_to_slots_and_runs_after_a_reset() {
    let rig = rig("sim:nvme,size=16M");
    let (minute, nvme) = (Duration::from_secs(60), &rig.nvme);
    assert_eq!((nvme.identify().firmware_slots(), nvme.identify().firmware_granularity), ((3, true), Some(4096)));
    let mut image = pattern(12288, 9);
    image[..8].copy_from_slice(b"FW-2.0  ");
    for (i, piece) in image.chunks(4096).enumerate() {
        nvme.firmware_download(i as u32 * 4096, piece).unwrap();
    }
    assert!(matches!(nvme.firmware_download(100, &image[..4096]), Err(Error::NotOffered { .. })));
    assert!(matches!(nvme.firmware_commit(4, CommitAction::Store, minute), Err(Error::NotOffered { .. })));
    assert!(nvme.firmware_commit(2, CommitAction::Store, minute).unwrap().is_success());
    let log = nvme.firmware_log().unwrap();
    assert_eq!((log.active, log.next, &log.revisions[1][..]), (1, None, "FW-2.0"));
    let needs = nvme.firmware_commit(2, CommitAction::Activate, minute).unwrap();
    assert_eq!(needs.name(), Some("Firmware Activation Requires Controller Level Reset"));
    assert_eq!(nvme.firmware_log().unwrap().next, Some(2));
    nvme.reset().unwrap();
    let log = nvme.firmware_log().unwrap();
    assert_eq!((log.active, log.next), (2, None));
    // No image; one that is none; the slot that can only be read.
    assert_eq!(refused(nvme.firmware_commit(3, CommitAction::Activate, minute)), Some("Invalid Firmware Image"));
    nvme.firmware_download(0, &[1; 4096]).unwrap();
    assert_eq!(refused(nvme.firmware_commit(3, CommitAction::Store, minute)), Some("Invalid Firmware Image"));
    nvme.firmware_download(0, &image[..4096]).unwrap();
    assert_eq!(refused(nvme.firmware_commit(1, CommitAction::Store, minute)), Some("Invalid Firmware Slot"));
    assert!(nvme.firmware_commit(1, CommitAction::ActivateNow, minute).unwrap().is_success());
    assert_eq!(nvme.firmware_log().unwrap().active, 1);
}

#[test]
fn security_protocols_pass_through() {
    let rig = rig("sim:nvme,size=16M");
    let list = rig.nvme.security_receive(SecurityProtocol::default(), 16).unwrap();
    assert_eq!(list[..10], [0, 0, 0, 0, 0, 0, 0, 2, 0x00, 0xf0]);
    let of = SecurityProtocol { protocol: 0xf0, specific: 0x1234, ..SecurityProtocol::default() };
    let bytes = pattern(10_001, 5);
    rig.nvme.security_send(of, &bytes).unwrap();
    assert!(rig.nvme.security_receive(of, 10_001).unwrap() == bytes);
    let other = SecurityProtocol { protocol: 0xea, ..of };
    assert_eq!(refused(rig.nvme.security_receive(other, 512)), Some("Invalid Field in Command"));
}

#[test]
fn namespaces_come_and_go_while_io_runs() {
    let rig = rig("sim:nvme,size=16M,spare=64M");
    let (minute, nvme) = (Duration::from_secs(60), &rig.nvme);
    let mut queue = rig.queue();
    let busy = |queue: &mut wholebar_nvme::Queue| {
        ok(queue, Op::Write { lba: 3 }, Data::One(rig.pattern(4096, 8)));
        assert!(one(ok(queue, Op::Read { lba: 3 }, Data::One(rig.buf(4096)))).bytes() == pattern(4096, 8));
    };
    busy(&mut queue);
    let new = NewNamespace { blocks: 8192, capacity: 8192, lba_format: 1, ..NewNamespace::default() };
    let nsid = nvme.create_namespace(&new, minute).unwrap();
    assert_eq!((nsid, nvme.allocated_namespaces().unwrap()), (2, vec![1, 2]));
    assert_eq!(nvme.namespaces().len(), 1, "it is not attached");
    busy(&mut queue);
    let controllers = nvme.controllers(None, 0).unwrap();
    assert_eq!(controllers, [0]);
    assert!(nvme.controllers(Some(nsid), 0).unwrap().is_empty());
    nvme.attach_namespace(nsid, &controllers).unwrap();
    assert_eq!(nvme.controllers(Some(nsid), 0).unwrap(), [0]);
    assert_eq!(nvme.namespaces().iter().map(|n| (n.nsid, n.block_size)).collect::<Vec<_>>(), [(1, 512), (2, 4096)]);
    // The queue that was there before uses it.
    assert_eq!(run_on(&mut queue, 2, Op::Write { lba: 8191 }, Data::One(rig.pattern(4096, 1))).status, Status::Ok);
    busy(&mut queue);
    for (done, why) in [
        (nvme.attach_namespace(2, &[0]), "Namespace Already Attached"),
        (nvme.attach_namespace(2, &[]), "Controller List Invalid"),
        (nvme.attach_namespace(2, &[7]), "Controller List Invalid"),
        (nvme.attach_namespace(9, &[0]), "Invalid Namespace or Format"),
        (
            nvme.create_namespace(&NewNamespace { blocks: 1 << 40, capacity: 1 << 40, ..new }, minute).map(drop),
            "Namespace Insufficient Capacity",
        ),
        (
            nvme.create_namespace(&NewNamespace { capacity: 1, ..new }, minute).map(drop),
            "Thin Provisioning Not Supported",
        ),
        (nvme.create_namespace(&NewNamespace { lba_format: 7, ..new }, minute).map(drop), "Invalid Format"),
        (nvme.delete_namespace(5, minute), "Invalid Namespace or Format"),
    ] {
        assert_eq!(refused(done), Some(why));
    }

    // Gone with commands in flight: each ends, by name, and further ones are refused.
    for tag in 0..100 {
        let read = wholebar_core::block::Request {
            nsid: 2,
            ..request(tag, Op::Read { lba: tag }, Data::One(rig.pool.get_len(4096).unwrap()))
        };
        if let Err(rejected) = queue.submit(read) {
            assert!(matches!(rejected.why, Reject::Full), "{}", rejected.why);
            break;
        }
        if rig.pool.available() == 0 {
            break;
        }
    }
    nvme.delete_namespace(2, minute).unwrap();
    queue.ring();
    let in_flight = queue.in_flight();
    for done in wait(&mut queue, in_flight) {
        assert_eq!(named(done.status), Some("Invalid Namespace or Format"));
    }
    let read = wholebar_core::block::Request { nsid: 2, ..request(0, Op::Verify { lba: 0, blocks: 1 }, Data::None) };
    let rejected = queue.submit(read).unwrap_err();
    assert!(rejected.why.to_string().contains("no such namespace"), "{}", rejected.why);
    busy(&mut queue);

    // One of its identifier with other blocks is not attached while queues know the old ones; with the same blocks, but fewer of them, it is.
    let other = NewNamespace { lba_format: 0, ..new };
    assert_eq!(nvme.create_namespace(&other, minute).unwrap(), 2);
    assert!(matches!(nvme.attach_namespace(2, &[0]), Err(Error::QueuesExist { queues: 1, .. })));
    nvme.delete_namespace(2, minute).unwrap();
    let smaller = NewNamespace { blocks: 100, capacity: 100, ..new };
    assert_eq!(nvme.create_namespace(&smaller, minute).unwrap(), 2);
    nvme.attach_namespace(2, &[0]).unwrap();
    let past = queue.submit(wholebar_core::block::Request {
        nsid: 2,
        ..request(0, Op::Verify { lba: 100, blocks: 1 }, Data::None)
    });
    assert!(past.unwrap_err().why.to_string().contains("past the namespace's end"));
    busy(&mut queue);
    drop(queue);
    nvme.delete_namespace(u32::MAX, minute).unwrap();
    assert!(nvme.namespaces().is_empty() && nvme.allocated_namespaces().unwrap().is_empty());
    assert_eq!(nvme.create_namespace(&other, minute).unwrap(), 1);
    nvme.attach_namespace(1, &[0]).unwrap();
    assert_eq!(nvme.namespaces()[0].block_size, 512, "without queues, any blocks");
}

#[test]
fn a_controller_without_namespace_management_says_so() {
    let rig = rig("sim:nvme,size=16M");
    let error = rig.nvme.delete_namespace(1, LONG).unwrap_err();
    assert!(error.to_string().contains("no Namespace Management"), "{error}");
    assert_eq!(refused(rig.nvme.allocated_namespaces()), Some("Invalid Field in Command"));
}
