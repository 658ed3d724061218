//! On a queue that does what it is told: who is woken when, where buffers are, and what executors may do in the middle of it.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Wake;
use wholebar_core::mem::{Arena, ArenaOptions, Pool};

/// What the device is, and what is asked of it.
struct Script {
    state: QueueState,
    room: usize,
    /// Submitted and not completed, in order.
    flying: VecDeque<Request>,
    /// How many of those complete in the next polls, and how.
    finish: VecDeque<Status>,
    /// First blocks, in the order of submission.
    submitted: Vec<u64>,
    unannounced: usize,
    rings: usize,
}

#[derive(Clone)]
struct Device(Arc<Mutex<Script>>);

impl Device {
    fn new(room: usize) -> Self {
        let (state, flying, finish) = (QueueState::Running, VecDeque::new(), VecDeque::new());
        let script = Script { state, room, flying, finish, submitted: Vec::new(), unannounced: 0, rings: 0 };
        Self(Arc::new(Mutex::new(script)))
    }

    fn queue(&self) -> Queue {
        Queue::new(Box::new(self.clone()))
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    fn finish(&self, count: usize, status: Status) {
        self.script().finish.extend(std::iter::repeat_n(status, count));
    }
}

impl BlockQueue for Device {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        let mut script = self.script();
        let why = match (&script.state, req.op) {
            (QueueState::Running, Op::Compare { .. }) => Reject::Invalid("there is no Compare"),
            (QueueState::Running, _) if script.flying.len() < script.room => {
                if let Op::Read { lba } | Op::Write { lba } = req.op {
                    script.submitted.push(lba);
                }
                script.flying.push_back(req);
                script.unannounced += 1;
                return Ok(());
            }
            (QueueState::Running, _) => Reject::Full,
            (QueueState::Resetting, _) => Reject::Resetting,
            (QueueState::Gone | QueueState::Failed(_), _) => Reject::Gone,
        };
        Err(Rejected { req, why })
    }

    fn ring(&mut self) {
        let mut script = self.script();
        script.rings += usize::from(std::mem::take(&mut script.unannounced) > 0);
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let mut count = 0;
        while count < max {
            let mut script = self.script();
            assert_eq!(script.unannounced, 0, "polled for what was not announced");
            if script.flying.is_empty() || script.finish.is_empty() {
                break;
            }
            let (Request { tag, data, .. }, status) =
                (script.flying.pop_front().unwrap(), script.finish.pop_front().unwrap());
            drop(script);
            count += 1;
            done(Completion { tag, status, data });
        }
        count
    }

    fn state(&self) -> QueueState {
        self.script().state.clone()
    }

    fn in_flight(&self) -> usize {
        self.script().flying.len()
    }
}

/// Counts, and does what it is to do when it is woken.
struct Counter {
    woken: AtomicUsize,
    then: Box<dyn Fn() + Send + Sync>,
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
        (self.then)();
    }
}

impl Counter {
    fn new() -> Arc<Self> {
        Self::then(|| ())
    }

    fn then(then: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { woken: AtomicUsize::new(0), then: Box::new(then) })
    }

    fn woken(&self) -> usize {
        self.woken.load(Ordering::Relaxed)
    }

    fn poll<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&self.clone().into()))
    }
}

fn pool() -> Pool {
    Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 8, 512, 512).unwrap()
}

fn read(tag: u64, lba: u64, pool: &Pool) -> Request {
    let data = Data::One(pool.get_len(512).unwrap());
    Request { tag, nsid: 1, op: Op::Read { lba }, data, deadline: None }
}

fn flush(tag: u64) -> Request {
    Request { tag, nsid: 1, op: Op::Flush, data: Data::None, deadline: None }
}

fn status(poll: Poll<Result<Completion, Rejected>>) -> Option<Status> {
    match poll {
        Poll::Ready(done) => Some(done.unwrap().status),
        Poll::Pending => None,
    }
}

#[test]
fn a_future_completes_in_a_poll_with_the_callers_tag_and_data() {
    let (device, pool, counter) = (Device::new(8), pool(), Counter::new());
    let queue = device.queue();
    let mut futures: Vec<_> = [7, 7, u64::MAX].into_iter().map(|tag| queue.submit(read(tag, 3, &pool))).collect();
    assert_eq!(queue.in_flight(), 0, "nothing is submitted before it is polled");
    for future in &mut futures {
        assert!(counter.poll(future).is_pending());
    }
    assert_eq!((queue.poll(9), device.script().rings, counter.woken()), (0, 1, 0));
    device.finish(3, Status::Ok);
    assert_eq!((queue.poll(2), counter.woken(), queue.poll(9), counter.woken()), (2, 2, 1, 3));
    for (future, tag) in futures.iter_mut().zip([7, 7, u64::MAX]) {
        let Poll::Ready(Ok(done)) = counter.poll(future) else { panic!("{tag} is not complete") };
        assert_eq!((done.tag, done.status, done.data.len()), (tag, Status::Ok, 512));
    }
    assert_eq!((pool.available(), device.script().rings), (8, 1));
    assert_eq!(queue.0.borrow().free.len(), 3);
}

#[test]
#[should_panic(expected = "polled as a future after it had completed")]
fn a_completed_future_is_not_to_be_polled() {
    let device = Device::new(1);
    device.script().state = QueueState::Gone;
    let (queue, counter) = (device.queue(), Counter::new());
    let mut future = queue.submit(flush(1));
    assert!(counter.poll(&mut future).is_ready());
    let _ = counter.poll(&mut future);
}

#[test]
fn the_waker_of_the_last_poll_is_the_one_that_is_woken() {
    let (device, counters) = (Device::new(8), [Counter::new(), Counter::new()]);
    let queue = device.queue();
    let mut future = queue.submit(flush(0));
    for counter in [&counters[0], &counters[0], &counters[1]] {
        assert!(counter.poll(&mut future).is_pending());
    }
    device.finish(1, Status::Ok);
    queue.poll(1);
    assert_eq!(counters.each_ref().map(|c| c.woken()), [0, 1]);
}

#[test]
fn a_dropped_future_leaves_its_buffer_with_the_command() {
    let (device, pool, counter) = (Device::new(8), pool(), Counter::new());
    let queue = device.queue();
    let mut futures: Vec<_> = (0..3).map(|lba| queue.submit(read(0, lba, &pool))).collect();
    futures.iter_mut().for_each(|future| assert!(counter.poll(future).is_pending()));
    drop(futures.remove(1));
    assert_eq!((pool.available(), queue.in_flight()), (5, 3), "the device has it still");
    device.finish(2, Status::Ok);
    assert_eq!((queue.poll(9), pool.available(), counter.woken()), (2, 6, 1), "it goes home when the command ends");
    // One that has completed, and one that is never polled, have their own.
    drop(futures.remove(0));
    assert_eq!(pool.available(), 7);
    drop(queue.submit(read(0, 0, &pool)));
    assert_eq!((pool.available(), device.script().submitted.len()), (7, 3));
    // Slots are used again.
    device.finish(9, Status::Ok);
    for _ in 0..100 {
        let mut future = queue.submit(read(0, 0, &pool));
        assert!(counter.poll(&mut future).is_pending());
        drop(future);
        queue.poll(9);
        device.finish(1, Status::Ok);
    }
    drop(futures);
    assert_eq!((pool.available(), queue.0.borrow().slots.len() <= 3), (8, true));
}

#[test]
fn the_end_of_a_command_without_a_future_is_nobody_elses() {
    let (device, counter) = (Device::new(8), Counter::new());
    let queue = device.queue();
    let mut given_up = queue.submit(flush(1));
    assert!(counter.poll(&mut given_up).is_pending());
    drop(given_up);
    let mut futures = [2, 3].map(|tag| queue.submit(flush(tag)));
    futures.iter_mut().for_each(|future| assert!(counter.poll(future).is_pending()));
    for (status, ended) in [(Status::Aborted, 0), (Status::Device(2), 1), (Status::Device(3), 2)] {
        device.finish(1, status);
        assert_eq!((queue.poll(9), counter.woken()), (1, ended));
    }
    for (tag, future) in (2..).zip(&mut futures) {
        let Poll::Ready(Ok(done)) = counter.poll(future) else { panic!("{tag} is not complete") };
        assert_eq!((u16::try_from(done.tag), done.status), (Ok(tag), Status::Device(tag)));
    }
}

#[test]
fn who_waits_for_room_gets_it_in_order_and_passes_it_on_when_dropped() {
    let (device, pool, counter) = (Device::new(2), pool(), Counter::new());
    let queue = device.queue();
    let mut futures: Vec<_> = (0..6).map(|lba| Some(queue.submit(read(lba, lba, &pool)))).collect();
    futures.iter_mut().flatten().for_each(|future| assert!(counter.poll(future).is_pending()));
    assert_eq!((queue.in_flight(), queue.waiting(), pool.available()), (2, 4, 2));
    // The first that waits, and one in the middle.
    (futures[2], futures[4]) = (None, None);
    assert_eq!((queue.waiting(), pool.available()), (2, 4), "nobody has their buffers any more");
    device.finish(1, Status::Ok);
    assert_eq!((queue.poll(9), queue.in_flight(), queue.waiting()), (1, 2, 1));
    // Who comes now does not overtake who waits, though there is room.
    device.script().room = 8;
    let mut late = queue.submit(read(9, 9, &pool));
    assert!(counter.poll(&mut late).is_pending());
    assert_eq!(queue.waiting(), 2);
    queue.poll(9);
    assert_eq!((device.script().submitted.clone(), queue.waiting()), (vec![0, 1, 3, 5, 9], 0));
    assert_eq!(device.script().unannounced, 0, "what waited is announced");
    device.finish(4, Status::Ok);
    queue.poll(9);
    let tags = futures.iter_mut().flatten().map(|future| match counter.poll(future) {
        Poll::Ready(Ok(done)) => done.tag,
        other => panic!("{other:?}"),
    });
    assert_eq!(tags.collect::<Vec<_>>(), [0, 1, 3, 5]);
    assert_eq!(status(counter.poll(&mut late)), Some(Status::Ok));
    drop((futures, late));
    assert_eq!(pool.available(), 8);
}

#[test]
fn resets_abort_what_is_in_flight_and_have_the_rest_wait() {
    let (device, counter) = (Device::new(2), Counter::new());
    let queue = device.queue();
    let mut futures: Vec<_> = (0..4).map(|tag| queue.submit(flush(tag))).collect();
    futures[..3].iter_mut().for_each(|future| assert!(counter.poll(future).is_pending()));
    device.script().state = QueueState::Resetting;
    assert!(counter.poll(&mut futures[3]).is_pending(), "it waits");
    device.finish(2, Status::Aborted);
    assert_eq!((queue.poll(9), queue.waiting()), (2, 2));
    device.script().state = QueueState::Running;
    assert_eq!((queue.poll(9), queue.waiting(), queue.in_flight()), (0, 0, 2));
    device.finish(2, Status::Ok);
    queue.poll(9);
    let ends = futures.iter_mut().map(|future| status(counter.poll(future)).unwrap());
    assert_eq!(ends.collect::<Vec<_>>(), [Status::Aborted, Status::Aborted, Status::Ok, Status::Ok]);
}

#[test]
fn when_the_device_goes_everything_ends() {
    for (state, end, cause) in [
        (QueueState::Gone, Status::Gone, Cause::Gone),
        (QueueState::Failed("no reset".into()), Status::Aborted, Cause::Failed("no reset".into())),
    ] {
        let (device, pool, counter) = (Device::new(2), pool(), Counter::new());
        let queue = device.queue();
        let mut futures: Vec<_> = (0..4).map(|tag| queue.submit(read(tag, tag, &pool))).collect();
        futures.iter_mut().for_each(|future| assert!(counter.poll(future).is_pending()));
        device.script().state = state;
        device.finish(2, end);
        assert_eq!((queue.poll(9), counter.woken()), (2, 4));
        for (tag, future) in (0..).zip(&mut futures) {
            match counter.poll(future) {
                Poll::Ready(Ok(done)) => assert_eq!((done.tag, done.status, tag < 2), (tag, end, true)),
                Poll::Ready(Err(Rejected { req, why })) => {
                    assert_eq!((req.tag, why, req.data.len(), tag >= 2), (tag, Reject::Gone, 512, true));
                }
                Poll::Pending => panic!("{tag} hangs"),
            }
        }
        let mut late = Box::pin(queue.read(1, 5, Data::One(pool.get_len(512).unwrap())));
        let Poll::Ready(Err(error)) = counter.poll(&mut late) else { panic!("not refused") };
        assert_eq!((error.cause, error.data.len()), (cause, 512));
        drop((futures, error.data));
        assert_eq!((pool.available(), queue.0.borrow().free.len()), (8, 4));
    }
}

#[test]
fn errors_name_what_was_tried_and_give_the_data_back() {
    let (device, pool, counter) = (Device::new(2), pool(), Counter::new());
    let queue = device.queue();
    let data = || Data::One(pool.get_len(512).unwrap());
    let mut refused = Box::pin(queue.execute(3, Op::Compare { lba: 4 }, data()));
    let Poll::Ready(Err(error)) = counter.poll(&mut refused) else { panic!("taken") };
    assert_eq!(error.to_string(), "Compare { lba: 4 } on namespace 3 was not done: there is no Compare");
    assert_eq!((error.data.len(), error.cause), (512, Cause::Invalid("there is no Compare")));
    for (end, cause) in
        [(Status::Device(0x281), Cause::Device(0x281)), (Status::Aborted, Cause::Aborted), (Status::Gone, Cause::Gone)]
    {
        let mut write = Box::pin(queue.write(1, 0, data()));
        assert!(counter.poll(&mut write).is_pending());
        device.finish(1, end);
        queue.poll(1);
        let Poll::Ready(Err(error)) = counter.poll(&mut write) else { panic!("no error") };
        assert_eq!((error.data.len(), error.cause), (512, cause));
    }
    // Of one that had to wait, too.
    device.script().room = 0;
    let mut compare = Box::pin(queue.execute(1, Op::Write { lba: 1 }, data()));
    assert!(counter.poll(&mut compare).is_pending());
    queue.0.borrow_mut().waiting[0].op = Op::Compare { lba: 1 };
    queue.poll(1);
    let Poll::Ready(Err(error)) = counter.poll(&mut compare) else { panic!("no error") };
    assert!(matches!(error, Error { op: Op::Write { lba: 1 }, cause: Cause::Invalid(_), .. }));
}

type Task = Pin<Box<dyn Future<Output = Result<Completion, Rejected>>>>;
thread_local! {
    /// What wakers get at, which may not have it themselves: they are to be `Send`.
    static QUEUE: RefCell<Option<Queue>> = const { RefCell::new(None) };
    static TASKS: RefCell<Vec<Task>> = const { RefCell::new(Vec::new()) };
}

fn task(queue: &Queue, tag: u64) -> Task {
    let queue = queue.clone();
    Box::pin(async move { queue.submit(flush(tag)).await })
}

#[test]
fn a_waker_may_poll_the_queue_submit_and_drop_futures() {
    let device = Device::new(8);
    let queue = device.queue();
    QUEUE.set(Some(queue.clone()));
    let counter = Counter::then(|| {
        let queue = QUEUE.with_borrow(|queue| queue.clone().unwrap());
        queue.poll(1);
        let mut new = task(&queue, 9);
        assert!(new.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let old = TASKS.with_borrow_mut(|tasks| std::mem::replace(&mut tasks[0], new));
        drop(old);
    });
    let mut tasks: Vec<_> = (0..4).map(|tag| task(&queue, tag)).collect();
    tasks.iter_mut().for_each(|task| assert!(counter.poll(task).is_pending()));
    TASKS.set(vec![task(&queue, 8)]);
    device.finish(4, Status::Ok);
    queue.poll(2);
    assert_eq!(counter.woken(), 4, "the first wakes find and wake the others");
    assert!(tasks.iter_mut().all(|task| counter.poll(task).is_ready()));
    assert_eq!(queue.in_flight(), 4, "one that is waited for, three that are not");
    TASKS.take();
    device.finish(4, Status::Ok);
    queue.poll(9);
    assert_eq!((queue.in_flight(), queue.0.borrow().free.len()), (0, queue.0.borrow().slots.len()));
    QUEUE.take();
}

/// Dropped with the last waker, it drops a task, as executors do.
struct Last;

impl Wake for Last {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Last {
    fn drop(&mut self) {
        drop(TASKS.take());
    }
}

#[test]
fn dropping_a_waker_may_drop_futures() {
    let device = Device::new(8);
    let queue = device.queue();
    let hold_one = || {
        let mut other = task(&queue, 1);
        assert!(other.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        TASKS.set(vec![other]);
    };
    let poll_last = |task: &mut Task| task.as_mut().poll(&mut Context::from_waker(&Arc::new(Last).into()));
    // Where another takes its place.
    let mut replaced = task(&queue, 0);
    assert!(poll_last(&mut replaced).is_pending());
    hold_one();
    assert!(replaced.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(TASKS.take().is_empty());
    // Where its future is dropped.
    let mut dropped = task(&queue, 0);
    assert!(poll_last(&mut dropped).is_pending());
    hold_one();
    drop(dropped);
    assert!(TASKS.take().is_empty());
    // Where its request is refused.
    hold_one();
    device.script().state = QueueState::Gone;
    assert!(poll_last(&mut task(&queue, 0)).is_ready());
    assert!(TASKS.take().is_empty());
    // Where it is woken.
    device.script().state = QueueState::Running;
    let mut woken = task(&queue, 0);
    assert!(poll_last(&mut woken).is_pending());
    hold_one();
    device.finish(6, Status::Ok);
    assert_eq!(queue.poll(9), 6);
    assert!(TASKS.take().is_empty());
}

#[test]
fn after_a_panic_in_a_waker_the_others_are_woken() {
    for at in 0..3 {
        let (device, pool) = (Device::new(3), pool());
        let queue = device.queue();
        let counters =
            [0, 1, 2].map(|i| if i == at { Counter::then(|| panic!("a waker's own")) } else { Counter::new() });
        let mut futures: Vec<_> = (0..4).map(|lba| queue.submit(read(0, lba, &pool))).collect();
        for (counter, future) in counters.iter().zip(&mut futures) {
            assert!(counter.poll(future).is_pending());
        }
        let waiting = Counter::new();
        assert!(waiting.poll(&mut futures[3]).is_pending());
        device.finish(4, Status::Ok);
        assert!(catch_unwind(AssertUnwindSafe(|| queue.poll(9))).is_err());
        assert_eq!(counters.each_ref().map(|c| c.woken()), [1, usize::from(at > 0), usize::from(at > 1)]);
        assert_eq!((queue.in_flight(), device.script().unannounced), (1, 0), "what waited is in flight");
        assert_eq!(queue.poll(9), 1);
        assert_eq!((counters.each_ref().map(|c| c.woken()), waiting.woken()), ([1; 3], 1));
        assert!(futures.iter_mut().all(|future| status(waiting.poll(future)) == Some(Status::Ok)));
        drop(futures);
        assert_eq!((queue.in_flight(), pool.available(), queue.0.borrow().free.len()), (0, 8, 4));
    }
}

#[test]
fn one_future_is_run_to_its_end() {
    let (device, pool) = (Device::new(2), pool());
    let queue = device.queue();
    device.finish(5, Status::Ok);
    let data = Data::One(pool.get_len(512).unwrap());
    let (data, others) = queue
        .block_on(async {
            let data = queue.write(1, 3, data).await?;
            // More of them at once than there is room for.
            let mut futures: Vec<_> = (4..7).map(|lba| queue.submit(read(lba, lba, &pool))).collect();
            let mut tags = Vec::new();
            poll_fn(|cx| {
                futures.retain_mut(|future| match Pin::new(future).poll(cx) {
                    Poll::Ready(done) => {
                        tags.push(done.unwrap().tag);
                        false
                    }
                    Poll::Pending => true,
                });
                if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            Ok::<_, Error>((queue.read(1, 7, data).await?, tags))
        })
        .unwrap();
    assert_eq!((data.len(), others, device.script().submitted.clone()), (512, vec![4, 5, 6], vec![3, 4, 5, 6, 7]));
    drop(data);
    assert_eq!((pool.available(), queue.in_flight(), queue.waiting()), (8, 0, 0));
}

#[test]
fn what_ends_a_device_ends_the_future_that_is_run() {
    let device = Device::new(1);
    let queue = device.queue();
    device.script().state = QueueState::Gone;
    assert_eq!(queue.block_on(queue.flush(1)).unwrap_err().cause, Cause::Gone);
}

/// The future of a thread that also waits for something else: another thread.
#[test]
fn a_future_may_wait_for_what_is_no_queue() {
    let device = Device::new(1);
    let (queue, flag) = (device.queue(), Arc::new(AtomicUsize::new(0)));
    let other = flag.clone();
    let thread = std::thread::spawn(move || other.store(7, Ordering::Release));
    let seen = queue.block_on(poll_fn(|_| match flag.load(Ordering::Acquire) {
        0 => Poll::Pending,
        seen => Poll::Ready(seen),
    }));
    assert_eq!(seen, 7);
    thread.join().unwrap();
}
