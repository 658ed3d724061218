//! Tracing: a queue around a queue that emits a `tracing` event for each burst (level TRACE) and for each change of its state (level DEBUG).

use super::{Burst, QueueState, RxQueue, TxQueue};
use crate::irq::EventFd;
use crate::mem::Buf;
use crate::reactor::Armed;
use std::sync::Arc;
use tracing::Level;

/// A queue that logs its bursts.
///
/// While no subscriber is enabled for level DEBUG it costs one branch a burst.
///
/// ```
/// # use wholebar_core as wholebar;
/// # use wholebar::{mem::Pool, net::{Port, Traced}};
/// # fn example(port: &dyn Port, pool: &Pool) -> Result<(), Box<dyn std::error::Error>> {
/// // Used as any receive queue.
/// let rx = Traced::new(port.rx_queue(0, pool)?, "rx0");
/// # drop(rx);
/// # Ok(()) }
/// ```
pub struct Traced<Q> {
    inner: Q,
    name: String,
    was: QueueState,
}

impl<Q> Traced<Q> {
    /// Wraps `queue`. Each event has `name` as its field `queue`.
    pub fn new(queue: Q, name: impl Into<String>) -> Self {
        Self { inner: queue, name: name.into(), was: QueueState::Running }
    }

    #[cold]
    fn tell(&mut self, what: &str, packets: usize, bytes: u64, left: usize, state: QueueState) {
        if packets > 0 {
            tracing::trace!(queue = self.name, packets, bytes, left, "{what}");
        }
        if state != self.was {
            tracing::debug!(queue = self.name, from = ?self.was, to = ?state, "its state changed");
            self.was = state;
        }
    }
}

fn bytes(packets: &[Buf]) -> u64 {
    packets.iter().map(Buf::packet_len).sum()
}

impl<Q: RxQueue> RxQueue for Traced<Q> {
    #[inline]
    fn rx(&mut self, out: &mut Burst) -> usize {
        let had = out.len();
        let came = self.inner.rx(out);
        if tracing::enabled!(Level::DEBUG) {
            self.tell("received", came, bytes(&out[had..]), 0, self.inner.state());
        }
        came
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.inner.wakeup()
    }

    fn arm(&mut self) -> Armed {
        self.inner.arm()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }
}

impl<Q: TxQueue> TxQueue for Traced<Q> {
    #[inline]
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if !tracing::enabled!(Level::DEBUG) {
            return self.inner.tx(packets);
        }
        let before = bytes(packets);
        let taken = self.inner.tx(packets);
        self.tell("sent", taken, before - bytes(packets), packets.len(), self.inner.state());
        taken
    }

    #[inline]
    fn reclaim(&mut self) {
        self.inner.reclaim();
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Loop, packets, pool};
    use super::*;
    use std::fmt::{self, Write};
    use std::sync::Mutex;
    use tracing::field::{Field, Visit};
    use tracing::span;

    /// Keeps what is said.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Said {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            struct Line(String);
            impl Visit for Line {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    let _ = write!(self.0, " {field}={value:?}");
                }
            }
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn bursts_are_told_to_who_listens() {
        let (said, pool) = (Said::default(), pool(16));
        let run = || {
            let mut queue = Traced::new(Loop::default(), "t0");
            let mut out = Burst::new(16);
            for mut burst in packets(&pool, 12, 12) {
                assert_eq!((queue.tx(&mut burst), queue.tx(&mut burst)), (11, 1));
            }
            assert_eq!((queue.rx(&mut out), queue.rx(&mut out)), (12, 0));
        };
        run();
        assert!(said.0.lock().unwrap().is_empty());
        tracing::subscriber::with_default(said.clone(), run);
        // Packets of 60, 61, and so on to 71 bytes.
        let expected = [
            "TRACE message=sent queue=\"t0\" packets=11 bytes=715 left=1",
            "TRACE message=sent queue=\"t0\" packets=1 bytes=71 left=0",
            "TRACE message=received queue=\"t0\" packets=12 bytes=786 left=0",
        ];
        assert_eq!(*said.0.lock().unwrap(), expected);
    }
}
