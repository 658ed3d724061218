//! Ctrl-C and SIGTERM: the first one asks for an orderly end, a second one ends the program at once.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
