//! Rings against a `VecDeque`, and across threads; under Miri too, where a weakened ordering is a data race.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone)]
enum Op {
    Push,
    PushBulk(usize),
    PushBurst(usize),
    Pop,
    PopBulk(usize),
    PopBurst(usize),
}

fn ops() -> impl Strategy<Value = (u32, Vec<Op>)> {
    let op = prop_oneof![
        Just(Op::Push),
        (0..40usize).prop_map(Op::PushBulk),
        (0..40usize).prop_map(Op::PushBurst),
        Just(Op::Pop),
        (0..40usize).prop_map(Op::PopBulk),
        (0..40usize).prop_map(Op::PopBurst),
    ];
    (0..7u32, prop::collection::vec(op, 0..if cfg!(miri) { 20 } else { 200 }))
}

/// Runs the operations on both; items own memory, so that Miri and the allocator see what is lost or dropped twice.
macro_rules! agrees {
    ($capacity:expr, $ops:expr, $put:ident, $take:ident) => {{
        let (mut model, mut next) = (VecDeque::new(), 0u64);
        let mut items = |n: usize| {
            (0..n)
                .map(|_| {
                    next += 1;
                    Box::new(next)
                })
                .collect::<Vec<_>>()
        };
        for op in $ops {
            match op {
                Op::Push => {
                    let Some(item) = items(1).pop() else { continue };
                    let fits = model.len() < $capacity;
                    prop_assert_eq!($put.push(item.clone()).is_ok(), fits);
                    fits.then(|| model.push_back(item));
                }
                Op::PushBulk(n) => {
                    let mut new = items(n);
                    let (all, fits) = (new.clone(), model.len() + n <= $capacity);
                    prop_assert_eq!($put.push_bulk(&mut new), fits);
                    prop_assert_eq!(new.len(), if fits { 0 } else { n });
                    fits.then(|| model.extend(all));
                }
                Op::PushBurst(n) => {
                    let mut new = items(n);
                    let (all, fits) = (new.clone(), n.min($capacity - model.len()));
                    prop_assert_eq!($put.push_burst(&mut new), fits);
                    prop_assert_eq!(&new[..], &all[fits..]);
                    model.extend(all.into_iter().take(fits));
                }
                Op::Pop => prop_assert_eq!($take.pop(), model.pop_front()),
                Op::PopBulk(n) => {
                    let mut out = items(1);
                    let there = n <= model.len();
                    prop_assert_eq!($take.pop_bulk(&mut out, n), there);
                    let expected: Vec<_> = model.drain(..if there { n } else { 0 }).collect();
                    prop_assert_eq!(&out[1..], &expected[..]);
                }
                Op::PopBurst(n) => {
                    let mut out = Vec::new();
                    prop_assert_eq!($take.pop_burst(&mut out, n), n.min(model.len()));
                    let expected: Vec<_> = model.drain(..n.min(model.len())).collect();
                    prop_assert_eq!(out, expected);
                }
            }
        }
    }};
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 500 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn spsc_is_a_queue((log, ops) in ops()) {
        let capacity = 1usize << log;
        let (mut put, mut take) = spsc(capacity).unwrap();
        agrees!(capacity, ops, put, take);
    }

    #[test]
    fn mpmc_is_a_queue((log, ops) in ops()) {
        let capacity = 1usize << log;
        let ring = Ring::new(capacity).unwrap();
        agrees!(capacity, ops, ring, ring);
    }

    /// Whatever is taken and put, each item is in one place: here, in a stash, or in the ring.
    #[test]
    fn stashes_lose_nothing(batch in 0..9usize, ops in prop::collection::vec((0..2usize, 0..4u8, 0..20usize), 0..60)) {
        let ring = Ring::new(64).unwrap();
        ring.push_bulk(&mut (0..64).map(Box::new).collect());
        let mut stashes = [Stash::new(batch), Stash::new(batch)];
        let mut held = Vec::new();
        for (who, what, n) in ops {
            let stash = &mut stashes[who];
            match what {
                0 => held.extend(stash.pop(&ring)),
                1 => if let Some(item) = held.pop() { stash.push(item, &ring) },
                2 => {
                    let before = held.len();
                    let got = stash.pop_bulk(&mut held, n, &ring);
                    prop_assert_eq!(held.len() - before, if got { n } else { 0 });
                }
                _ => {
                    let mut some = held.split_off(held.len().saturating_sub(n));
                    stash.push_bulk(&mut some, &ring);
                    prop_assert!(some.is_empty());
                }
            }
            prop_assert_eq!(held.len() + ring.len() + stashes.iter().map(Stash::len).sum::<usize>(), 64);
        }
        stashes.iter_mut().for_each(|s| s.give_back(&ring));
        ring.pop_burst(&mut held, 64);
        held.sort();
        prop_assert!(held.into_iter().map(|b| *b).eq(0..64));
    }
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for capacity in [0, 3, 12, usize::MAX, 1 << 63] {
        assert!(spsc::<u16>(capacity).is_err());
        assert!(Ring::<u16>::new(capacity).is_err());
    }
}

/// How many items the tests below move, by whether an interpreter runs them.
const MANY: u64 = if cfg!(miri) { 200 } else { 200_000 };

#[test]
fn spsc_across_threads() {
    let (mut put, mut take) = spsc::<Box<u64>>(8).unwrap();
    let producer = std::thread::spawn(move || {
        let (mut next, mut items) = (0, Vec::new());
        while next < MANY || !items.is_empty() {
            while next < MANY && items.len() < 1 + (next % 11) as usize {
                items.push(Box::new(next));
                next += 1;
            }
            if put.push_burst(&mut items) == 0 {
                std::thread::yield_now();
            }
        }
    });
    let (mut expected, mut out) = (0, Vec::new());
    while expected < MANY {
        if take.pop_burst(&mut out, 5) == 0 {
            std::thread::yield_now();
        }
        for item in out.drain(..) {
            assert_eq!(*item, expected);
            expected += 1;
        }
    }
    producer.join().unwrap();
    assert!(take.pop().is_none());
}

#[test]
fn mpmc_across_threads() {
    let ring = Arc::new(Ring::<Box<u64>>::new(16).unwrap());
    let (sum, count) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let producers = (0..2).map(|p| {
        let ring = ring.clone();
        std::thread::spawn(move || {
            let mut items = Vec::new();
            for i in (p..MANY).step_by(2) {
                items.push(Box::new(i));
                while items.len() > (i % 5) as usize {
                    let done = if i % 3 == 0 { ring.push_bulk(&mut items) } else { ring.push_burst(&mut items) > 0 };
                    if !done {
                        std::thread::yield_now();
                    }
                }
            }
            while !ring.push_bulk(&mut items) {
                std::thread::yield_now();
            }
        })
    });
    let producers: Vec<_> = producers.collect();
    let consumers = (0..2).map(|_| {
        let (ring, sum, count) = (ring.clone(), sum.clone(), count.clone());
        std::thread::spawn(move || {
            let (mut out, mut last) = (Vec::new(), [None::<u64>; 2]);
            while count.load(Ordering::Relaxed) < MANY {
                if ring.pop_burst(&mut out, 3) == 0 {
                    std::thread::yield_now();
                }
                for item in out.drain(..) {
                    // Each consumer sees each producer's items in order.
                    let last = &mut last[(*item % 2) as usize];
                    assert!(last.is_none_or(|l| l < *item));
                    *last = Some(*item);
                    sum.fetch_add(*item, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for thread in consumers.collect::<Vec<_>>().into_iter().chain(producers) {
        thread.join().unwrap();
    }
    assert_eq!((count.load(Ordering::Relaxed), sum.load(Ordering::Relaxed)), (MANY, MANY * (MANY - 1) / 2));
    assert!(ring.is_empty());
}
