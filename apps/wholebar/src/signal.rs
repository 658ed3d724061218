//! Ctrl-C and SIGTERM: the first one asks for an orderly end, a second one ends the program at once. And the signals of limits, which become errors.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGABRT, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What exceeds a limit of this process fails, with exit code 1, and does not end it by a signal: a write beyond the largest file that it may
/// make (SIGXFSZ), and an allocation that fails, which the standard library names and then aborts for (SIGABRT).
pub fn limits_are_errors() -> Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    flag::register_conditional_shutdown(SIGABRT, 1, always.clone())
        .and_then(|_| flag::register(SIGXFSZ, always))
        .map(|_| ())
        .context("cannot handle signals")
}

/// A flag that is set when somebody wants the program to end.
pub fn interrupted() -> Result<Arc<AtomicBool>> {
    let (asked, again) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM] {
        // In this order: none is lost from the first line on, and the first one finds `again` unset.
        flag::register(signal, asked.clone())
            .and_then(|_| flag::register_conditional_default(signal, again.clone()))
            .and_then(|_| flag::register(signal, again.clone()))
            .context("cannot handle signals")?;
    }
    Ok(asked)
}
