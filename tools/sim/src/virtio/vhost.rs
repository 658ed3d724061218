//! What a vhost-user back end wants of a virtio model that no register says: where queues begin and go on, and how many pairs are in use.

use super::Virtio;
use super::queue::Queue;
use wholebar_core::vhost_user::{QueueRecord, VirtioModel};

impl VirtioModel for Virtio {
    fn set_queue_base(&mut self, queue: u16, base: u16) {
        if let Some(setup) = self.setups.get_mut(usize::from(queue)) {
            setup.base = Some(base);
        }
    }

    fn queue_base(&self, queue: u16) -> Option<u16> {
        self.queues.get(usize::from(queue))?.as_ref().map(Queue::base)
    }

    fn set_queue_record(&mut self, queue: u16, record: QueueRecord) {
        if let Some(Some(queue)) = self.queues.get_mut(usize::from(queue)) {
            queue.set_record(record);
        }
    }

    fn set_queue_pairs(&mut self, pairs: u16) {
        self.device.set_pairs(pairs);
    }
}
