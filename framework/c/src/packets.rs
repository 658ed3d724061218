//! Queues of ports: bursts of packets as arrays of buffers.

use crate::error::{Result, entry};
use crate::handle::{self, Out};
use crate::memory::{self, count, wb_buf};
use crate::queue::{Once, state, told};
use std::ffi::c_int;
use wholebar::net::{Burst, RxQueue, TxQueue};

/// Packets that move through the border at once; longer arrays go in several such.
const BURST: usize = 64;

/// A queue that receives, for one thread at a time.
pub struct wb_rx_queue {
    queue: Once<Box<dyn RxQueue>>,
    /// What was received, and there was no room for in the caller's array.
    burst: Burst,
}

/// A queue that sends, for one thread at a time.
pub struct wb_tx_queue {
    queue: Once<Box<dyn TxQueue>>,
    /// Empty between calls.
    burst: Burst,
}

impl wb_rx_queue {
    pub(crate) fn new(queue: Box<dyn RxQueue>) -> Self {
        Self { queue: Once::new(queue), burst: Burst::new(BURST) }
    }
}

impl wb_tx_queue {
    pub(crate) fn new(queue: Box<dyn TxQueue>) -> Self {
        Self { queue: Once::new(queue), burst: Burst::new(BURST) }
    }
}

/// Takes packets that have come, at most `n`, each in a buffer that is the caller's then; returns how many, without waiting. The queue is given new buffers
/// from its pool for those that left it. (DPDK: rte_eth_rx_burst.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_rx_burst(queue: *mut wb_rx_queue, packets: *mut *mut wb_buf, n: u16) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        let queue = unsafe { handle::get_mut(queue) }?;
        // SAFETY: rule 3: `n` elements to fill in.
        let mut out = unsafe { Out::new(packets, n.into()) }?;
        let mut received = Ok(0);
        while out.room() > 0 && received.is_ok() {
            if queue.burst.is_empty() {
                received = queue.queue.with(|rx| rx.rx(&mut queue.burst));
            }
            let taken = queue.burst.take(out.room()).map(|packet| out.push(memory::give(packet))).count();
            if taken == 0 {
                break;
            }
        }
        told(out.filled(), received)
    })
}

/// Sends packets, from the front of the array on, as many as there is room for; returns how many. Those are the queue's, the rest stays the caller's. A packet that
/// can never be sent counts as sent, and is dropped. Where a buffer is not the caller's, -EINVAL, or how many of those in front of it were taken, as with any other
/// error. (DPDK: rte_eth_tx_burst.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_tx_burst(queue: *mut wb_tx_queue, packets: *const *mut wb_buf, n: u16) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        let queue = unsafe { handle::get_mut(queue) }?;
        // SAFETY: rule 3: `n` elements to read.
        let packets = unsafe { handle::array(packets, n.into()) }?;
        let mut sent = 0;
        for some in packets.chunks(BURST) {
            // SAFETY: rule 4: buffers of the caller's.
            let taken = unsafe { send(queue, some) };
            sent += *taken.as_ref().unwrap_or(&0);
            if taken.as_ref().is_ok_and(|taken| *taken == some.len()) {
                continue;
            }
            return told(sent, taken);
        }
        Ok(count(sent))
    })
}

/// # Safety
/// Rule 4: these are buffers of the caller's.
unsafe fn send(queue: &mut wb_tx_queue, packets: &[*mut wb_buf]) -> Result<usize> {
    for packet in packets {
        // SAFETY: the caller's word.
        let taken = unsafe { memory::take(*packet) };
        match taken {
            // It has room for a chunk.
            Ok(buf) => _ = queue.burst.push(buf),
            Err(wrong) => {
                return_all(&mut queue.burst);
                return Err(wrong.into());
            }
        }
    }
    let sent = queue.queue.with(|tx| tx.tx(&mut queue.burst));
    return_all(&mut queue.burst);
    sent
}

/// Makes what is left in a burst the caller's again, who has the pointers.
fn return_all(burst: &mut Burst) {
    for packet in burst.take(usize::MAX) {
        memory::give(packet);
    }
}

/// Gives back the buffers of packets that were sent, where nothing is to be sent for a while: wb_tx_burst does so when it needs room. (DPDK: rte_eth_tx_done_cleanup.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_tx_reclaim(queue: *mut wb_tx_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        unsafe { handle::get_mut(queue) }?.queue.with(|tx| tx.reclaim())?;
        Ok(0)
    })
}

/// How many packets were taken and are not known to be sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_tx_in_flight(queue: *mut wb_tx_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        Ok(count(unsafe { handle::get_mut(queue) }?.queue.with(|tx| tx.in_flight())?))
    })
}

/// Whether it can be used: WB_STATE_RUNNING, WB_STATE_RESETTING, WB_STATE_FAILED (wb_error says why), WB_STATE_GONE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_rx_state(queue: *mut wb_rx_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        Ok(state(unsafe { handle::get_mut(queue) }?.queue.with(|rx| rx.state())?))
    })
}

/// Whether it can be used, as wb_rx_state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_tx_state(queue: *mut wb_tx_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        Ok(state(unsafe { handle::get_mut(queue) }?.queue.with(|tx| tx.state())?))
    })
}

/// Ends a receive queue. Buffers that it had go home as its device is done with them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_rx_free(queue: *mut wb_rx_queue) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(queue) };
        Ok(())
    })
}

/// Ends a send queue. Packets in flight end with the port.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_tx_free(queue: *mut wb_tx_queue) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(queue) };
        Ok(())
    })
}
