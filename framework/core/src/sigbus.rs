//! What happens when a mapped page is taken away: a flag says so, and other memory is put there, instead of the death of the process.
//!
//! The kernel sends SIGBUS for a touch of a device's page while the device's memory decode is off, and of a file's page that is no
//! longer in the file. For a guarded range, a handler raises the range's flag. Then it replaces *that page* of registers by one of all ones (what
//! a bus answers for a device that isn't there), or *all of a range* of memory by zeros: whoever took a gigabyte away would else have a mapping
//! made for each of its pages, and a process has only so many. A store goes to the replacement, where nobody looks. A SIGBUS that isn't ours
//! goes on to whoever handled it before. The handler takes no lock and allocates nothing: the ranges are words in a fixed table.
//!
//! This file does *not* know what the ranges are. A page that comes back later isn't seen: the range stays gone.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::PageSize;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, atomic::AtomicBool};

/// How many ranges can be guarded: each BAR of 64 functions several times over, and a thousand memory files of a vfio-user client.
const RANGES: usize = 2048;
/// How many pages of registers are replaced one by one; then all of the range is, as memory is.
const PAGES: usize = 256;

/// What is guarded, and so what it reads when it is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guarded {
    /// All ones, of each page that is touched.
    Registers,
    /// Zeros, all of it.
    Memory,
}

/// A guarded range; the guard ends on drop, which must come before the range is unmapped.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: usize,
    gone: Arc<AtomicBool>,
}

/// One range. `start` is 0 where the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    writable: AtomicBool,
    /// [`Guarded::Registers`].
    registers: AtomicBool,
    /// How many of its pages were replaced one by one.
    replaced: AtomicUsize,
    /// It lives as long as the range's [`Guard`].
    gone: AtomicPtr<AtomicBool>,
}

static SLOTS: [Slot; RANGES] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        writable: AtomicBool::new(false),
        registers: AtomicBool::new(false),
        replaced: AtomicUsize::new(0),
        gone: AtomicPtr::new(std::ptr::null_mut()),
    }
}; RANGES];
/// Mappings that can be given up for others, by address.
static SPARES: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// For those who take and free slots; the handler doesn't.
static TABLE: Mutex<()> = Mutex::new(());
/// Who handled SIGBUS before: set before the handler is installed.
static EARLIER: OnceLock<libc::sigaction> = OnceLock::new();

impl Guard {
    /// Guards `len` bytes from `base` on: all of one mapping in pages of size `page`; `gone` is raised when one of them is taken away.
    ///
    /// # Errors
    /// Those of sigaction(2); one of kind `Other` where [`RANGES`] mappings are guarded already.
    pub(crate) fn new(
        base: NonNull<u8>,
        len: usize,
        page: PageSize,
        what: Guarded,
        writable: bool,
        gone: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let _table = TABLE.lock().unwrap_or_else(|e| e.into_inner());
        install()?;
        refill_spares();
        let free = SLOTS.iter().position(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let slot = free.ok_or_else(|| io::Error::other(format!("{RANGES} mappings are guarded already")))?;
        let start = base.as_ptr().addr();
        let s = &SLOTS[slot];
        // A mapping is whole pages, whatever length was asked for.
        let end = start.checked_add(page.ceil(len as u64) as usize);
        let end = end.ok_or_else(|| io::Error::other(format!("{len} bytes from {start:#x} on are no mapping")))?;
        s.end.store(end, Ordering::Relaxed);
        s.page.store(page.bytes() as usize, Ordering::Relaxed);
        s.writable.store(writable, Ordering::Relaxed);
        s.registers.store(what == Guarded::Registers, Ordering::Relaxed);
        s.replaced.store(0, Ordering::Relaxed);
        s.gone.store(Arc::as_ptr(&gone).cast_mut(), Ordering::Relaxed);
        // Pairs with the Acquire in `contain`: who sees the start sees the rest. (A thread that faults in this range has been
        // told of it after this, so it can't come too late.)
        s.start.store(start, Ordering::Release);
        Ok(Self { slot, gone })
    }

    /// Whether a page of it was taken away.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody touches the range any more, so no handler is at work on it.
        SLOTS[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    if EARLIER.get().is_some() {
        return Ok(());
    }
    let mut earlier = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only, into a structure of ours.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), earlier.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: written by the call above.
    let earlier = unsafe { earlier.assume_init() };
    let _ = EARLIER.set(earlier);
    // SAFETY: all zero is a valid action: the default one, without flags, and an empty mask.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = handle as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handle` does only what a signal handler may: loads, stores, and system calls.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: this thread's errno, which the interrupted code may be about to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the kernel passes a valid description (SA_SIGINFO); that of a fault has an address, the others are told apart by code.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if !(code == libc::BUS_ADRERR && contain(address)) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Puts other memory at `address`, if it is in a guarded range.
fn contain(address: usize) -> bool {
    for slot in &SLOTS {
        // Pairs with the Release in `Guard::new`.
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        if start == 0 || address < start || address >= end {
            continue;
        }
        // SAFETY: a thread that touches the range holds its mapping, and so the guard, which keeps the flag.
        unsafe { (*slot.gone.load(Ordering::Relaxed)).store(true, Ordering::Relaxed) };
        let (page, writable) = (slot.page.load(Ordering::Relaxed), slot.writable.load(Ordering::Relaxed));
        let one = slot.registers.load(Ordering::Relaxed) && slot.replaced.fetch_add(1, Ordering::Relaxed) < PAGES;
        // A page's size is a power of two, and `end` lies behind `address`; nothing here may panic, whatever is in the table.
        let (at, len) = (address & page.wrapping_neg(), end.saturating_sub(start));
        return (one && replace(at, page, writable)) || replace_all(start, len, writable);
    }
    false
}

/// Puts zeros in the place of a whole mapping. A process that has as many mappings as it may gets none, not even in the place of
/// another: then one of those that were put aside goes. Where the system refuses one kind of memory, or has none for the moment,
/// another try is all that there is between us and the end.
fn replace_all(start: usize, len: usize, writable: bool) -> bool {
    const TRIES: usize = 1000;
    let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let at = std::ptr::without_provenance_mut::<c_void>(start);
    (0..TRIES).any(|attempt| {
        if attempt > 0 {
            give_spare();
        }
        [libc::MAP_PRIVATE, libc::MAP_SHARED].into_iter().any(|kind| {
            let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            // SAFETY: what is there is one guarded mapping, of whose bytes nobody holds a reference: it is reached as registers and
            // shared memory are, whose bytes change at any time. It stays a mapping to all others, and goes when that is unmapped.
            unsafe { libc::mmap(at, len, prot, flags, -1, 0) != libc::MAP_FAILED }
        })
    })
}

/// Puts a page of all ones at `at`: made elsewhere and moved there whole, so that nobody sees it half made.
fn replace(at: usize, page: usize, writable: bool) -> bool {
    let (any, rw) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new mapping where the kernel likes.
    let fresh = unsafe { libc::mmap(any, page, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if fresh == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: a page of ours, writable.
    unsafe { fresh.cast::<u8>().write_bytes(0xff, page) };
    // SAFETY: a page of ours; where it fails, stores to it stay possible, which harms nobody.
    let _ = writable || unsafe { libc::mprotect(fresh, page, libc::PROT_READ) } == 0;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let target = std::ptr::without_provenance_mut::<c_void>(at);
    // SAFETY: what is at `at` is one page of a guarded mapping, of whose bytes nobody holds a reference: it is reached as registers
    // are. It stays a page of the same mapping to all others, and goes when that is unmapped.
    unsafe { libc::mremap(fresh, page, page, flags, target) != libc::MAP_FAILED }
}

/// Puts mappings aside, of a page each, as far as they are missing.
fn refill_spares() {
    let page = PageSize::host().bytes() as usize;
    for spare in &SPARES {
        if spare.load(Ordering::Relaxed) == 0 {
            let (any, flags) = (std::ptr::null_mut(), libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping where the kernel likes. A shared one is never merged with its neighbours.
            let at = unsafe { libc::mmap(any, page, libc::PROT_NONE, flags, -1, 0) };
            if at != libc::MAP_FAILED {
                spare.store(at.addr(), Ordering::Relaxed);
            }
        }
    }
}

/// Gives one of them up.
fn give_spare() {
    let given = SPARES.iter().map(|spare| spare.swap(0, Ordering::Relaxed)).find(|at| *at != 0);
    if let Some(at) = given {
        let page = PageSize::host().bytes() as usize;
        // SAFETY: a mapping of ours that nobody touches, and that nobody else gives up: it was swapped out.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(at), page) };
    }
}

/// Hands a signal that isn't ours to whoever handled it before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(earlier) = EARLIER.get() else { return };
    match earlier.sa_sigaction {
        libc::SIG_DFL => {
            // SAFETY: the default action again; the fault happens again on return, and then ends the process as it would have.
            unsafe { libc::sigaction(signal, earlier, std::ptr::null_mut()) };
            // SAFETY: one that was sent, rather than a fault, doesn't happen again by itself. It is delivered on return.
            unsafe { libc::raise(signal) };
        }
        // Asked to be ignored: a fault can't be (the kernel ends the process), one that was sent can.
        libc::SIG_IGN => {
            // SAFETY: as above.
            unsafe { libc::sigaction(signal, earlier, std::ptr::null_mut()) };
        }
        function if earlier.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with this flag it is a function of three arguments, as installed by whoever was before us.
            let function: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(function) };
            function(signal, info, context);
        }
        function => {
            // SAFETY: without it, one of one argument.
            let function: extern "C" fn(c_int) = unsafe { std::mem::transmute(function) };
            function(signal);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// `pages` pages of a file that has none any more: each touch is a SIGBUS.
    struct Pulled(NonNull<u8>, usize);

    impl Pulled {
        fn new(pages: usize, writable: bool) -> Self {
            let len = pages * PageSize::host().bytes() as usize;
            let fd = memfd_create("pulled", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&fd, len as u64).unwrap();
            let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
            // SAFETY: a new mapping where the kernel likes.
            let base = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }.unwrap();
            ftruncate(&fd, 0).unwrap();
            Self(NonNull::new(base.cast()).unwrap(), len)
        }

        fn at(&self, offset: usize) -> *mut u64 {
            // SAFETY: inside, by the tests' own numbers.
            unsafe { self.0.as_ptr().add(offset).cast() }
        }
    }

    impl Drop for Pulled {
        fn drop(&mut self) {
            // SAFETY: mapped in `new`, and nobody has the address any more.
            unsafe { munmap(self.0.as_ptr().cast(), self.1) }.unwrap();
        }
    }

    #[test]
    fn a_guarded_page_reads_all_ones_and_says_so() {
        let page = PageSize::host().bytes() as usize;
        let pulled = Pulled::new(3, true);
        let gone = Arc::new(AtomicBool::new(false));
        let guard = Guard::new(pulled.0, pulled.1, PageSize::host(), Guarded::Registers, true, gone.clone()).unwrap();
        assert!(!guard.is_gone());
        // SAFETY: inside; the handler puts a page there.
        assert_eq!(unsafe { pulled.at(page + 8).read_volatile() }, u64::MAX);
        assert!(guard.is_gone() && gone.load(Ordering::Relaxed));
        // SAFETY: as above; stores go nowhere, and the other pages are replaced in their turn.
        unsafe { pulled.at(0).write_volatile(5) };
        // SAFETY: as above.
        assert_eq!(unsafe { pulled.at(2 * page + page - 8).read_volatile() }, u64::MAX);
        drop(guard);
        assert_eq!(Arc::strong_count(&gone), 1);
    }

    /// How many mappings of this process lie in a range.
    fn mappings(pulled: &Pulled) -> usize {
        let (start, end) = (pulled.0.as_ptr().addr(), pulled.0.as_ptr().addr() + pulled.1);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let overlaps = |line: &str| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let [from, to] = [from, to].map(|hex| usize::from_str_radix(hex, 16));
            Some(from.ok()? < end && start < to.ok()?)
        };
        maps.lines().filter(|line| overlaps(line).unwrap()).count()
    }

    #[test]
    fn memory_of_any_size_is_replaced_at_once() {
        // More pages than a process may have mappings (vm.max_map_count is 65,530).
        let page = PageSize::host().bytes() as usize;
        let pages = 80_000;
        let pulled = Pulled::new(pages, true);
        let gone = Arc::new(AtomicBool::new(false));
        let guard = Guard::new(pulled.0, pulled.1, PageSize::host(), Guarded::Memory, true, gone.clone()).unwrap();
        for at in (0..pages).rev() {
            // SAFETY: inside; the handler puts memory there.
            assert_eq!(unsafe { pulled.at(at * page).read_volatile() }, 0);
        }
        assert!(guard.is_gone());
        assert_eq!(mappings(&pulled), 1);
        // SAFETY: as above.
        unsafe { pulled.at(page).write_volatile(5) };
    }

    #[test]
    fn registers_of_any_size_are_replaced_by_a_bounded_number_of_mappings() {
        let page = PageSize::host().bytes() as usize;
        let pages = 80_000;
        let pulled = Pulled::new(pages, true);
        let _guard =
            Guard::new(pulled.0, pulled.1, PageSize::host(), Guarded::Registers, true, Arc::default()).unwrap();
        for at in 0..pages {
            // SAFETY: inside; the handler puts memory there.
            let value = unsafe { pulled.at(at * page).read_volatile() };
            assert_eq!(value, if at < PAGES { u64::MAX } else { 0 });
        }
        assert_eq!(mappings(&pulled), 1);
    }

    #[test]
    fn a_process_that_may_have_no_further_mapping_survives() {
        let (status, out) = child("no mappings");
        assert!(status.success() && out.contains("survived"), "{status} {out}");
    }

    /// Makes mappings until there can be no more.
    fn take_all_mappings() {
        let page = PageSize::host().bytes() as usize;
        // Every other page with another protection is a mapping of its own.
        let taken = Pulled::new(200_000, true);
        for at in (0..200_000).step_by(2) {
            // SAFETY: a page of ours that nobody touches.
            if unsafe { libc::mprotect(taken.at(at * page).cast(), page, libc::PROT_NONE) } < 0 {
                return std::mem::forget(taken);
            }
        }
        panic!("this system lets a process have any number of mappings");
    }

    #[test]
    fn errno_survives() {
        let pulled = Pulled::new(1, false);
        let _guard =
            Guard::new(pulled.0, pulled.1, PageSize::host(), Guarded::Registers, false, Arc::default()).unwrap();
        // SAFETY: this thread's.
        unsafe { *libc::__errno_location() = libc::EXDEV };
        // SAFETY: inside; the handler puts a page there.
        let value = unsafe { pulled.at(0).read_volatile() };
        // SAFETY: this thread's.
        let errno = unsafe { *libc::__errno_location() };
        assert_eq!((value, errno), (u64::MAX, libc::EXDEV));
    }

    /// Runs one of the bodies below in a process of its own, and returns how that ended and what it printed.
    fn child(body: &str) -> (std::process::ExitStatus, String) {
        let test = format!("{}::bodies", module_path!().split_once("::").unwrap().1);
        let out = Command::new(std::env::current_exe().unwrap())
            .args([&test, "--exact", "--nocapture", "--test-threads=1"])
            .env("WHOLEBAR_TEST_SIGBUS", body)
            .output()
            .unwrap();
        (out.status, String::from_utf8_lossy(&out.stdout).into_owned())
    }

    #[test]
    fn bodies() {
        let Ok(body) = std::env::var("WHOLEBAR_TEST_SIGBUS") else { return };
        extern "C" fn earlier(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
            // SAFETY: the kernel's; and `_exit` may be called from a handler.
            unsafe { libc::_exit(if (*info).si_code == libc::BUS_ADRERR { 42 } else { 43 }) };
        }
        if body == "handled" {
            // SAFETY: all zero is valid, and the handler only exits.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = earlier as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
            }
        }
        if body == "sent" {
            // Rust's own handler would swallow it.
            // SAFETY: the default action.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        }
        if body == "no mappings" {
            let guarded = [Guarded::Memory, Guarded::Registers].map(|what| {
                let pulled = Pulled::new(64, true);
                let guard = Guard::new(pulled.0, pulled.1, PageSize::host(), what, true, Arc::default()).unwrap();
                (guard, pulled)
            });
            take_all_mappings();
            for (guard, pulled) in &guarded {
                for at in 0..64 {
                    // SAFETY: inside; the handler puts memory there.
                    unsafe { pulled.at(at * PageSize::host().bytes() as usize).read_volatile() };
                }
                assert!(guard.is_gone());
            }
            return println!("survived");
        }
        let ours = Pulled::new(1, body != "store");
        let guard =
            Guard::new(ours.0, ours.1, PageSize::host(), Guarded::Registers, body != "store", Arc::default()).unwrap();
        // SAFETY: inside; the handler puts a page there.
        assert_eq!(unsafe { ours.at(0).read_volatile() }, u64::MAX);
        match body.as_str() {
            // SAFETY: a signal that was sent.
            "sent" => drop(unsafe { libc::raise(libc::SIGBUS) }),
            // SAFETY: mapped, but read-only: the death of this process is the point.
            "store" => unsafe { ours.at(0).write_volatile(1) },
            // The guard is gone, and the pages of the next mapping are nobody's.
            _ => {
                drop(guard);
                let foreign = Pulled::new(1, true);
                // SAFETY: mapped, but without a page: what happens then is the point.
                unsafe { foreign.at(0).read_volatile() };
            }
        }
        println!("survived");
    }

    #[test]
    fn a_foreign_fault_ends_the_process_as_it_would_have() {
        for body in ["fault", "sent"] {
            let (status, out) = child(body);
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{body}: {status} {out}");
        }
    }

    #[test]
    fn a_foreign_fault_goes_to_the_earlier_handler() {
        let (status, out) = child("handled");
        assert_eq!(status.code(), Some(42), "{out}");
    }

    #[test]
    fn a_read_only_range_stays_read_only() {
        let (status, out) = child("store");
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status} {out}");
    }
}
