//! What went wrong, as C is told of it: a number of errno.h, and a sentence that each thread has of its own.
//!
//! [`entry`] is the first thing in every function of the library: no panic passes it.

use crate::handle::Wrong;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use wholebar::{DriverError, OpenError};

/// An error: its number, and what there is to say.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) number: c_int,
    pub(crate) text: Cow<'static, CStr>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

thread_local! {
    /// The last error of this thread.
    static LAST: RefCell<Failure> = const { RefCell::new(Failure { number: 0, text: Cow::Borrowed(c"") }) };
}

impl Failure {
    /// With a text that is there already: for what happens often, because it allocates nothing.
    pub(crate) const fn of(number: c_int, text: &'static CStr) -> Self {
        Self { number, text: Cow::Borrowed(text) }
    }

    /// With a text of its own.
    pub(crate) fn new(number: c_int, text: &str) -> Self {
        // A NUL would end the text there.
        Self { number, text: Cow::Owned(CString::new(text.replace('\0', "?")).unwrap_or_default()) }
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::of(libc::EINVAL, wrong.0)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let number = match &error {
            OpenError::NoDriver { .. } => libc::ENOTSUP,
            error if error.is_name() => libc::EINVAL,
            _ => libc::EIO,
        };
        Self::new(number, &error.to_string())
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::new(libc::EIO, &error.to_string())
    }
}

impl From<wholebar::Error> for Failure {
    fn from(error: wholebar::Error) -> Self {
        use wholebar::Error::{ArenaFull, Memory, NoHugepages, NotPowerOfTwo, OutOfRange};
        let number = match &error {
            ArenaFull { .. } | Memory { .. } | NoHugepages { .. } => libc::ENOMEM,
            NotPowerOfTwo { .. } | OutOfRange { .. } => libc::EINVAL,
            _ => libc::EIO,
        };
        Self::new(number, &error.to_string())
    }
}

/// What a function returns where it failed: the negative number, or null.
pub(crate) trait Answer {
    fn failed(number: c_int) -> Self;
}

impl Answer for c_int {
    fn failed(number: c_int) -> Self {
        -number
    }
}

impl<T> Answer for *mut T {
    fn failed(_: c_int) -> Self {
        std::ptr::null_mut()
    }
}

impl<T> Answer for *const T {
    fn failed(_: c_int) -> Self {
        std::ptr::null()
    }
}

impl Answer for () {
    fn failed(_: c_int) {}
}

/// Runs a function's body, and makes of errors and panics what C can be told.
pub(crate) fn entry<T: Answer>(body: impl FnOnce() -> Result<T>) -> T {
    caught(body).and_then(|result| result).unwrap_or_else(failed)
}

/// Runs what may panic, and makes an error of that. What it leaves half done is not used again: see [`Once`](crate::queue::Once).
pub(crate) fn caught<T>(body: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let failure =
            Failure::new(libc::ENOTRECOVERABLE, &format!("a fault of this library: {}", what.unwrap_or("panic")));
        // Its drop may panic too.
        std::mem::forget(panic);
        failure
    })
}

fn failed<T: Answer>(failure: Failure) -> T {
    let number = failure.number;
    remember(failure);
    T::failed(number)
}

/// Makes it this thread's last error.
pub(crate) fn remember(failure: Failure) {
    // No thread-local value is left while a thread ends: then the number has to do.
    let _ = LAST.try_with(|last| last.replace(failure));
}

/// What went wrong in the last call of this thread that failed: a sentence; empty where none did. It lasts until the next that does.
#[unsafe(no_mangle)]
pub extern "C" fn wb_error() -> *const c_char {
    entry(|| Ok(LAST.try_with(|last| last.borrow().text.as_ptr()).unwrap_or(c"".as_ptr())))
}

/// The number of that error, as errno.h has it (positive); 0 where no call of this thread failed. (DPDK: rte_errno.)
#[unsafe(no_mangle)]
pub extern "C" fn wb_errno() -> c_int {
    entry(|| Ok(LAST.try_with(|last| last.borrow().number).unwrap_or(0)))
}
