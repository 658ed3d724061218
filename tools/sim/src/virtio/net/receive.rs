//! Received packets: filtered, made to fit what the driver can take, sent to a queue, and copied into its buffers.

use super::buffers::{Put, put};
use super::flow::Flow;
use super::{COMPLETE, Net};
use crate::virtio::bits::net;
use crate::virtio::queue::{Broken, FaultState, Queue, poll};
use crate::wire::{BURST, DATA_VALID, Fit, Frame, cut, fit};
use std::iter;
use wholebar_core::Work;
use wholebar_core::model::Host;

/// A frame that was put into the driver's buffers, or is not going to be.
const DONE: u16 = u16::MAX;

impl Net {
    /// A poll of the receive queues.
    #[inline]
    pub(super) fn receive(
        &mut self,
        host: &mut Host<'_>,
        queues: &mut [Option<Queue>],
        fault_state: &mut FaultState,
    ) -> Result<Work, Broken> {
        if self.ready.is_empty() {
            // Who has given no buffers may still say what is to be filtered: what waits does so on the wire.
            self.starved = self.params.wait && !self.has_buffers(host, queues);
            if self.starved {
                return Ok(Work::Idle);
            }
            self.port.receive(&mut self.arrived, BURST);
            if self.arrived.is_empty() {
                return Ok(Work::Idle);
            }
            self.sort();
        }
        let waiting = self.ready.len();
        if self.steering.single() {
            self.deliver(host, queues, 0, fault_state)?;
        } else {
            for pair in 0..self.pairs {
                if self.ready.iter().any(|f| f.queue == pair) {
                    self.deliver(host, queues, pair, fault_state)?;
                }
            }
        }
        if self.params.wait && self.ready.iter().any(|f| f.queue != DONE) {
            self.done.extend(self.ready.extract_if(.., |f| f.queue == DONE));
        } else {
            self.done.append(&mut self.ready);
        }
        // Who only waits has nothing to do.
        Ok(if waiting > 0 && self.ready.len() == waiting { Work::Idle } else { Work::Busy })
    }

    /// Whether any receive queue has a buffer.
    fn has_buffers(&self, host: &Host<'_>, queues: &[Option<Queue>]) -> bool {
        let mut receivers = queues.iter().step_by(2).take(self.pairs.into()).flatten();
        receivers.any(|queue| !queue.is_empty(host))
    }

    /// What arrived, for those queues that it goes to.
    #[inline]
    fn sort(&mut self) {
        // What is most frequent: there is no choice, and nothing to be done to any of them.
        let Self { filter, arrived, .. } = self;
        let mut as_it_is = |frame: &mut Frame| {
            (frame.queue, frame.hash) = (0, (0, 0));
            filter.passes(frame.packet()) && frame.is_complete()
        };
        if self.link && self.steering.single() && self.hash.is_none() && arrived.iter_mut().all(&mut as_it_is) {
            return self.ready.append(arrived);
        }
        let mut arrived = std::mem::take(&mut self.arrived);
        for mut frame in arrived.drain(..) {
            if !self.link {
                self.counts.rx_no_driver += 1;
                self.done.push(frame);
                continue;
            }
            if !self.filter.passes(frame.packet()) {
                self.counts.rx_filtered += 1;
                self.done.push(frame);
                continue;
            }
            if frame.is_complete() {
                self.steer(frame);
                continue;
            }
            match fit(&mut frame, self.accepts) {
                Ok(Fit::Fits) => self.steer(frame),
                Ok(Fit::Cut) => self.cut(frame),
                Err(_) => {
                    self.counts.rx_malformed += 1;
                    self.done.push(frame);
                }
            }
        }
        self.arrived = arrived;
    }

    /// Cuts a packet into segments, for a driver that can't take it whole.
    #[cold]
    fn cut(&mut self, frame: Frame) {
        let flags = if self.accepts.csum { DATA_VALID } else { 0 };
        let mut segments = Vec::new();
        let done = cut(frame.packet(), &frame.offload(), |len, fill| {
            let mut segment = self.port.take().ok_or(())?;
            segment.resize(len);
            fill(segment.packet_mut());
            segment.set_offload(&crate::wire::Offload { flags, ..COMPLETE });
            segments.push(segment);
            Ok(())
        });
        match done {
            Ok(Ok(())) => {}
            // No more frames: what is missing is lost, as it would be on any wire.
            Ok(Err(())) => self.counts.rx_no_buffer += 1,
            Err(_) => self.counts.rx_malformed += 1,
        }
        self.done.push(frame);
        segments.into_iter().for_each(|segment| self.steer(segment));
    }

    /// Says which queue a packet goes to.
    #[inline]
    fn steer(&mut self, mut frame: Frame) {
        (frame.queue, frame.hash) = (0, (0, 0));
        if !self.steering.single() || self.hash.is_some() {
            self.choose(&mut frame);
        }
        self.ready.push(frame);
    }

    /// The same where there is a choice, or a hash to report.
    #[inline(never)]
    fn choose(&self, frame: &mut Frame) {
        let flow = Flow::of(frame.packet());
        let hash = self.hash.as_ref().zip(flow.as_ref()).and_then(|(hash, flow)| hash.of(flow));
        frame.hash = hash.unwrap_or_default();
        frame.queue = self.steering.queue(flow.as_ref(), hash.map(|(hash, _)| hash));
    }

    /// Puts what goes to a queue into its buffers.
    #[inline]
    fn deliver(
        &mut self,
        host: &mut Host<'_>,
        queues: &mut [Option<Queue>],
        pair: u16,
        fault_state: &mut FaultState,
    ) -> Result<(), Broken> {
        let Some(Some(queue)) = queues.get_mut(2 * usize::from(pair)) else {
            self.no_queue(pair);
            return Ok(());
        };
        let (report, mergeable) = (self.has(net::HASH_REPORT), self.has(net::MRG_RXBUF));
        let Self { ready, merge, header, counts, params, .. } = self;
        let polled = poll!(queue, host, fault_state, |pass, ahead| {
            let before = counts.rx_packets;
            ahead.prefetch(&mut pass, host, ready.len());
            for frame in ready.iter_mut().filter(|f| f.queue == pair) {
                // How many buffers: one, until it is known better (5.1.6.3.2).
                frame.header()[10..12].copy_from_slice(&1u16.to_le_bytes());
                if report {
                    frame.report_hash();
                }
                let bytes = &*frame.with_header(*header);
                let (pieces, len) = (iter::once(bytes), bytes.len());
                match put(&mut pass, host, ahead, merge, pieces, len, *header, mergeable)? {
                    Put::Done => {
                        counts.rx_packets += 1;
                        counts.rx_bytes += (len - *header) as u64;
                    }
                    Put::NoBuffer if params.wait => {
                        if report {
                            frame.forget_hash();
                        }
                        break;
                    }
                    Put::NoBuffer => counts.rx_no_buffer += 1,
                    Put::TooLong => counts.rx_too_long += 1,
                }
                frame.queue = DONE;
            }
            ahead.put_back(&mut pass);
            (counts.rx_packets - before) as usize
        });
        let vector = queue.vector;
        match polled {
            Some((packets, wanted)) => self.interrupt(host, vector, 2 * usize::from(pair), packets, wanted),
            None if !self.params.wait => self.no_queue(pair),
            None => {}
        }
        Ok(())
    }

    /// What goes to a queue that is not there finds no buffer.
    fn no_queue(&mut self, pair: u16) {
        for frame in self.ready.iter_mut().filter(|f| f.queue == pair) {
            (frame.queue, self.counts.rx_no_buffer) = (DONE, self.counts.rx_no_buffer + 1);
        }
    }
}
