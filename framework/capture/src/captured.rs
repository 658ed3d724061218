//! A tap: copies of the packets that a queue moves, written to a pcapng file by a thread of its own.
//!
//! The queue's core copies a packet into a buffer of the capture's own pool and hands it over by a ring: it never waits, locks or
//! calls the system. What doesn't fit, because the file is slower than the queue, is not in the file, and counted. Packets are in the file as the
//! program has them: one with an offload asked for has its checksum to be filled in, or is longer than any on the wire. A VLAN tag that the
//! device took off, or is to put in, is in its place.

use crate::{Direction, PcapNg};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wholebar_core::channel::{Receiver, Sender, TryRecvError, unbounded};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Pool, PoolCache, give_back};
use wholebar_core::net::{Burst, Count, QueueState, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;
use wholebar_core::ring::{Consumer, Producer, spsc};
use wholebar_core::{Error, Result};

/// What a tap counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CaptureCounters {
    /// Packets handed to the file's thread.
    pub captured: Count,
    /// Packets that went by and are not in the file: it was too slow for them.
    pub missed: Count,
}

impl CaptureCounters {
    /// Each by its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("captured", self.captured.get()), ("missed", self.missed.get())].into_iter()
    }
}

/// A file, and the thread that writes it.
pub struct Capture {
    pool: Pool,
    path: String,
    /// Closed when the capture is to end.
    taps: Option<Sender<Tap>>,
    thread: Option<JoinHandle<Done>>,
}

/// Packets in the file; and what went wrong, and how many were lost by that.
type Done = (u64, Option<(io::Error, u64)>);

/// What the thread knows of a tap.
struct Tap {
    name: String,
    direction: Direction,
    packets: Consumer<Buf>,
}

/// A queue that is tapped.
pub struct Captured<Q> {
    inner: Q,
    out: Producer<Buf>,
    /// Copies that are not handed over yet.
    made: Vec<Buf>,
    /// Behind those in the struct, which hold its pool's buffers: they are dropped first.
    copies: PoolCache,
    counters: Arc<CaptureCounters>,
}

/// Bytes of a buffer: those of most packets.
const BUFFER: u32 = 2048;
/// How long the thread rests when there is nothing to write.
const REST: Duration = Duration::from_millis(1);

impl Capture {
    /// Makes the file, or empties it. At most `packets` copies of up to 2 KiB can wait to be written (longer ones take several).
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written; those of [`Arena::new`] and [`Pool::new`].
    pub fn create(path: &Path, packets: u32) -> Result<Self> {
        let file = PcapNg::create(path)?;
        let size = u64::from(packets) * u64::from(BUFFER) + (64 << 10);
        let pool = Pool::new(Arena::new(size, ArenaOptions::default())?, packets, BUFFER, 64)?;
        let (taps, new) = unbounded();
        let write = move || Writer { file, taken: Vec::new(), scratch: Vec::new(), written: 0, failed: None }.run(&new);
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(write);
        let thread = thread.map_err(|cause| Error::Io { what: "starting a thread".to_owned(), cause })?;
        Ok(Self { pool, path: path.display().to_string(), taps: Some(taps), thread: Some(thread) })
    }

    /// Taps a queue. Its packets are the file's interface `name`.
    ///
    /// # Errors
    /// Those of [`spsc`].
    pub fn tap<Q>(&self, queue: Q, name: impl Into<String>, direction: Direction) -> Result<Captured<Q>> {
        let (out, packets) = spsc((self.pool.capacity() as usize).next_power_of_two())?;
        let tap = Tap { name: name.into(), direction, packets };
        // The thread ends only after this side has.
        let _ = self.taps.as_ref().map(|taps| taps.send(tap));
        let made = Vec::with_capacity(256);
        Ok(Captured { inner: queue, out, made, copies: self.pool.cache(32), counters: Arc::default() })
    }

    /// Writes what is there, closes the file, and says how many packets are in it. What goes through a tap afterwards is missed.
    ///
    /// # Errors
    /// [`Error::Io`] where not all could be written; [`Error::Panicked`].
    pub fn finish(mut self) -> Result<u64> {
        let panicked =
            || Error::Panicked { what: "capture's thread".to_owned(), said: "see standard error".to_owned() };
        let (written, failed) = self.end().ok_or_else(panicked)?;
        let Some((source, lost)) = failed else { return Ok(written) };
        let what = format!("{}: {written} packets are written, {lost} are lost", self.path);
        Err(Error::Io { what, cause: source })
    }

    fn end(&mut self) -> Option<Done> {
        self.taps = None;
        let thread = self.thread.take()?;
        thread.thread().unpark();
        thread.join().ok()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

struct Writer {
    file: PcapNg,
    /// Packets of a tap.
    taken: Vec<Buf>,
    /// A packet in one piece.
    scratch: Vec<u8>,
    written: u64,
    failed: Option<(io::Error, u64)>,
}

impl Writer {
    fn run(mut self, new: &Receiver<Tap>) -> Done {
        let (mut taps, mut dirty) = (Vec::new(), true);
        loop {
            let ending = loop {
                match new.try_recv() {
                    Ok(tap) => taps.push((self.interface(&tap.name), tap)),
                    Err(error) => break error == TryRecvError::Disconnected,
                }
            };
            // In turns, or at the end all that is there then.
            let most = if ending { usize::MAX } else { 64 };
            let work = taps.iter_mut().map(|(interface, tap)| self.take(*interface, tap, most)).sum::<usize>() > 0;
            dirty |= work;
            if work && !ending {
                continue;
            }
            if std::mem::take(&mut dirty)
                && let Err(error) = self.file.flush()
            {
                self.fail(error);
            }
            if ending {
                return (self.written, self.failed);
            }
            std::thread::park_timeout(REST);
        }
    }

    fn interface(&mut self, name: &str) -> u32 {
        self.file.interface(Some(name)).unwrap_or_else(|error| {
            self.fail(error);
            0
        })
    }

    /// Writes at most `most` packets of a tap; returns how many.
    fn take(&mut self, interface: u32, tap: &mut Tap, most: usize) -> usize {
        let wanted = tap.packets.available().min(most);
        let mut left = wanted;
        while left > 0 {
            left -= tap.packets.pop_burst(&mut self.taken, left.min(64));
            let mut taken = std::mem::take(&mut self.taken);
            taken.iter().for_each(|packet| self.write(interface, tap.direction, packet));
            give_back(&mut taken);
            self.taken = taken;
        }
        wanted
    }

    fn write(&mut self, interface: u32, direction: Direction, packet: &Buf) {
        if let Some((_, lost)) = &mut self.failed {
            *lost += 1;
            return;
        }
        self.scratch.clear();
        packet.segments().for_each(|buf| self.scratch.extend_from_slice(buf.bytes()));
        if let Some(tag) = packet.vlan()
            && self.scratch.len() >= 12
        {
            // IEEE 802.1Q: behind the addresses, under the type 0x8100.
            let [high, low] = tag.to_be_bytes();
            self.scratch.splice(12..12, [0x81, 0, high, low]);
        }
        let time = Duration::from_nanos(packet.timestamp().unwrap_or(0));
        match self.file.packet(interface, time, Some(direction), &self.scratch) {
            Ok(()) => self.written += 1,
            Err(error) => {
                self.fail(error);
                self.failed.iter_mut().for_each(|(_, lost)| *lost += 1);
            }
        }
    }

    fn fail(&mut self, error: io::Error) {
        tracing::warn!(%error, "the capture file cannot be written");
        self.failed.get_or_insert((error, 0));
    }
}

impl<Q> Captured<Q> {
    /// What the tap counted so far.
    pub fn counters(&self) -> &Arc<CaptureCounters> {
        &self.counters
    }

    /// Copies packets, as long as there are buffers: a copy for each of the first, in order.
    fn copy<'a>(&mut self, packets: impl Iterator<Item = &'a Buf>) {
        // The one look at the clock, which the kernel lets be read without a call.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        for packet in packets {
            let Some(mut copy) = self.copies.copy(packet) else { break };
            copy.set_timestamp(now);
            self.made.push(copy);
        }
    }

    /// Hands over the first copies, of packets that `count` went of.
    fn enqueue(&mut self, count: usize) {
        self.made.truncate(count);
        let captured = self.out.push_burst(&mut self.made);
        self.copies.put_bulk(&mut self.made);
        self.counters.captured.add(captured as u64);
        self.counters.missed.add((count - captured) as u64);
    }
}

impl<Q: RxQueue> RxQueue for Captured<Q> {
    #[inline]
    fn rx(&mut self, out: &mut Burst) -> usize {
        let had = out.len();
        let came = self.inner.rx(out);
        if came > 0 {
            self.copy(out[had..].iter());
            self.enqueue(came);
        }
        came
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.inner.wakeup()
    }

    fn arm(&mut self) -> Armed {
        self.inner.arm()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }
}

impl<Q: TxQueue> TxQueue for Captured<Q> {
    /// Packets that the queue takes are captured, also those that it drops.
    #[inline]
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if packets.is_empty() {
            return self.inner.tx(packets);
        }
        // Afterwards they are the device's.
        self.copy(packets.iter());
        let taken = self.inner.tx(packets);
        self.enqueue(taken);
        taken
    }

    #[inline]
    fn reclaim(&mut self) {
        self.inner.reclaim();
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
    use pcap_file::pcapng::{Block, PcapNgReader};
    use std::fs::File;
    use wholebar_core::net::testing::{Loop, packets, pool};

    /// Names of interfaces; packets, each with interface, flags, time and bytes.
    #[allow(clippy::type_complexity, reason = "a test's")]
    fn read(path: &Path) -> (Vec<String>, Vec<(u32, u32, Duration, Vec<u8>)>) {
        let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(interface) => {
                    assert!(interface.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
                    names.extend(interface.options.iter().filter_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                        _ => None,
                    }));
                }
                Block::EnhancedPacket(packet) => {
                    let [EnhancedPacketOption::Flags(flags)] = packet.options[..] else { panic!("no flags") };
                    assert_eq!(packet.original_len as usize, packet.data.len());
                    packets.push((packet.interface_id, flags, packet.timestamp, packet.data.into_owned()));
                }
                other => panic!("{other:?}"),
            }
        }
        (names, packets)
    }

    #[test]
    fn what_goes_by_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.pcapng");
        let pool = pool(64);
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let capture = Capture::create(&path, 1024).unwrap();
        let mut sending = capture.tap(Loop::default(), "a tx0", Direction::Out).unwrap();
        let mut receiving = capture.tap(Loop::default(), "b rx0", Direction::In).unwrap();
        let (mut got, mut count) = (Burst::new(32), 0);
        for mut burst in packets(&pool, 100, 20) {
            burst[0].set_vlan(Some(0x2007));
            let mut more = pool.get().unwrap();
            more.copy_from(&[0; 3]);
            burst[1].append(more);
            while !burst.is_empty() {
                // Some stay, and are captured when they go.
                assert!(sending.tx(&mut burst) <= 11);
                sending.inner.rx(&mut got);
                receiving.inner.tx(&mut got);
                count += receiving.rx(&mut got);
                got.give_back();
            }
        }
        let counters = [sending.counters().clone(), receiving.counters().clone()];
        assert_eq!(count, 100);
        assert!(counters.iter().all(|c| (c.captured.get(), c.missed.get()) == (100, 0)), "{counters:?}");
        assert_eq!(capture.finish().unwrap(), 200);
        let (names, packets) = read(&path);
        assert_eq!(names, ["a tx0", "b rx0"]);
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for interface in 0..2 {
            let of: Vec<_> = packets.iter().filter(|p| p.0 == interface).collect();
            assert_eq!(of.len(), 100);
            for (number, (_, flags, time, bytes)) in of.iter().enumerate() {
                assert_eq!(*flags, 2 - interface);
                assert!(began <= *time && *time <= ended);
                let mut expected = vec![number as u8; 60 + number % 40];
                expected[..8].copy_from_slice(&(number as u64).to_le_bytes());
                match number % 20 {
                    0 => drop(expected.splice(12..12, [0x81, 0, 0x20, 0x07])),
                    1 => expected.extend([0; 3]),
                    _ => {}
                }
                assert_eq!(*bytes, expected, "packet {number}");
            }
        }
        // After the end packets still go, and are missed.
        let mut burst = wholebar_core::net::testing::packets(&pool, 64, 64).next().unwrap();
        while sending.tx(&mut burst) > 0 {}
        drop(sending);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.pcapng");
        let pool = pool(256);
        let capture = Capture::create(&path, 64).unwrap();
        let mut queue = capture.tap(Loop::default(), "q", Direction::Out).unwrap();
        let mut went = 0;
        for mut burst in packets(&pool, 100, 100) {
            while !burst.is_empty() {
                went += queue.tx(&mut burst) as u64;
            }
        }
        let counters = queue.counters().clone();
        assert_eq!(counters.captured.get() + counters.missed.get(), went);
        assert_eq!(capture.finish().unwrap(), counters.captured.get());
        assert_eq!(read(&path).1.len() as u64, counters.captured.get());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_said() {
        let error = Capture::create(Path::new("/no/such/folder/x"), 8).err().unwrap().to_string();
        assert!(error.contains("/no/such/folder/x cannot be written"), "{error}");
        let capture = Capture::create(Path::new("/dev/full"), 64).unwrap();
        let mut queue = capture.tap(Loop::default(), "q", Direction::Out).unwrap();
        let pool = pool(16);
        for mut burst in packets(&pool, 8, 8) {
            assert_eq!(queue.tx(&mut burst), 8);
        }
        let error = capture.finish().unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    }
}
