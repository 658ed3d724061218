//! The cores that this process may use, pinning threads to them, and how a core pauses between two polls.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::cores;
//!
//! for (index, &core) in cores::allowed().iter().enumerate() {
//!     println!("queue {index} is polled on core {core}");
//! }
//! ```

mod pause;

use crate::{Error, Result};
use core_affinity::CoreId;
pub use pause::Pause;
use std::fmt::Write;
use std::sync::OnceLock;

/// Returns the cores that this process may use, in ascending order, by the kernel's numbers.
///
/// Linux: `sched_getaffinity`.
///
/// They are those of the thread that calls this first, and read only then: call it before the first [`pin`], since a pinned thread may use its own
/// core alone.
pub fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|c| c.id).collect())
}

/// Checks that this process may use `core`.
///
/// # Errors
/// [`Error::NoSuchCore`], which lists those that it may use.
pub fn check(core: usize) -> Result<()> {
    if allowed().contains(&core) { Ok(()) } else { Err(refused(core)) }
}

/// Pins the calling thread to `core`.
///
/// Linux: `sched_setaffinity`; DPDK: `rte_thread_set_affinity`.
///
/// # Errors
/// [`Error::NoSuchCore`] where this process may not use the core, or the system refuses.
pub fn pin(core: usize) -> Result<()> {
    check(core)?;
    if core_affinity::set_for_current(CoreId { id: core }) { Ok(()) } else { Err(refused(core)) }
}

fn refused(core: usize) -> Error {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
    let online = online.map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned());
    Error::NoSuchCore { core, allowed: ranges(allowed()), online }
}

/// Ascending numbers as the kernel writes them: `0-3,8`.
fn ranges(numbers: &[usize]) -> String {
    let mut text = String::new();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = match run {
            [one] => write!(text, "{comma}{one}"),
            [first, .., last] => write!(text, "{comma}{first}-{last}"),
            [] => Ok(()),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_the_kernel_writes_them() {
        for (numbers, text) in [(&[][..], ""), (&[3], "3"), (&[0, 1, 2, 3, 8], "0-3,8"), (&[1, 3, 4], "1,3-4")] {
            assert_eq!(ranges(numbers), text);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads what the system says")]
    fn a_core_that_is_not_there_is_named_with_those_that_are() {
        let all = ranges(allowed());
        for core in [99_999, usize::MAX] {
            let error = pin(core).unwrap_err().to_string();
            assert!(error.contains(&format!("core {core} ")) && error.contains(&all), "{error}");
        }
        let core = allowed()[0];
        std::thread::spawn(move || {
            pin(core).unwrap();
            // What a pinned thread sees of the others does not change what the process may use.
            assert_eq!(core_affinity::get_core_ids().unwrap(), [CoreId { id: core }]);
        })
        .join()
        .unwrap();
        assert_eq!(ranges(allowed()), all);
    }
}
