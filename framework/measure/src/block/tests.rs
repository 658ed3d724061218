use super::pattern::Fault;
use super::testing::{self, Mishap, Ram};
use super::*;
use wholebar_core::mem::{Arena, ArenaOptions};

fn job(workload: Workload, verify: bool) -> Job {
    Job {
        workload,
        nsid: 1,
        block: 512,
        blocks: 2,
        first: 0,
        units: 32,
        depth: 8,
        batch: 4,
        back_off: BACK_OFF,
        warmup: Duration::from_millis(10),
        time: Duration::from_millis(30),
        verify,
        seed: 1,
        shared_cores: true,
        device: None,
    }
}

/// Runs a job, again and for longer where that was too short for what is to be seen: a busy machine may let it do next to nothing.
fn run_on_ram(job: &Job, lanes: usize, mishap: Mishap) -> Outcome {
    const ENOUGH: u64 = 2000;
    let mut job = job.clone();
    loop {
        let outcome = run_once(&job, lanes, mishap);
        if outcome.latency().len() >= ENOUGH || outcome.cut_short.is_some() {
            return outcome;
        }
        job.time *= 2;
        assert!(job.time < Duration::from_secs(120), "{} commands in {:?}", outcome.latency().len(), outcome.window);
    }
}

fn run_once(job: &Job, lanes: usize, mishap: Mishap) -> Outcome {
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    let pool = Pool::new(arena, (lanes * job.depth) as u32, 1024, 4096).unwrap();
    let supplies = (0..lanes).map(|_| Supply {
        queue: Ram::new(64, job.depth, mishap),
        bufs: (0..job.depth).map(|_| pool.get_len(1024).unwrap()).collect(),
        pool: pool.clone(),
    });
    // Not every process may use core 0.
    let core = wholebar_core::cores::allowed()[0];
    run(job, vec![(core, supplies.collect())], &AtomicBool::new(false), |_| ()).unwrap()
}

const MIXED: Workload = Workload { order: Order::Random, direction: Direction::Mixed { read_percent: 50 } };

#[test]
fn a_run_is_measured_over_its_window() {
    let read = Workload { order: Order::Random, direction: Direction::Read };
    let outcome = run_on_ram(&job(read, false), 2, Mishap::None);
    assert!(outcome.window >= Duration::from_millis(30), "{:?}", outcome.window);
    let commands = outcome.reads.len();
    let expected = commands as f64 / outcome.window.as_secs_f64();
    assert!((outcome.iops / expected - 1.0).abs() < 0.01, "{} {expected}", outcome.iops);
    assert!(outcome.writes.is_empty() && outcome.failures.is_empty() && outcome.cut_short.is_none());
    // Depth 8 in batches of 4.
    let per_bell = commands as f64 / outcome.doorbells.direct as f64;
    assert!((3.5..=4.5).contains(&per_bell), "{per_bell}");
}

#[test]
fn a_failure_after_which_nothing_gets_better_ends_the_run() {
    let read = Workload { order: Order::Random, direction: Direction::Read };
    let endless = Job { time: Duration::from_secs(600), ..job(read, false) };
    let outcome = run_once(&endless, 1, Mishap::Fail(100, testing::FATAL));
    assert_eq!(outcome.cut_short, Some(CutShort::Failed("namespace 1 is not there any more".to_owned())));
    assert_eq!(outcome.failures, [(Failure::Status(Status::Device(testing::FATAL)), 1)]);
}

#[test]
fn a_window_has_a_command_in_it_however_short_it_is() {
    let read = Workload { order: Order::Random, direction: Direction::Read };
    let none = Job { warmup: Duration::ZERO, time: Duration::ZERO, ..job(read, false) };
    let outcome = run_once(&none, 1, Mishap::None);
    assert!(!outcome.reads.is_empty() && outcome.iops > 0.0 && outcome.cut_short.is_none());
}

#[test]
fn data_that_come_back_as_they_were_are_no_trouble() {
    for order in [Order::Random, Order::Sequential] {
        let outcome = run_on_ram(&job(Workload { order, ..MIXED }, true), 2, Mishap::None);
        assert_eq!(outcome.failures, []);
        assert_eq!(outcome.read_back, 32, "all units were written");
        assert!(!outcome.reads.is_empty() && !outcome.writes.is_empty());
    }
}

#[test]
fn data_that_do_not_are() {
    for (mishap, faults) in [
        (Mishap::Flip(50), &[Fault::Corrupt][..]),
        (Mishap::Elsewhere(50), &[Fault::Misplaced, Fault::NoPattern, Fault::Stale][..]),
        (Mishap::Forget(50), &[Fault::Stale, Fault::NoPattern][..]),
    ] {
        let outcome = run_on_ram(&job(MIXED, true), 1, mishap);
        assert!(outcome.errors() > 0, "{mishap:?}");
        for (failure, _) in &outcome.failures {
            assert!(matches!(failure, Failure::Data(f) if faults.contains(f)), "{mishap:?}: {failure:?}");
        }
    }
    let failed = run_on_ram(&job(MIXED, true), 1, Mishap::Fail(0, 0x281));
    assert_eq!(failed.failures, [(Failure::Status(Status::Device(0x281)), 1)], "counted, though in the warm-up");
}

#[test]
fn a_device_that_vanishes_ends_the_run() {
    let outcome = run_on_ram(&Job { time: Duration::from_secs(600), ..job(MIXED, false) }, 1, Mishap::Vanish(10));
    assert_eq!(outcome.cut_short, Some(CutShort::Failed("the device is gone".to_owned())));
}

#[test]
fn too_small_a_span_is_refused() {
    let job = Job { units: 7, ..job(MIXED, true) };
    let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 1, 1024, 4096).unwrap();
    let supply = Supply { queue: Ram::new(64, 8, Mishap::None), bufs: Vec::new(), pool };
    assert!(run(&job, vec![(0, vec![supply])], &AtomicBool::new(false), |_| ()).is_err());
}
