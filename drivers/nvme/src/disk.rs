//! The controller as any [`Disk`]: what programs use that do not care which driver they have.

use crate::event::Event;
use crate::nvme::Nvme;
use crate::options::{ANY_VECTOR, QueueOptions};
use crate::status::StatusCode;
use std::sync::Arc;
use wholebar_core::DriverError;
use wholebar_core::block::{self, BlockQueue, Disk, Namespace};
use wholebar_core::irq::Coalescing;
use wholebar_core::mem::Arena;

impl Disk for Nvme {
    fn driver(&self) -> &'static str {
        "nvme"
    }

    fn name(&self) -> &str {
        self.device().name()
    }

    fn namespaces(&self) -> Vec<Namespace> {
        let controller = self.identify();
        // Requests are cut into commands, so that no limit of these is one of theirs.
        let any = |has: bool| if has { u32::MAX } else { 0 };
        let list = Nvme::namespaces(self);
        // Those whose requests have metadata to carry are not every program's.
        let usable =
            list.iter().filter(|ns| ns.unsupported.is_none() && ns.is_plain() && ns.block_size <= self.max_transfer());
        usable
            .map(|ns| Namespace {
                nsid: ns.nsid,
                blocks: ns.blocks,
                block_size: ns.block_size,
                read_only: ns.read_only,
                max_transfer: u32::MAX / ns.block_size * ns.block_size,
                max_command: self.max_transfer() / ns.block_size * ns.block_size,
                flush: true,
                compare: controller.has_compare(),
                max_write_zeroes: any(controller.has_write_zeroes()),
                max_deallocate: any(controller.has_dataset_management()),
                max_verify: any(controller.has_verify()),
            })
            .collect()
    }

    fn queues(&self) -> u16 {
        self.io_queues()
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        Ok(Nvme::attach(self, arena)?)
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        Ok(Nvme::detach(self, arena)?)
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        Ok(Box::new(Nvme::queue(self, QueueOptions::default())?))
    }

    fn interrupt_queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        Ok(Box::new(Nvme::queue(self, QueueOptions { interrupt: Some(ANY_VECTOR), ..QueueOptions::default() })?))
    }

    fn coalescing(&self) -> Option<Coalescing> {
        Nvme::coalescing(self).ok()
    }

    fn set_coalescing(&self, coalescing: Coalescing) -> Result<Coalescing, DriverError> {
        Ok(Nvme::set_coalescing(self, coalescing)?)
    }

    fn event(&self) -> Option<block::Event> {
        self.events().try_recv().ok().map(|event| match event {
            Event::Driver(event) if event.namespaces_changed() => block::Event::Namespaces,
            Event::Driver(event) => block::Event::Reported(event.to_string()),
            Event::Device(event) => block::Event::Device(event),
        })
    }

    fn status_text(&self, code: u16) -> String {
        StatusCode(code).to_string()
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(Nvme::reset(self)?)
    }
}
