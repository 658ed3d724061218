//! Our server with clients that lie: each lie is answered with an error, or ends the connection; and the next client is served.

use crate::model::{ENTRIES, RING, SCRATCH, doorbell};
use crate::raw::{self, ERROR, Message, NO_REPLY, REPLY, file, longs, word, words};
use crate::{LONG, Served, read};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use wholebar_core::pci::{CONFIG, Irq};

/// A client by hand.
struct Client(UnixStream);

impl Client {
    /// Connected, but nothing said yet.
    fn silent(served: &Served) -> Self {
        let stream = UnixStream::connect(&served.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    /// Agreed on a version.
    fn new(served: &Served) -> Self {
        let client = Self::silent(served);
        let reply = client.ask(Message::command(raw::VERSION, vec![0; 4])).unwrap();
        assert_eq!((reply.flags, &reply.payload[..4]), (REPLY, &[0; 4][..]), "minor 0, as proposed");
        client
    }

    fn say(&self, message: Message) {
        assert!(raw::send(&self.0, &message.bytes(), &message.fds));
    }

    /// Whether somebody is there to hear it.
    fn say_if_heard(&self, message: Message) -> bool {
        raw::send(&self.0, &message.bytes(), &message.fds)
    }

    /// What a command comes to; `None` where the connection ends instead.
    fn ask(&self, message: Message) -> Option<Message> {
        let (id, command) = (message.id, message.command);
        self.say(message);
        let reply = raw::receive(&self.0)?;
        assert_eq!((reply.id, reply.command), (id, command));
        assert!(reply.flags == REPLY || (reply.flags == REPLY | ERROR && reply.payload.is_empty()));
        Some(reply)
    }

    /// The `errno` of a command; 0 where it succeeds.
    fn errno(&self, message: Message) -> i32 {
        self.ask(message).expect("the connection ended").error as i32
    }
}

fn map(flags: u32, offset: u64, address: u64, size: u64) -> Message {
    Message::command(raw::DMA_MAP, [words(&[32, flags]), longs(&[offset, address, size])].concat())
}

fn unmap(flags: u32, address: u64, size: u64) -> Message {
    Message::command(raw::DMA_UNMAP, [words(&[24, flags]), longs(&[address, size])].concat())
}

fn access(command: u16, region: u32, offset: u64, count: u32, data: &[u8]) -> Message {
    Message::command(command, [longs(&[offset]), words(&[region, count]), data.to_vec()].concat())
}

fn irqs(flags: u32, kind: Irq, start: u32, count: u32) -> Message {
    Message::command(raw::SET_IRQS, words(&[20, flags, kind.index(), start, count]))
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// How often an eventfd was signalled since the last time.
fn taken(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

const EINVAL: i32 = libc::EINVAL;

#[test]
fn what_is_wrong_is_refused_and_the_client_goes_on() {
    use raw::{GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, REGION_READ, REGION_WRITE, SET_IRQS, VERSION};
    let served = Served::new();
    let client = Client::new(&served);
    let region = |argsz, index| Message::command(GET_REGION_INFO, words(&[argsz, 0, index, 0, 0, 0, 0, 0]));
    let cases = [
        ("a second version", Message::command(VERSION, vec![0; 4]), EINVAL),
        ("an unknown command", Message::command(99, vec![0; 64]), libc::EOPNOTSUPP),
        ("command 0", Message::command(0, Vec::new()), libc::EOPNOTSUPP),
        ("reading our memory", Message::command(raw::DMA_READ, longs(&[0, 64])), libc::EOPNOTSUPP),
        ("info without payload", Message::command(GET_INFO, Vec::new()), EINVAL),
        ("info with argsz 15", Message::command(GET_INFO, words(&[15, 0, 0, 0])), EINVAL),
        ("info with a file", Message::command(GET_INFO, words(&[16, 0, 0, 0])).with(file(1)), EINVAL),
        ("region 9", region(32, 9), EINVAL),
        ("region u32::MAX", region(32, u32::MAX), EINVAL),
        ("region info with argsz 31", region(31, 0), EINVAL),
        ("region info cut off", Message::command(GET_REGION_INFO, words(&[32, 0, 0])), EINVAL),
        ("interrupt kind 5", Message::command(GET_IRQ_INFO, words(&[16, 0, 5, 0])), EINVAL),
        ("interrupt info cut off", Message::command(GET_IRQ_INFO, words(&[16, 0, 0])), EINVAL),
        ("interrupt info with argsz 0", Message::command(GET_IRQ_INFO, words(&[0, 0, 0, 0])), EINVAL),
        ("an access cut off", Message::command(REGION_READ, words(&[0, 0, 0])), EINVAL),
        ("16 bytes of a BAR", access(REGION_READ, 0, 0, 16, &[]), EINVAL),
        ("16 bytes to a BAR", access(REGION_WRITE, 0, 0, 16, &[0; 16]), EINVAL),
        ("3 bytes of a BAR", access(REGION_READ, 0, 0, 3, &[]), EINVAL),
        ("nothing of a BAR", access(REGION_READ, 0, 0, 0, &[]), EINVAL),
        ("a misaligned register", access(REGION_READ, 0, SCRATCH + 2, 4, &[]), EINVAL),
        ("a region's end", access(REGION_READ, CONFIG, 4090, 8, &[]), EINVAL),
        ("behind a region's end", access(REGION_READ, CONFIG, u64::MAX, 8, &[]), EINVAL),
        ("a region that isn't there", access(REGION_READ, 1, 0, 4, &[]), EINVAL),
        ("region 100", access(REGION_READ, 100, 0, 4, &[]), EINVAL),
        ("4 GiB of a region", access(REGION_READ, CONFIG, 0, u32::MAX, &[]), EINVAL),
        ("a write with too little data", access(REGION_WRITE, 0, SCRATCH, 8, &[0; 7]), EINVAL),
        ("a write with too much data", access(REGION_WRITE, 0, SCRATCH, 8, &[0; 9]), EINVAL),
        ("a register the model refuses", access(REGION_READ, 0, 0x100, 4, &[]), libc::EIO),
        ("a map cut off", Message::command(raw::DMA_MAP, words(&[32, 3])), EINVAL),
        ("a map with unknown flags", map(1 << 9, 0, 0, 4096).with(file(4096)), EINVAL),
        ("a map by file access", map(3 | 1 << 3, 0, 0, 4096).with(file(4096)), EINVAL),
        ("a map of nothing", map(3, 0, 0, 0).with(file(4096)), EINVAL),
        ("a map of nothing, without a file", map(3, 0, 0, 0), EINVAL),
        ("a map behind all addresses", map(3, 0, u64::MAX, 4096).with(file(4096)), EINVAL),
        ("a map with two files", map(3, 0, 0, 4096).with(file(4096)).with(file(4096)), EINVAL),
        ("a map longer than its file", map(3, 0, 0, 4097).with(file(4096)), EINVAL),
        ("a map behind its file", map(3, 4096, 0, 4096).with(file(4096)), EINVAL),
        ("a map behind all offsets", map(3, u64::MAX, 0, 4096).with(file(4096)), EINVAL),
        ("a map of a socket", map(3, 0, 0, 4096).with(UnixStream::pair().unwrap().0), EINVAL),
        ("an unmap cut off", Message::command(raw::DMA_UNMAP, words(&[24, 0])), EINVAL),
        ("an unmap of nothing", unmap(0, 0, 0), EINVAL),
        ("an unmap behind all addresses", unmap(0, u64::MAX, 2), EINVAL),
        ("an unmap with a dirty bitmap", unmap(1, 0, 4096), EINVAL),
        ("an unmap of all of a part", unmap(2, 0, 4096), EINVAL),
        ("interrupts cut off", Message::command(SET_IRQS, words(&[20, 1, 2])), EINVAL),
        ("interrupt kind 9", Message::command(raw::SET_IRQS, words(&[20, 1 | 1 << 5, 9, 0, 1])), EINVAL),
        ("interrupts that aren't there", irqs(1 | 1 << 5, Irq::Msix, 19, 2), EINVAL),
        ("interrupts beyond all numbers", irqs(1 | 1 << 5, Irq::Msix, u32::MAX, 2), EINVAL),
        ("no data, no action", irqs(0, Irq::Msix, 0, 1), EINVAL),
        ("two actions", irqs(1 | 1 << 4 | 1 << 5, Irq::Msix, 0, 1), EINVAL),
        ("two kinds of data", irqs(3 | 1 << 5, Irq::Msix, 0, 1), EINVAL),
        ("masking what has no masks", irqs(1 | 1 << 3, Irq::Msix, 0, 1), libc::ENOTTY),
        ("disabling a part", irqs(1 | 1 << 5, Irq::Msix, 1, 0), EINVAL),
        ("masking none", irqs(1 | 1 << 3, Irq::Intx, 0, 0), EINVAL),
        ("booleans that aren't there", irqs(2 | 1 << 5, Irq::Msix, 0, 4), EINVAL),
        ("fewer eventfds than vectors", irqs(4 | 1 << 5, Irq::Msix, 0, 2).with(event()), EINVAL),
        ("more eventfds than vectors", irqs(4 | 1 << 5, Irq::Msix, 0, 1).with(event()).with(event()), EINVAL),
        ("a file for an eventfd", irqs(4 | 1 << 5, Irq::Msix, 0, 1).with(file(1)), EINVAL),
        ("an eventfd for masking", irqs(4 | 1 << 3, Irq::Msix, 0, 1).with(event()), EINVAL),
        ("an eventfd for no eventfd", irqs(1 | 1 << 5, Irq::Msix, 0, 1).with(event()), EINVAL),
    ];
    for (what, message, errno) in cases {
        assert_eq!(client.errno(message), errno, "{what}");
        assert_eq!(client.errno(access(REGION_READ, 0, 0, 4, &[])), 0, "after {what}");
    }
    let many = (0..17).fold(map(3, 0, 0, 4096), |m, _| m.with(file(4096)));
    assert_eq!(client.errno(many), EINVAL, "17 files");
}

#[test]
fn what_breaks_the_framing_ends_the_connection_and_the_next_client_is_served() {
    let served = Served::new();
    let version = || Message::command(raw::VERSION, vec![0; 4]);
    let first = [
        ("garbage", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("another command first", Message::command(raw::GET_INFO, words(&[16, 0, 0, 0])).bytes()),
        ("version 1.0", Message::command(raw::VERSION, vec![1, 0, 0, 0]).bytes()),
        ("a version cut off", Message::command(raw::VERSION, vec![0; 3]).bytes()),
        ("a version with bad JSON", Message::command(raw::VERSION, b"\0\0\0\0{]\0".to_vec()).bytes()),
        ("a version without NUL", Message::command(raw::VERSION, b"\0\0\0\0{}".to_vec()).bytes()),
        ("a version that wants no reply", Message { flags: NO_REPLY, command: 99, ..version() }.bytes()),
        ("a reply", Message { flags: REPLY, ..version() }.bytes()),
        ("a size of 15", Message { size: Some(15), ..version() }.bytes()),
        ("a size of 4 GiB", Message { size: Some(u32::MAX), ..version() }.bytes()),
    ];
    for (what, bytes) in first {
        let client = Client::silent(&served);
        assert!(raw::send(&client.0, &bytes, &[]));
        // A refusal may come; then the end.
        while let Some(reply) = raw::receive(&client.0) {
            assert_eq!((reply.flags, reply.error), (REPLY | ERROR, EINVAL as u32), "{what}");
        }
        assert_eq!(read::<4>(&served.connect(), 0, 0).unwrap(), 0x5eed_cafe_u32.to_le_bytes(), "after {what}");
    }
    let later = [
        ("garbage", b"0123456789abcdef".to_vec()),
        ("half a header", vec![0; 9]),
        ("half a message", Message { size: Some(100), ..Message::command(raw::RESET, Vec::new()) }.bytes()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in later {
        let client = Client::new(&served);
        raw::send(&client.0, &bytes, &[]);
        drop(client);
        assert_eq!(read::<4>(&served.connect(), 0, 0).unwrap(), 0x5eed_cafe_u32.to_le_bytes(), "after {what}");
    }
}

#[test]
fn memory_is_mapped_by_the_rules() {
    let served = Served::new();
    let client = Client::new(&served);
    let memory = file(1 << 20);
    assert_eq!(client.errno(map(3, 0x1000, 0x10000, 0x2000).with(&memory)), 0);
    assert_eq!(client.errno(map(3, 0x1000, 0x10000, 0x2000).with(&memory)), libc::EEXIST, "the same");
    assert_eq!(client.errno(map(3, 0, 0x11000, 0x2000).with(&memory)), libc::EEXIST, "overlapping at its end");
    assert_eq!(client.errno(map(3, 0, 0xf000, 0x2000)), libc::EEXIST, "overlapping at its start, without a file");
    assert_eq!(client.errno(map(1, 0, 0x12000, 0x1000).with(&memory)), 0, "to read, right behind");
    assert_eq!(client.errno(map(3, 0, 0x20000, 1 << 40)), 0, "without a file");
    assert_eq!(client.errno(unmap(0, 0x10000, 0x1000)), EINVAL, "a part of a map");
    assert_eq!(client.errno(unmap(0, 0x11000, 0x1000)), EINVAL, "its other part");
    let reply = client.ask(unmap(0, 0x10000, 0x2000)).unwrap();
    assert_eq!((reply.error, reply.payload), (0, unmap(0, 0x10000, 0x2000).payload), "the entry comes back");
    assert_eq!(client.errno(unmap(0, 0x10000, 0x2000)), 0, "nothing is there any more, and nothing is wrong");
    assert_eq!(client.errno(unmap(0, 0, 1 << 63)), 0, "all that lies inside");
    assert_eq!(client.errno(unmap(0, 1 << 63, 1 << 63)), 0, "up to the last address");
    assert_eq!(client.errno(map(3, 0, 0x10000, 1 << 20).with(&memory)), 0, "all is free");
    assert_eq!(client.errno(unmap(2, 0, 0)), 0, "all of it");
    assert_eq!(client.errno(map(3, 0, 0, 1 << 20).with(&memory)), 0);
    // As SPDK says it, who sends the file once more.
    assert_eq!(client.errno(unmap(0, 0, 1 << 20).with(&memory)), 0, "with a descriptor");
    assert_eq!(client.errno(unmap(0, 0, 1 << 20).with(&memory).with(&memory)), EINVAL, "with two");
    assert_eq!(client.errno(map(3, 0, 0, 1 << 20).with(&memory)), 0, "it was taken back");
}

#[test]
fn thousands_of_maps_of_one_file_are_one_mapping() {
    let served = Served::new();
    let client = Client::new(&served);
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = rustix::fs::memfd_create("thousands", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 8192 << 12).unwrap();
    // All at once, as QEMU sends them, in an order that isn't that of the addresses.
    let pages: Vec<u64> = (0..8192).map(|i| i * 4099 % 8192).collect();
    std::thread::scope(|both| {
        both.spawn(|| pages.iter().for_each(|p| client.say(map(3, p << 12, p << 13, 0x1000).with(&memory))));
        pages.iter().for_each(|_| assert_eq!(raw::receive(&client.0).unwrap().error, 0));
    });
    assert_eq!(maps().matches("memfd:thousands").count(), 1);
    assert_eq!(client.errno(map(3, 0, 8191 << 13, 0x1000).with(&memory)), libc::EEXIST);
    assert_eq!(client.errno(unmap(0, 0, 8192 << 13)), 0);
    assert_eq!(maps().matches("memfd:thousands").count(), 0, "all references are gone before the reply");
}

#[test]
fn a_file_that_grows_is_mapped_anew_and_what_is_in_use_stays() {
    let served = Served::new();
    let client = Client::new(&served);
    let memory = rustix::fs::memfd_create("growing", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:growing").count();
    for pages in 1..=4u64 {
        let end = pages << 16;
        assert_eq!(client.errno(map(3, end - 4096, end, 4096).with(&memory)), EINVAL, "it is shorter yet");
        rustix::fs::ftruncate(&memory, end).unwrap();
        assert_eq!(client.errno(map(3, end - 4096, end, 4096).with(&memory)), 0);
        assert_eq!(mappings() as u64, pages);
    }
    assert_eq!(client.errno(unmap(2, 0, 0)), 0);
    assert_eq!(mappings(), 0);
}

#[test]
fn no_more_mappings_than_a_process_can_bear() {
    let served = Served::new();
    let client = Client::new(&served);
    let errnos: Vec<_> = (0..1030).map(|i| client.errno(map(3, 0, i << 12, 4096).with(file(4096)))).collect();
    assert_eq!(errnos.iter().filter(|e| **e == 0).count(), 1024);
    assert_eq!(errnos[1024..], [libc::ENOSPC; 6]);
    assert_eq!(client.errno(unmap(0, 0, 4096)), 0);
    assert_eq!(client.errno(map(3, 0, 0, 4096).with(file(4096))), 0, "there is room again");
}

#[test]
fn no_more_maps_than_were_agreed_on() {
    let served = Served::new();
    let client = Client::new(&served);
    std::thread::scope(|both| {
        both.spawn(|| (0..65_536u64).for_each(|p| client.say(map(3, 0, p << 12, 0x1000))));
        (0..65_535).for_each(|_| assert_eq!(raw::receive(&client.0).unwrap().error, 0));
        assert_eq!(raw::receive(&client.0).unwrap().error as i32, libc::ENOSPC);
    });
}

/// Has 16 bytes of the buffer done, and waits until that is over. The ring's address is 0x10000, the buffer's 0x20000.
fn kick(client: &Client, ring: &OwnedFd) {
    // A second entry follows, in the ring's own memory: what cannot be done of the first is passed over, and nothing tells.
    rustix::io::pwrite(ring, &longs(&[0x20000, 16, 0x11000, 16]), 0).unwrap();
    let writes = [(RING, longs(&[0x10000])), (doorbell(), words(&[2]))];
    for (at, data) in writes {
        assert_eq!(client.errno(access(raw::REGION_WRITE, 0, at, data.len() as u32, &data)), 0);
    }
    // The count is kept behind the entries.
    let mut done = [0; 8];
    let began = std::time::Instant::now();
    while done != 2u64.to_ne_bytes() {
        rustix::io::pread(ring, &mut done, ENTRIES * 16).unwrap();
        assert!(began.elapsed() < LONG, "{done:?}");
        std::thread::yield_now();
    }
}

#[test]
fn memory_that_may_only_be_read_is_not_written_and_what_has_no_file_is_not_touched() {
    for (flags, fd, written) in [(3, true, true), (1, true, false), (3, false, false)] {
        let served = Served::new();
        let client = Client::new(&served);
        let (ring, buffer) = (file(0x2000), file(0x1000));
        assert_eq!(client.errno(map(3, 0, 0x10000, 0x2000).with(&ring)), 0);
        let at_buffer = map(flags, 0, 0x20000, 0x1000);
        assert_eq!(client.errno(if fd { at_buffer.with(&buffer) } else { at_buffer }), 0);
        kick(&client, &ring);
        let mut bytes = [0; 16];
        rustix::io::pread(&buffer, &mut bytes, 0).unwrap();
        assert_eq!(bytes, if written { [1; 16] } else { [0; 16] });
        assert_eq!(client.errno(access(raw::REGION_READ, 0, 0, 4, &[])), 0, "it lives");
    }
}

#[test]
fn interrupts_are_raised_masked_and_taken_away() {
    let served = Served::new();
    let client = Client::new(&served);
    let (a, b) = (event(), event());
    let trigger = 1 << 5;
    assert_eq!(client.errno(irqs(4 | trigger, Irq::Msix, 3, 2).with(&a).with(&b)), 0);
    assert_eq!(client.errno(irqs(1 | trigger, Irq::Msix, 0, 20)), 0, "all");
    assert_eq!((taken(&a), taken(&b)), (1, 1));
    let mut bools = irqs(2 | trigger, Irq::Msix, 3, 2);
    bools.payload.extend([0, 1]);
    assert_eq!(client.errno(bools), 0, "the second");
    assert_eq!((taken(&a), taken(&b)), (0, 1));
    assert_eq!(client.errno(irqs(4 | trigger, Irq::Msix, 4, 1)), 0, "without an eventfd: take it away");
    assert_eq!(client.errno(irqs(1 | trigger, Irq::Msix, 0, 20)), 0);
    assert_eq!((taken(&a), taken(&b)), (1, 0));
    assert_eq!(client.errno(irqs(1 | trigger, Irq::Msix, 0, 0)), 0, "disable");
    assert_eq!(client.errno(irqs(1 | trigger, Irq::Msix, 0, 20)), 0);
    assert_eq!((taken(&a), taken(&b)), (0, 0));

    assert_eq!(client.errno(irqs(4 | trigger, Irq::Intx, 0, 1).with(&a)), 0);
    assert_eq!(client.errno(irqs(1 | 1 << 3, Irq::Intx, 0, 1)), 0, "mask");
    assert_eq!(client.errno(irqs(1 | trigger, Irq::Intx, 0, 1)), 0);
    assert_eq!(taken(&a), 0, "masked");
    assert_eq!(client.errno(irqs(1 | 1 << 4, Irq::Intx, 0, 1)), 0, "unmask");
    assert_eq!(taken(&a), 1, "it was pending");
    assert_eq!(client.errno(irqs(1 | 1 << 4, Irq::Intx, 0, 1)), 0, "unmask once more");
    assert_eq!(taken(&a), 0, "only once");
}

#[test]
fn an_eventfd_that_would_block_does_not_stop_the_server() {
    let served = Served::new();
    let client = Client::new(&served);
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert_eq!(client.errno(irqs(4 | 1 << 5, Irq::Msix, 0, 1).with(&full)), 0);
    assert_eq!(client.errno(irqs(1 | 1 << 5, Irq::Msix, 0, 1)), 0);
    assert_eq!(client.errno(access(raw::REGION_READ, 0, 0, 4, &[])), 0);
}

/// The client fills its eventfd at any moment, and empties it: also between a look at it and a write.
#[test]
fn an_eventfd_that_is_filled_meanwhile_does_not_stop_the_server() {
    let served = Served::new();
    let client = Client::new(&served);
    let blocking = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(client.errno(irqs(4 | 1 << 5, Irq::Msix, 0, 1).with(&blocking)), 0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|both| {
        both.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // Full, if it is empty; and empty, if it is not.
                let flags = |nonblocking| if nonblocking { OFlags::NONBLOCK } else { OFlags::empty() };
                rustix::fs::fcntl_setfl(&blocking, flags(true)).unwrap();
                let _ = rustix::io::write(&blocking, &(u64::MAX - 1).to_ne_bytes());
                rustix::fs::fcntl_setfl(&blocking, flags(false)).unwrap();
                std::thread::yield_now();
                rustix::fs::fcntl_setfl(&blocking, flags(true)).unwrap();
                let _ = rustix::io::read(&blocking, &mut [0; 8]);
            }
        });
        let mut many = irqs(2 | 1 << 5, Irq::Msix, 0, 1);
        many.payload.push(1);
        let silent = Message { flags: NO_REPLY, ..many };
        for _ in 0..200 {
            (0..50).for_each(|_| assert!(raw::send(&client.0, &silent.bytes(), &[])));
            assert_eq!(client.errno(access(raw::REGION_READ, 0, 0, 4, &[])), 0);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_command_that_wants_no_reply_gets_none() {
    let served = Served::new();
    let client = Client::new(&served);
    let silent = |m: Message| Message { flags: NO_REPLY, ..m };
    client.say(silent(access(raw::REGION_WRITE, 0, SCRATCH, 8, &[7; 8])));
    client.say(silent(access(raw::REGION_WRITE, 0, SCRATCH, 16, &[8; 16])));
    client.say(silent(Message::command(99, Vec::new())));
    let reply = client.ask(Message { id: 999, ..access(raw::REGION_READ, 0, SCRATCH, 8, &[]) }).unwrap();
    assert_eq!(reply.payload[16..], [7; 8], "in order, and the bad one changed nothing");
}

#[test]
fn a_region_is_described_in_as_much_room_as_there_is() {
    let served = Served::new();
    let client = Client::new(&served);
    let ask = |argsz, index| {
        client.ask(Message::command(raw::GET_REGION_INFO, words(&[argsz, 0, index, 0, 0, 0, 0, 0]))).unwrap()
    };
    let page = wholebar_core::PageSize::host().bytes();
    let short = ask(32, 0);
    // READ, WRITE and MMAP, but no capabilities yet, and no file.
    assert_eq!((short.payload.len(), short.fds.len(), word(&short.payload, 1)), (32, 0, 7));
    let argsz = word(&short.payload, 0);
    assert_eq!(argsz, 32 + 32 + 8, "one area, and MSI-X");
    let full = ask(argsz, 0);
    assert_eq!((full.payload.len() as u32, full.fds.len()), (argsz, 1));
    // Flags with CAPS, index, offset of the first: a sparse one (1, version 1) with the doorbells' page, then MSI-X (3).
    assert_eq!((word(&full.payload, 1), word(&full.payload, 2), word(&full.payload, 3)), (15, 0, 32));
    let caps = [words(&[1 | 1 << 16, 64, 1, 0]), longs(&[page, page]), words(&[3 | 1 << 16, 0])].concat();
    assert_eq!(full.payload[32..], caps);
    // A region that is direct from end to end has an area all the same.
    let whole = ask(4096, 2);
    assert_eq!(whole.payload[32..], [words(&[1 | 1 << 16, 0, 1, 0]), longs(&[0, page])].concat());
    let none = ask(4096, 1);
    assert_eq!(none.payload, [words(&[32, 0, 1, 0]), longs(&[0, 0])].concat());
}

#[test]
fn a_client_that_takes_no_files_is_offered_none() {
    let served = Served::new();
    let client = Client::silent(&served);
    let version = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":0}}\0".to_vec();
    assert_eq!(client.errno(Message::command(raw::VERSION, version)), 0);
    let ask = Message::command(raw::GET_REGION_INFO, words(&[4096, 0, 0, 0, 0, 0, 0, 0]));
    let reply = client.ask(ask).unwrap();
    assert_eq!((reply.payload.len(), reply.fds.len(), word(&reply.payload, 1)), (32, 0, 3));
}

#[test]
fn clients_are_served_one_after_another() {
    let served = Served::new();
    let first = Client::new(&served);
    let second = Client::silent(&served);
    second.say(Message::command(raw::VERSION, vec![0; 4]));
    second.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(raw::receive(&second.0).is_none(), "it waits");
    assert_eq!(first.errno(access(raw::REGION_READ, 0, 0, 4, &[])), 0);
    drop(first);
    second.0.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(raw::receive(&second.0).unwrap().command, raw::VERSION);
}

#[test]
fn a_client_that_does_not_read_its_replies_gets_them_when_it_does() {
    let served = Served::new();
    let client = Client::new(&served);
    let asks = 2_000;
    std::thread::scope(|both| {
        both.spawn(|| (0..asks).for_each(|_| client.say(access(raw::REGION_READ, CONFIG, 0, 4096, &[]))));
        // Until the socket is full in both directions.
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..asks {
            assert_eq!(raw::receive(&client.0).unwrap().payload[16..], crate::model::config());
        }
    });
}

#[test]
fn messages_may_come_byte_by_byte() {
    let served = Served::new();
    let client = Client::new(&served);
    let message = access(raw::REGION_WRITE, 0, SCRATCH, 8, &[9; 8]).bytes();
    message.iter().for_each(|b| assert!(raw::send(&client.0, &[*b], &[])));
    assert_eq!(raw::receive(&client.0).unwrap().error, 0);
    assert_eq!(client.ask(access(raw::REGION_READ, 0, SCRATCH, 8, &[])).unwrap().payload[16..], [9; 8]);
}

#[test]
fn a_client_that_takes_its_memory_away_does_not_take_the_server_with_it() {
    for taken in [true, false] {
        let served = Served::new();
        let client = Client::new(&served);
        let (ring, buffer) = (file(0x2000), file(0x1000));
        assert_eq!(client.errno(map(3, 0, 0x10000, 0x2000).with(&ring)), 0);
        assert_eq!(client.errno(map(3, 0, 0x20000, 0x1000).with(&buffer)), 0);
        rustix::io::pwrite(&ring, &longs(&[0x20000, 16]), 0).unwrap();
        assert_eq!(client.errno(access(raw::REGION_WRITE, 0, RING, 8, &longs(&[0x10000]))), 0);
        if taken {
            rustix::fs::ftruncate(&buffer, 0).unwrap();
        }
        client.say(access(raw::REGION_WRITE, 0, doorbell(), 4, &words(&[1])));
        let last = std::iter::from_fn(|| {
            client.say_if_heard(access(raw::REGION_READ, 0, 0, 4, &[])).then(|| raw::receive(&client.0)).flatten()
        })
        .take(1_000)
        .count();
        assert_eq!(last < 1_000, taken, "it is sent away, and only then");
        drop(client);
        assert_eq!(read::<4>(&served.connect(), 0, 0).unwrap(), 0x5eed_cafe_u32.to_le_bytes());
    }
}

/// What QEMU's `vfio-user-pci` says, in its order, and what it insists on in the answers (hw/vfio-user/).
#[test]
fn qemu_gets_what_it_insists_on() {
    let served = Served::new();
    let client = Client::silent(&served);
    let capabilities =
        br#"{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16,
        "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}"#;
    let version = [&[0; 4], &capabilities[..], b"\0"].concat();
    let reply = client.ask(Message { id: 0, ..Message::command(raw::VERSION, version) }).unwrap();
    assert_eq!(reply.payload[..4], [0; 4], "a minor version no higher than its own");
    let json = reply.payload[4..].strip_suffix(b"\0").expect("the NUL");
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let capability = |name: &str| json["capabilities"][name].as_u64().unwrap();
    assert!(capability("max_msg_fds") <= 16);
    assert!(capability("max_data_xfer_size") <= 1 << 20);
    assert!(capability("max_dma_maps") <= 65_535);
    assert!(capability("pgsizes") > 0 && capability("pgsizes") % 4096 == 0);
    let known = ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"];
    assert!(json["capabilities"].as_object().unwrap().keys().all(|k| known.contains(&k.as_str())), "or it warns");

    // Guest memory, before anything else is known, and without waiting; part of it has no file.
    let ram = file(4 << 20);
    client.say(map(3, 0, 0, 0xa0000).with(&ram));
    client.say(map(1, 0, 0xc0000, 0x1000));
    client.say(map(3, 0x100000, 0x100000, 0x300000).with(&ram));
    client.say(unmap(0, 0xfee0_0000, 0x1000));
    client.say(unmap(0, 0, 0xa0000));
    client.say(map(3, 0, 0, 0x80000).with(&ram));
    for payload in [0, 0, 0, 24, 24, 0] {
        let reply = raw::receive(&client.0).unwrap();
        assert_eq!((reply.error, reply.payload.len()), (0, payload), "{reply:?}");
    }

    let info = client.ask(Message::command(raw::GET_INFO, words(&[16, 0, 0, 0]))).unwrap();
    assert_eq!(info.payload, words(&[16, 3, 9, 5]));
    for index in (0..6).chain([7]) {
        let ask = |argsz| Message::command(raw::GET_REGION_INFO, words(&[argsz, 0, index, 0, 0, 0, 0, 0]));
        let reply = client.ask(ask(32)).unwrap();
        let argsz = word(&reply.payload, 0);
        if argsz > 32 {
            let reply = client.ask(ask(argsz)).unwrap();
            assert_eq!((reply.payload.len() as u32, reply.fds.len()), (argsz, 1));
        }
    }
    for index in 0..5 {
        let reply = client.ask(Message::command(raw::GET_IRQ_INFO, words(&[16, 0, index, 0]))).unwrap();
        assert_eq!((reply.payload.len(), word(&reply.payload, 2)), (16, index));
    }
    let config = client.ask(access(raw::REGION_READ, CONFIG, 0, 4096, &[])).unwrap();
    assert_eq!(config.payload[16..], crate::model::config());
    let fds = [event(), event()];
    assert_eq!(client.errno(irqs(4 | 1 << 5, Irq::Msix, 0, 2).with(&fds[0]).with(&fds[1])), 0);
    assert_eq!(client.errno(irqs(1 | 1 << 5, Irq::Msix, 0, 0)), 0);
    assert_eq!(client.errno(Message::command(raw::RESET, Vec::new())), 0);
    // Guest memory comes and goes while it runs.
    assert_eq!(client.errno(unmap(2, 0, 0)), 0);
}
