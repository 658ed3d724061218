//! Tries a device, and prints what came of it: `selftest [TARGET]`, of a model where none is named.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use wholebar_selftest::{Options, Verdict, run};

fn main() -> Result<ExitCode, wholebar::OpenError> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "sim:nvme,size=16M".to_owned());
    let device = wholebar::open(&target)?;
    let checks = run(&device, &Options::default(), &mut |_| (), &AtomicBool::new(false));
    for check in &checks {
        println!("{:?}: {}, {}: {}", check.verdict, check.area, check.name, check.detail);
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
