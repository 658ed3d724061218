//! Rings under loom: every order of a few moves. Items hold a cell of loom's, so that an item which is seen before what was written to it is an error.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p wholebar-core --lib exhaustive`

use super::*;
use crate::sync::explore;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A number that its maker wrote, and whoever takes it reads. It counts those that were dropped.
struct Item(UnsafeCell<usize>, Arc<AtomicUsize>);

impl Item {
    fn new(number: usize, dropped: &Arc<AtomicUsize>) -> Self {
        let item = Self(UnsafeCell::new(0), dropped.clone());
        // SAFETY: nobody else has it.
        item.0.with_mut(|cell| unsafe { *cell = number });
        item
    }

    fn number(&self) -> usize {
        // SAFETY: whoever has it is the only one.
        self.0.with(|cell| unsafe { *cell })
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// A ring of one: each item after the first needs the cell that the one before it leaves.
#[test]
fn spsc_hands_over_what_was_written() {
    explore(|| {
        let dropped = Arc::default();
        let (mut put, mut take) = spsc(1).unwrap();
        let producer = thread::spawn({
            let dropped: Arc<AtomicUsize> = Arc::clone(&dropped);
            move || {
                for number in 1..=2 {
                    let mut item = Item::new(number, &dropped);
                    while let Err(back) = put.push(item) {
                        item = back;
                        thread::yield_now();
                    }
                }
            }
        });
        for number in 1..=2 {
            let item = loop {
                match take.pop() {
                    Some(item) => break item,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(item.number(), number);
        }
        producer.join().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

/// What nobody took goes with the ring, whichever end is dropped last.
#[test]
fn spsc_drops_what_is_left() {
    explore(|| {
        let dropped = Arc::default();
        let (mut put, take) = spsc(2).unwrap();
        let producer = thread::spawn({
            let dropped: Arc<AtomicUsize> = Arc::clone(&dropped);
            move || assert!(put.push_bulk(&mut vec![Item::new(1, &dropped), Item::new(2, &dropped)]))
        });
        drop(take);
        producer.join().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

/// Two producers that meet, one of whom takes what is there meanwhile.
#[test]
fn mpmc_hands_over_what_was_written_by_two() {
    explore(|| {
        let (dropped, ring) = (Arc::default(), Arc::new(Ring::new(2).unwrap()));
        let producer = thread::spawn({
            let (dropped, ring): (Arc<AtomicUsize>, Arc<Ring<Item>>) = (Arc::clone(&dropped), ring.clone());
            move || assert!(ring.push(Item::new(1, &dropped)).is_ok())
        });
        assert!(ring.push(Item::new(2, &dropped)).is_ok());
        let first = ring.pop().map_or(0, |item| item.number());
        producer.join().unwrap();
        let rest = std::iter::from_fn(|| ring.pop()).map(|item| item.number()).sum::<usize>();
        assert!(first != 0 && first + rest == 3);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

/// Two consumers that meet: each item is taken once.
#[test]
fn mpmc_gives_each_item_to_one() {
    explore(|| {
        let (dropped, ring) = (Arc::default(), Arc::new(Ring::new(2).unwrap()));
        let consumer = thread::spawn({
            let ring = ring.clone();
            move || ring.pop().map_or(0, |item: Item| item.number())
        });
        assert!(ring.push_bulk(&mut vec![Item::new(1, &dropped), Item::new(2, &dropped)]));
        let ours = ring.pop().map_or(0, |item| item.number());
        let theirs = consumer.join().unwrap();
        assert!(ours != theirs && ours != 0);
        drop(ring);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}
