//! What a controller writes into a completion queue, as bytes: no panic, no command that ends twice, no buffer that is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wholebar::Work;
use wholebar::block::{Data, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Iova, Pool};
use wholebar::model::{Host, InProcess, Model, Refused, Shape};
use wholebar::nvme::{Nvme, Options, QueueOptions, Service};
use wholebar::sim::nvme::{Nvme as Honest, NvmeParams};

const ENTRIES: u32 = 16;
const BUFFERS: u32 = 16;

/// A completion entry that is to be written: where, and what.
type Lie = Arc<Mutex<Option<(Iova, [u8; 16])>>>;

/// A controller that works, but for the completions that it is told to make up.
struct Liar(Honest, Lie);

impl Model for Liar {
    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        self.0.read(region, offset, buf)
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        self.0.write(region, offset, buf)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let mut lie = self.1.lock().unwrap();
        if let Some((at, bytes)) = lie.take()
            && let Some(entry) = host.dma(at, 16)
        {
            for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                if let Some(to) = entry.u32(4 * i as u64) {
                    to.store(u32::from_le_bytes(*word), Ordering::Release);
                }
            }
        }
        self.0.poll(host)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let lie = Lie::default();
    let params = NvmeParams::parse("size=1M,backing=null,entries=64,queues=1").unwrap();
    let device = InProcess::new(Liar(Honest::new(params).unwrap(), lie.clone())).unwrap();
    device.spawn(|| {}).unwrap();
    let options = Options { service: Service::Manual, timeout: Duration::from_millis(5), ..Options::default() };
    let nvme = Nvme::open(device, options).unwrap();
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    nvme.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, BUFFERS, 4096, 4096).unwrap();
    let mut queue = nvme.queue(QueueOptions { entries: Some(ENTRIES), ..QueueOptions::default() }).unwrap();
    let (_, cq) = queue.rings();
    let (mut open, mut tag) = (BTreeSet::new(), 0);
    let mut bytes = bytes.iter().copied();
    while let Some(step) = bytes.next() {
        match step & 3 {
            0 => {
                if let Some(buf) = pool.get_len(4096) {
                    let req = Request { tag, nsid: 1, op: Op::Read { lba: 0 }, data: Data::One(buf), deadline: None };
                    if queue.submit(req).is_ok() {
                        open.insert(tag);
                    }
                    tag += 1;
                }
            }
            1 => queue.ring(),
            2 => {
                let mut entry = [0; 16];
                entry.iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = from);
                let at = cq.offset(u64::from(u32::from(step >> 2) % ENTRIES) * 16);
                *lie.lock().unwrap() = Some((at, entry));
                while lie.lock().unwrap().is_some() {
                    std::thread::yield_now();
                }
            }
            _ => {
                queue.poll_each(8, |done| assert!(open.remove(&done.tag), "command {} ended twice", done.tag));
                let _ = nvme.service();
            }
        }
    }
    *lie.lock().unwrap() = None;
    drop(queue);
    let quarantined = nvme.quarantined();
    assert_eq!(u64::from(pool.available()) + quarantined, u64::from(BUFFERS), "a buffer was lost");
});
