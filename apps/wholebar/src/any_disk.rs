//! A disk that was opened, whichever driver it needs: what `blk` and `perf --baseline` work on.

use crate::storage::{Space, Storage, way_of_bars};
use crate::target::AnyTarget;
use anyhow::{Result, bail};
use std::sync::Arc;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::block::{self, Disk, DiskConfig, Event, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::drivers::Mapping;
use wholebar::measure::block::AnyQueue;
use wholebar::mem::Arena;

/// A disk that was opened.
pub struct AnyDisk {
    pub disk: Box<dyn Disk>,
    mapping: Mapping,
    /// The kernel is the way to it.
    kernel: bool,
}

impl AnyDisk {
    /// Opens the disk that stands behind a target. It must have as many queues as `config` says.
    pub fn open(target: &AnyTarget, config: &DiskConfig, mapping: Mapping) -> Result<Self> {
        let disk = target.open(&block::drivers(), config, mapping)?;
        if disk.queues() < config.queues {
            bail!("{} queues are asked for, and {} has {}", config.queues, disk.name(), disk.queues());
        }
        Ok(Self { disk, mapping, kernel: matches!(target, AnyTarget::Direct(_)) })
    }
}

impl Storage for AnyDisk {
    type Queue = AnyQueue;

    fn name(&self) -> &str {
        self.disk.name()
    }

    fn space(&self, nsid: u32) -> Result<Space> {
        let all = self.disk.namespaces();
        let Some(namespace) = all.iter().find(|n| n.nsid == nsid) else {
            let ids: Vec<_> = all.iter().map(|n| n.nsid.to_string()).collect();
            let has = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            bail!("{} has no namespace {nsid} that can be used; it has: {has}", self.name());
        };
        let block::Namespace { nsid, blocks, block_size, read_only, max_transfer, .. } = *namespace;
        Ok(Space { nsid, blocks, block_size, read_only, max_transfer })
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.disk.attach(arena)?)
    }

    fn queue(&self, _: u32, _: u32, _: u32) -> Result<AnyQueue> {
        Ok(AnyQueue(self.disk.queue()?))
    }

    fn mapped(&self) -> (MapPolicy, PageSize) {
        (self.mapping.policy, self.mapping.page.unwrap_or(PageSize::host()))
    }

    fn way(&self) -> String {
        match self.kernel {
            true => self.disk.driver().to_owned(),
            false => way_of_bars(self.mapped()),
        }
    }

    fn why_read_only(&self) -> Option<String> {
        let reported = |event| if let Event::Reported(why) = event { Some(why) } else { None };
        std::iter::from_fn(|| self.disk.event()).find_map(reported)
    }

    fn status_name(&self, status: Status) -> String {
        match status {
            Status::Ok => "success".to_owned(),
            Status::Device(code) => self.disk.status_text(code),
            Status::Aborted => "given up: it took too long, or the device was reset".to_owned(),
            Status::Gone => "the device is gone".to_owned(),
        }
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let ended = |event| if let Event::Device(DeviceEvent::Ended { why }) = event { Some(why) } else { None };
        match std::iter::from_fn(|| self.disk.event()).find_map(ended) {
            Some(why) => error.context(why),
            None => error,
        }
    }

    fn resets(&self) -> Option<(usize, String)> {
        let why = |event| if let Event::Device(DeviceEvent::Reset { why, .. }) = event { Some(why) } else { None };
        let mut resets = std::iter::from_fn(|| self.disk.event()).filter_map(why);
        resets.next().map(|first| (1 + resets.count(), first))
    }
}
