//! What the hot path must not do: allocate, or call the kernel. Counted, on a whole plan.

use anyhow::{Context, Result, ensure};
use wholebar::bar::MapPolicy;
use wholebar::block::Request;
use wholebar_nvme::{Options, Queue, QueueOptions};
use wholebar_tests::in_process;
use wholebar_tests::nvme::Bench;

const DEPTH: usize = 32;
const COMMANDS: usize = 20_000;

/// Keeps `DEPTH` commands in flight until `COMMANDS` have ended, with buffers going round.
fn go_round(queue: &mut Queue, requests: &mut Vec<Request>, commands: usize) -> (usize, usize) {
    let (mut ended, mut failed) = (0, 0);
    let mut submitted = 0;
    while ended < commands {
        while submitted < commands
            && let Some(req) = requests.pop()
        {
            submitted += 1;
            if let Err(rejected) = queue.submit(req) {
                requests.push(rejected.req);
                failed += 1;
            }
        }
        queue.ring();
        ended += queue.poll_each(DEPTH, |c| {
            failed += usize::from(c.status != wholebar::block::Status::Ok);
            let req = wholebar_tests::nvme::request(1, wholebar::block::Op::Read { lba: 8 }, c.data);
            // There is room: as many as were taken out.
            requests.push(req);
        });
    }
    (ended, failed)
}

fn bench(policy: MapPolicy) -> Result<(wholebar_tests::Rig, Bench, Queue, Vec<Request>)> {
    let rig = in_process("size=16M,backing=null")?;
    let bench = Bench::open(&rig, Options { policy, ..Options::default() }, DEPTH as u32, 4096)?;
    let queue = bench.nvme.queue(QueueOptions::default())?;
    let requests = (0..DEPTH).map(|_| bench.read(8, 4096)).collect::<Result<_>>()?;
    Ok((rig, bench, queue, requests))
}

#[test]
fn no_allocation_per_command() -> Result<()> {
    let (_rig, _bench, mut queue, mut requests) = bench(MapPolicy::Whole)?;
    go_round(&mut queue, &mut requests, 1_000);
    let mut result = (0, 0);
    let count = allocation_counter::measure(|| result = go_round(&mut queue, &mut requests, COMMANDS));
    ensure!(result == (COMMANDS, 0), "{result:?}");
    ensure!(count.count_total == 0, "{} allocations in {COMMANDS} commands", count.count_total);
    // That the counter counts: one box is one allocation.
    ensure!(allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1u64)))).count_total == 1);
    Ok(())
}

/// Commands on a thread that is killed, with its process, at the first system call it makes.
///
/// The test runs itself again as a child for each policy: on a whole plan the child lives; on a trapped one, where each doorbell is a system
/// call, it dies by `SIGSYS`, which shows that the trap works.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn no_system_call_per_command() -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "WHOLEBAR_TEST_HOT_PATH";
    const SIGSYS: i32 = 31;
    match std::env::var(CHILD).as_deref() {
        Ok("whole") => return without_system_calls(MapPolicy::Whole),
        Ok(_) => return without_system_calls(MapPolicy::Trapped),
        Err(_) => {}
    }
    let child = |policy: &str| {
        let mut child = std::process::Command::new(std::env::current_exe()?);
        child.args(["--exact", "no_system_call_per_command"]).env(CHILD, policy).output()
    };
    let whole = child("whole")?;
    ensure!(whole.status.success(), "on a whole plan: {}, {}", whole.status, String::from_utf8_lossy(&whole.stdout));
    let trapped = child("trapped")?;
    ensure!(trapped.status.signal() == Some(SIGSYS), "on a trapped plan: {}", trapped.status);
    Ok(())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn without_system_calls(policy: MapPolicy) -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (_rig, _bench, mut queue, mut requests) = bench(policy)?;
    let arch = std::env::consts::ARCH.try_into().context("no such filter on this CPU")?;
    let filter = SeccompFilter::new(Default::default(), SeccompAction::Trap, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    let ended = Arc::new(AtomicUsize::new(0));
    let result = ended.clone();
    std::thread::spawn(move || {
        go_round(&mut queue, &mut requests, 1_000);
        if seccompiler::apply_filter(&program).is_ok() {
            let (done, failed) = go_round(&mut queue, &mut requests, COMMANDS);
            result.store(if failed == 0 { done } else { 1 }, Ordering::Release);
        } else {
            result.store(2, Ordering::Release);
        }
        // Even to end a thread takes system calls: it goes down with the process.
        loop {
            std::hint::spin_loop();
        }
    });
    while ended.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    ensure!(ended.load(Ordering::Acquire) == COMMANDS, "not all of {COMMANDS} commands ended well");
    Ok(())
}
