//! The border, as C crosses it: what is done with null, wrong, freed and used twice; what becomes of a panic; a disk and two ports at work.

use crate::device::*;
use crate::disk::*;
use crate::error::{entry, wb_errno, wb_error};
use crate::event::wb_event;
use crate::handle::give;
use crate::memory::*;
use crate::packets::*;
use crate::port::*;
use crate::queue::*;
use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use wholebar::block::{BlockQueue, Completion, Data, QueueState, Rejected, Request, Status};
use wholebar::net::{Burst, TxQueue};

fn error() -> String {
    // SAFETY: text of this thread's last error, which is copied here.
    unsafe { CStr::from_ptr(wb_error()) }.to_str().unwrap().to_owned()
}

/// What a call said that failed.
fn failed(number: c_int, text: &str) {
    assert!(error().contains(text), "{:?} lacks {text:?}", error());
    assert_eq!(wb_errno(), number, "{}", error());
}

/// An arena of 64 KiB, and its pool of 8 buffers of 512 bytes.
fn memory() -> (*mut wb_arena, *mut wb_pool) {
    let arena = wb_arena_new(65536);
    // SAFETY: a handle that was made just now.
    let pool = unsafe { wb_pool_new(arena, 8, 512, 512) };
    assert!(!pool.is_null(), "{}", error());
    (arena, pool)
}

fn read(tag: u64, buf: *mut wb_buf) -> wb_request {
    wb_request { tag, nsid: 1, op: WB_OP_READ, lba: 0, buf, blocks: 0, timeout_ms: 0 }
}

const NOTHING: wb_completion = wb_completion { tag: 0, buf: null_mut(), status: u32::MAX, code: 0 };

/// Polls until a command ended.
fn one(queue: *mut wb_block_queue) -> wb_completion {
    let mut done = NOTHING;
    loop {
        // SAFETY: a queue of the caller's, and one place.
        match unsafe { wb_queue_poll(queue, &mut done, 1) } {
            0 => std::thread::yield_now(),
            1 => return done,
            other => panic!("{other}: {}", error()),
        }
    }
}

#[test]
fn null_is_an_error_of_every_function() {
    let (mut info, mut port_info) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut event = MaybeUninit::<wb_event>::uninit();
    // SAFETY: rule 1 allows NULL, of which this is the test.
    unsafe {
        let numbers = [
            wb_device_info(null(), info.as_mut_ptr()),
            wb_disk_queues(null()),
            wb_disk_namespaces(null(), null_mut(), 0),
            wb_disk_attach(null(), null()),
            wb_disk_event(null(), event.as_mut_ptr()),
            wb_disk_reset(null()),
            wb_queue_submit(null_mut(), &read(0, null_mut())),
            wb_queue_ring(null_mut()),
            wb_queue_poll(null_mut(), null_mut(), 0),
            wb_queue_in_flight(null_mut()),
            wb_queue_state(null_mut()),
            wb_pool_available(null()),
            wb_buf_len(null_mut()),
            wb_buf_capacity(null_mut()),
            wb_buf_headroom(null_mut()),
            wb_buf_set_len(null_mut(), 0),
            wb_buf_reserve(null_mut(), 0),
            wb_port_info(null(), port_info.as_mut_ptr()),
            wb_port_set_promiscuous(null(), 1),
            wb_port_attach(null(), null()),
            wb_port_event(null(), event.as_mut_ptr()),
            wb_port_reset(null()),
            wb_rx_burst(null_mut(), null_mut(), 0),
            wb_rx_state(null_mut()),
            wb_tx_burst(null_mut(), null(), 0),
            wb_tx_reclaim(null_mut()),
            wb_tx_in_flight(null_mut()),
            wb_tx_state(null_mut()),
        ];
        assert_eq!(numbers, [-libc::EINVAL; 28]);
        failed(libc::EINVAL, "NULL");
        assert!(wb_device_open(null()).is_null());
        failed(libc::EINVAL, "a text is NULL");
        assert!(wb_device_name(null()).is_null() && wb_disk_name(null()).is_null() && wb_port_name(null()).is_null());
        assert!(wb_disk_driver(null()).is_null() && wb_port_driver(null()).is_null());
        assert!(wb_disk_open(null(), null()).is_null() && wb_port_open(null(), null()).is_null());
        assert!(wb_disk_open_target(null(), null()).is_null() && wb_port_open_target(null(), null()).is_null());
        assert!(wb_disk_queue(null()).is_null() && wb_port_tx_queue(null(), 0).is_null());
        assert!(wb_port_rx_queue(null(), 0, null()).is_null() && wb_pool_new(null(), 1, 1, 1).is_null());
        assert!(wb_buf_get(null(), 1).is_null() && wb_buf_data(null_mut()).is_null());
        assert!(wb_buf_prepend(null_mut(), 1).is_null() && wb_buf_adj(null_mut(), 1).is_null());
        // What is freed may be nothing.
        wb_device_free(null_mut());
        wb_disk_free(null_mut());
        wb_queue_free(null_mut());
        wb_arena_free(null_mut());
        wb_pool_free(null_mut());
        assert_eq!(wb_buf_free(null_mut()), 0);
        wb_port_free(null_mut());
        wb_rx_free(null_mut());
        wb_tx_free(null_mut());
    }
}

#[test]
fn wrong_arguments_are_refused_with_a_sentence() {
    // SAFETY: handles that were made here and not freed before their end; one pointer is not aligned, of which this is the test.
    unsafe {
        assert!(wb_device_open(c"toaster".as_ptr()).is_null());
        failed(libc::EINVAL, "\"toaster\" names no device");
        assert!(wb_device_open(c"sim:\xff".as_ptr()).is_null());
        failed(libc::EINVAL, "UTF-8");
        assert!(wb_device_open(c"vfio-user:/nowhere".as_ptr()).is_null());
        failed(libc::EIO, "/nowhere");

        let device = wb_device_open(c"sim:virtio-net".as_ptr());
        assert_eq!(CStr::from_ptr(wb_device_name(device)), c"sim:virtio-net");
        assert!(wb_disk_open(device, null()).is_null());
        failed(libc::ENOTSUP, "no storage driver");
        assert_eq!(wb_device_info(device, null_mut()), -libc::EINVAL);
        let mut words = [0u64; 4];
        let odd = words.as_mut_ptr().cast::<u8>().add(1);
        assert_eq!(wb_device_info(device, odd.cast()), -libc::EINVAL);
        failed(libc::EINVAL, "not aligned");
        wb_device_free(device);

        let (arena, pool) = memory();
        assert!(wb_pool_new(arena, 1, 64, 3).is_null());
        failed(libc::EINVAL, "power of two");
        assert!(wb_pool_new(arena, 1 << 20, 64, 64).is_null());
        failed(libc::ENOMEM, "");
        assert!(wb_buf_get(pool, 513).is_null());
        failed(libc::EINVAL, "smaller");
        let bufs = [(); 8].map(|()| wb_buf_get(pool, 512));
        assert!(!bufs.contains(&null_mut()) && wb_buf_get(pool, 0).is_null());
        failed(libc::ENOMEM, "all of the pool's buffers are out");
        assert_eq!((wb_buf_set_len(bufs[0], 513), wb_buf_reserve(bufs[0], 600)), (-libc::EINVAL, -libc::EINVAL));
        assert_eq!((wb_buf_reserve(bufs[0], 16), wb_buf_set_len(bufs[0], 497)), (0, -libc::EINVAL));
        assert_eq!((wb_buf_set_len(bufs[0], 496), wb_buf_capacity(bufs[0])), (0, 512));
        assert!(wb_buf_prepend(bufs[0], 17).is_null());
        let start = wb_buf_data(bufs[0]);
        assert_eq!(wb_buf_prepend(bufs[0], 16), start.sub(16));
        assert_eq!((wb_buf_len(bufs[0]), wb_buf_headroom(bufs[0])), (512, 0));
        assert_eq!(wb_buf_adj(bufs[0], 16), start);
        assert!(wb_buf_adj(bufs[0], 497).is_null());
        assert!(bufs.iter().all(|buf| wb_buf_free(*buf) == 0));
        wb_pool_free(pool);
        wb_arena_free(arena);
    }
}

#[test]
fn a_disk_is_read_and_written_and_its_handles_go_in_any_order() {
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let device = wb_device_open(c"sim:nvme,size=1M".as_ptr());
        let disk = wb_disk_open(device, &wb_disk_config::default());
        assert!(!disk.is_null(), "{}", error());
        let mut info = MaybeUninit::uninit();
        assert_eq!(wb_device_info(device, info.as_mut_ptr()), 0);
        assert_eq!(info.assume_init().class_code, 0x01_0802);
        wb_device_free(device);
        assert_eq!(CStr::from_ptr(wb_disk_driver(disk)), c"nvme");
        let mut ns = MaybeUninit::<wb_namespace>::uninit();
        assert_eq!((wb_disk_namespaces(disk, null_mut(), 0), wb_disk_namespaces(disk, ns.as_mut_ptr(), 1)), (1, 1));
        let ns = ns.assume_init();
        assert_eq!((ns.nsid, ns.blocks, ns.block_size), (1, 2048, 512));

        let (arena, pool) = memory();
        let queue = wb_disk_queue(disk);
        let buf = wb_buf_get(pool, 512);
        assert_eq!(wb_queue_submit(queue, &read(1, buf)), -libc::EINVAL);
        assert_eq!((wb_buf_len(buf), wb_disk_attach(disk, arena)), (512, 0), "not attached: refused, and the caller's");
        std::slice::from_raw_parts_mut(wb_buf_data(buf), 512).fill(7);
        assert_eq!(wb_queue_submit(queue, &wb_request { op: WB_OP_WRITE, ..read(2, buf) }), 0);
        // It is the command's now.
        assert_eq!((wb_queue_submit(queue, &read(3, buf)), wb_buf_free(buf)), (-libc::EINVAL, -libc::EINVAL));
        failed(libc::EINVAL, "not the caller's");
        assert_eq!((wb_queue_in_flight(queue), wb_queue_state(queue)), (1, WB_STATE_RUNNING));
        assert_eq!(wb_queue_ring(queue), 0);
        let done = one(queue);
        assert_eq!((done.tag, done.status, done.buf), (2, WB_STATUS_OK, buf));

        let other = wb_buf_get(pool, 512);
        assert_eq!((wb_queue_submit(queue, &read(4, other)), wb_queue_ring(queue)), (0, 0));
        assert_eq!(one(queue).buf, other);
        assert!(std::slice::from_raw_parts(wb_buf_data(other), 512).iter().all(|byte| *byte == 7));
        let flush = wb_request { op: WB_OP_FLUSH, timeout_ms: 60_000, ..read(5, null_mut()) };
        assert_eq!((wb_queue_submit(queue, &flush), wb_queue_ring(queue)), (0, 0));
        let done = one(queue);
        assert_eq!((done.tag, done.status, done.buf), (5, WB_STATUS_OK, null_mut()));
        // Beyond the end: the device, or the driver before it, says no.
        let beyond = wb_request { lba: u64::MAX, ..read(6, other) };
        match wb_queue_submit(queue, &beyond) {
            0 => {
                wb_queue_ring(queue);
                let done = one(queue);
                assert_eq!((done.status, done.buf), (WB_STATUS_DEVICE, other));
            }
            number => assert_eq!(number, -libc::EINVAL),
        }
        assert_eq!(wb_queue_submit(queue, &wb_request { op: 99, ..read(7, other) }), -libc::EINVAL);
        failed(libc::EINVAL, "WB_OP_");
        assert_eq!((wb_buf_free(other), wb_buf_free(other)), (0, -libc::EINVAL));
        assert_eq!(wb_buf_free(buf), 0);

        // The queue goes last, and works until then.
        assert_eq!(wb_pool_available(pool), 8);
        wb_disk_free(disk);
        assert_eq!((wb_queue_submit(queue, &flush), wb_queue_ring(queue)), (0, 0));
        assert_eq!(one(queue).status, WB_STATUS_OK);
        wb_pool_free(pool);
        wb_arena_free(arena);
        wb_queue_free(queue);
    }
}

/// Any target has one call, those that are no PCI devices too.
#[test]
fn disks_and_ports_are_opened_by_name_alone() {
    let path = std::env::temp_dir().join(format!("wholebar-c-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let name = std::ffi::CString::new(format!("kernel:{},cached", path.display())).unwrap();
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let port = wb_port_open_target(c"sim:virtio-net".as_ptr(), null());
        assert_eq!(CStr::from_ptr(wb_port_driver(port)), c"virtio");
        wb_port_free(port);
        assert!(wb_port_open_target(name.as_ptr(), null()).is_null());
        failed(libc::EINVAL, "is a disk");
        assert!(wb_disk_open_target(c"kernel:eth0".as_ptr(), null()).is_null());
        failed(libc::EINVAL, "is a network interface");
        assert!(wb_device_open(name.as_ptr()).is_null());
        failed(libc::EINVAL, "no PCI device");

        let disk = wb_disk_open_target(name.as_ptr(), null());
        if disk.is_null() {
            // Where this process may have no rings.
            assert!(error().contains("io_uring cannot be set up"), "{}", error());
            return;
        }
        let (arena, pool) = memory();
        let queue = wb_disk_queue(disk);
        let buf = wb_buf_get(pool, 512);
        assert_eq!(
            (wb_disk_attach(disk, arena), wb_queue_submit(queue, &read(1, buf)), wb_queue_ring(queue)),
            (0, 0, 0)
        );
        assert_eq!((one(queue).status, wb_buf_len(buf)), (WB_STATUS_OK, 512));
        assert!(std::slice::from_raw_parts(wb_buf_data(buf), 512).iter().all(|byte| *byte == 7));
        assert_eq!(wb_buf_free(buf), 0);
        wb_queue_free(queue);
        wb_disk_free(disk);
        wb_pool_free(pool);
        wb_arena_free(arena);
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_full_queue_leaves_the_buffer_the_callers() {
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let device = wb_device_open(c"sim:nvme,size=1M".as_ptr());
        let disk = wb_disk_open(device, &wb_disk_config { queues: 1, entries: 4 });
        let (arena, pool) = memory();
        assert_eq!(wb_disk_attach(disk, arena), 0);
        let queue = wb_disk_queue(disk);
        let bufs = [(); 8].map(|()| wb_buf_get(pool, 512));
        let taken = bufs.iter().take_while(|buf| wb_queue_submit(queue, &read(0, **buf)) == 0).count();
        assert!((1..8).contains(&taken), "{taken} were taken by four entries");
        failed(libc::EAGAIN, "full");
        assert_eq!(wb_queue_ring(queue), 0);
        for _ in 0..taken {
            assert_eq!(one(queue).status, WB_STATUS_OK);
        }
        assert!(bufs.iter().all(|buf| wb_buf_free(*buf) == 0));
        assert_eq!(wb_pool_available(pool), 8);
        wb_queue_free(queue);
        wb_disk_free(disk);
        wb_device_free(device);
        wb_pool_free(pool);
        wb_arena_free(arena);
    }
}

#[test]
fn packets_go_from_port_to_port_and_no_buffer_twice() {
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let arena = wb_arena_new(4 << 20);
        let pool = wb_pool_new(arena, 1024, 2048, 64);
        let config = wb_port_config { promiscuous: 1, ..wb_port_config::default() };
        let ports = ["a", "b"].map(|_| {
            let device = wb_device_open(c"sim:virtio-net,wire=pair:border".as_ptr());
            let port = wb_port_open(device, &config);
            wb_device_free(device);
            assert!(!port.is_null() && wb_port_attach(port, arena) == 0, "{}", error());
            port
        });
        let rx = wb_port_rx_queue(ports[1], 0, pool);
        let tx = wb_port_tx_queue(ports[0], 0);
        assert!(!rx.is_null() && !tx.is_null(), "{}", error());
        assert!(wb_port_tx_queue(ports[0], 0).is_null() && wb_port_tx_queue(ports[0], 9).is_null());
        let mut info = MaybeUninit::uninit();
        assert_eq!(wb_port_info(ports[0], info.as_mut_ptr()), 0);
        let info: wb_port_info = info.assume_init();
        assert_eq!((info.mtu, info.rx_queues, info.tx_queues), (1500, 1, 1));

        let sent: Vec<_> = (0..100u8)
            .map(|i| {
                let buf = wb_buf_get(pool, 60);
                let bytes = std::slice::from_raw_parts_mut(wb_buf_data(buf), 60);
                bytes.fill(i);
                bytes[..6].fill(0xff);
                buf
            })
            .collect();
        let twice = [sent[0], sent[1], sent[0]];
        assert_eq!(wb_tx_burst(tx, twice.as_ptr(), 3), -libc::EINVAL);
        assert_eq!((wb_buf_len(sent[0]), wb_buf_len(sent[1])), (60, 60), "none was taken");
        assert_eq!(wb_tx_burst(tx, [sent[0], null_mut()].as_ptr(), 2), -libc::EINVAL);
        // What was taken in front of an error is told, and the error at the next call.
        let wrong: Vec<_> = sent[..64].iter().copied().chain([null_mut()]).collect();
        let mut gone = wb_tx_burst(tx, wrong.as_ptr(), 65) as usize;
        assert!((1..=64).contains(&gone), "{}", error());
        let mut came = Vec::new();
        while came.len() < 100 {
            let n = wb_tx_burst(tx, sent[gone..].as_ptr(), (100 - gone) as u16);
            assert!(n >= 0, "{}", error());
            gone += n as usize;
            let mut some = [null_mut(); 7];
            let n = wb_rx_burst(rx, some.as_mut_ptr(), 7);
            assert!(n >= 0, "{}", error());
            came.extend_from_slice(&some[..n as usize]);
            std::thread::yield_now();
        }
        for (i, buf) in came.iter().enumerate() {
            let bytes = std::slice::from_raw_parts(wb_buf_data(*buf), wb_buf_len(*buf) as usize);
            assert_eq!((bytes.len(), bytes[59]), (60, i as u8));
            assert_eq!(wb_buf_headroom(*buf), 128);
            assert_eq!(wb_buf_free(*buf), 0);
        }
        assert_eq!((wb_rx_state(rx), wb_tx_state(tx)), (WB_STATE_RUNNING, WB_STATE_RUNNING));
        wb_rx_free(rx);
        wb_tx_free(tx);
        ports.into_iter().for_each(|port| wb_port_free(port));
        assert_eq!(wb_pool_available(pool), 1024, "every buffer is home");
        wb_pool_free(pool);
        wb_arena_free(arena);
    }
}

#[test]
fn errors_are_of_their_thread() {
    // SAFETY: rule 1 allows NULL.
    assert_eq!(unsafe { wb_disk_reset(null()) }, -libc::EINVAL);
    std::thread::spawn(|| assert_eq!((wb_errno(), error().as_str()), (0, ""))).join().unwrap();
    failed(libc::EINVAL, "NULL");
}

/// Finishes what was submitted with a panic behind the first, as a driver would that has a fault.
struct Panics(Vec<Request>);

impl BlockQueue for Panics {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        self.0.push(req);
        Ok(())
    }

    fn ring(&mut self) {}

    fn poll(&mut self, _: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let Request { tag, data, .. } = self.0.remove(0);
        done(Completion { tag, status: Status::Ok, data });
        panic!("the second is one too many");
    }

    fn state(&self) -> QueueState {
        QueueState::Failed("it is what it is".to_owned())
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        self.0.clear();
        panic!("and the end too");
    }
}

impl TxQueue for Panics {
    fn tx(&mut self, _: &mut Burst) -> usize {
        panic!("at once")
    }

    fn reclaim(&mut self) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        QueueState::Gone
    }
}

#[test]
fn a_panic_ends_at_the_border_and_the_queue_with_it() {
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let (arena, pool) = memory();
        let queue = give(wb_block_queue::new(Box::new(Panics(Vec::new()))));
        let bufs = [wb_buf_get(pool, 512), wb_buf_get(pool, 512)];
        assert_eq!(bufs.map(|buf| wb_queue_submit(queue, &read(buf.addr() as u64, buf))), [0, 0]);
        assert_eq!(wb_queue_state(queue), WB_STATE_FAILED);
        failed(libc::EIO, "it is what it is");
        // What was finished before the panic is not lost.
        let mut done = [NOTHING; 2];
        assert_eq!(wb_queue_poll(queue, done.as_mut_ptr(), 2), 1);
        assert_eq!((done[0].buf, done[0].tag, done[1].buf), (bufs[0], bufs[0].addr() as u64, null_mut()));
        assert_eq!(wb_queue_poll(queue, done.as_mut_ptr(), 2), -libc::ENOTRECOVERABLE);
        assert_eq!((wb_queue_ring(queue), wb_queue_state(queue)), (-libc::ENOTRECOVERABLE, -libc::ENOTRECOVERABLE));
        assert_eq!(wb_queue_submit(queue, &read(0, bufs[0])), -libc::ENOTRECOVERABLE);
        failed(libc::ENOTRECOVERABLE, "free it");
        wb_queue_free(queue);
        failed(libc::ENOTRECOVERABLE, "and the end too");

        let queue = give(wb_tx_queue::new(Box::new(Panics(Vec::new()))));
        let buf = wb_buf_get(pool, 60);
        assert_eq!(wb_tx_burst(queue, &buf, 1), -libc::ENOTRECOVERABLE);
        failed(libc::ENOTRECOVERABLE, "a fault of this library: at once");
        assert_eq!(wb_tx_burst(queue, &buf, 1), -libc::ENOTRECOVERABLE);
        wb_tx_free(queue);
        assert_eq!(entry::<c_int>(|| std::panic::panic_any(7)), -libc::ENOTRECOVERABLE);
        wb_arena_free(arena);
        // Buffers that the fault took are nobody's: the pool stays.
        wb_pool_free(pool);
    }
}

/// What a command left in a panic's queue is dropped with its request, so that only what C still has is out.
#[test]
fn data_of_a_request_that_panics_goes_home() {
    struct Refuses;
    impl BlockQueue for Refuses {
        fn submit(&mut self, req: Request) -> Result<(), Rejected> {
            assert!(matches!(req.data, Data::None), "it takes no data");
            Ok(())
        }
        fn ring(&mut self) {}
        fn poll(&mut self, _: usize, _: &mut dyn FnMut(Completion)) -> usize {
            0
        }
        fn state(&self) -> QueueState {
            QueueState::Running
        }
        fn in_flight(&self) -> usize {
            0
        }
    }
    // SAFETY: handles that were made here and are not used after they are freed.
    unsafe {
        let (arena, pool) = memory();
        let queue = give(wb_block_queue::new(Box::new(Refuses)));
        let buf = wb_buf_get(pool, 512);
        assert_eq!(wb_queue_submit(queue, &read(0, buf)), -libc::ENOTRECOVERABLE);
        failed(libc::ENOTRECOVERABLE, "it takes no data");
        assert_eq!((wb_pool_available(pool), wb_buf_free(buf)), (8, -libc::EINVAL));
        wb_queue_free(queue);
        wb_pool_free(pool);
        wb_arena_free(arena);
    }
}
