//! Operations of zoned namespaces (Zoned Namespace Command Set 1.1, 3.4): append, management, reports.

use super::build::{Kind, in_range};
use super::{Limits, Queue};
use crate::command::{Command, DataPointer, io};
use crate::error::{Error, Result};
use crate::fdp::Placement;
use crate::raw::{RawCommand, Transfer};
use crate::zone::{DESCRIPTOR, HEAD, Zone, ZoneAction, ZoneReport};
use std::time::Instant;
use wholebar_core::block::{Op, Reject, Rejected, Request};

/// The longest report that is read at once, in bytes.
const REPORT: usize = 64 << 10;

impl Queue {
    /// Posts a Zone Append: a write of the data at the write pointer of the zone that begins at the request's block, wherever that pointer is once the
    /// controller does it. [`poll_results`](Self::poll_results) returns the block that it was. Many can be in flight in a zone, from several queues.
    /// (nvme-cli: `zns zone-append`; SPDK: `spdk_nvme_zns_zone_append`.)
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason: [`Reject::Invalid`] where the request is no write, the namespace has no zones, no zone begins at the
    /// block, or the data is more than one command can have ([`Controller::max_append`](crate::Controller::max_append), and the limits of
    /// [`submit`](Self::submit)); the others of [`submit`](Self::submit).
    pub fn submit_append(&mut self, req: Request) -> Result<(), Rejected> {
        match self.try_append(&req) {
            Ok(cid) => {
                self.hold(cid, req);
                Ok(())
            }
            Err(why) => Err(Rejected { req, why }),
        }
    }

    fn try_append(&mut self, req: &Request) -> Result<u16, Reject> {
        let ns = self.zoned(req.nsid)?;
        let Op::Write { lba } = req.op else { return Err(Reject::Invalid("an append is a write")) };
        zone_begins(ns, lba)?;
        let limit = self.inner.driver().controller.max_append.unwrap_or(u64::MAX);
        if req.data.len() > limit.min(ns.max_len.into()) {
            return Err(Reject::Invalid("more data than one append can have: see `Controller::max_append`"));
        }
        if self.slots.free_count() == 0 {
            return Err(Reject::Full);
        }
        let Request { op, nsid, deadline, .. } = *req;
        let kind = Kind { opcode: io::ZONE_APPEND, nsid, op, deadline, tags: None, placement: Placement::Any };
        self.post_request(kind, req.data.bufs(), ns, true)
    }

    /// Posts a Zone Management Send: does something to the zone that begins at `zone`, or to all whose state allows it where that is `None`. It completes
    /// with `tag`. (nvme-cli: `zns open-zone` and its like; SPDK: `spdk_nvme_zns_open_zone` and its like.)
    ///
    /// # Errors
    /// [`Reject::Invalid`] where the namespace has no zones, or no zone begins there; the others of [`submit`](Self::submit).
    pub fn submit_zone_management(
        &mut self,
        tag: u64,
        nsid: u32,
        action: ZoneAction,
        zone: Option<u64>,
        deadline: Option<Instant>,
    ) -> Result<(), Reject> {
        let ns = self.zoned(nsid)?;
        zone.map_or(Ok(()), |lba| zone_begins(ns, lba))?;
        let (lba, all) = (zone.unwrap_or(0), u32::from(zone.is_none()) << 8);
        self.post_list(tag, deadline, [], |_| {
            let command = Command::new(io::ZONE_MANAGEMENT_SEND, nsid, DataPointer::default());
            command.dw10(lba as u32, (lba >> 32) as u32).dw12(0, action as u32 | all).entry(0)
        })
    }

    /// Reads what the zones of a namespace are (Zone Management Receive), in as many commands as that takes, and waits for them. The queue has nothing
    /// else in flight. (nvme-cli: `zns report-zones`; SPDK: `spdk_nvme_zns_report_zones`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the namespace has no zones, or no such block, or no descriptor extensions; [`Error::Refused`] with the controller's
    /// status; [`Error::Nonsense`] for a report of zones that aren't there; the others of [`execute`](Self::execute).
    pub fn zones(&mut self, nsid: u32, report: ZoneReport) -> Result<Vec<Zone>> {
        let inner = self.inner.clone();
        let driver = inner.driver();
        let device = driver.hw.name();
        let not_offered = |why: String| Err(Error::NotOffered { device: device.clone(), why });
        let list = driver.namespaces.list();
        let found = list.iter().find(|n| n.nsid == nsid).filter(|n| n.unsupported.is_none());
        let Some((ns, zoned)) = found.and_then(|n| Some((n, n.zoned?))) else {
            return not_offered(format!("it has no zoned namespace {nsid} that can be used"));
        };
        if report.from >= ns.blocks {
            return not_offered(format!("namespace {nsid} has no block {}: it has {}", report.from, ns.blocks));
        }
        if report.extended && zoned.extension == 0 {
            return not_offered(format!("zones of namespace {nsid} have no descriptor extensions"));
        }
        let extension = if report.extended { zoned.extension as usize } else { 0 };
        let room = REPORT.min(driver.max_transfer() as usize).saturating_sub(HEAD) / (DESCRIPTOR + extension);
        if room == 0 {
            return not_offered(format!(
                "a zone's descriptor with {extension} bytes of extension is more than a command transfers"
            ));
        }
        let limit = report.limit.unwrap_or(usize::MAX);
        let (mut zones, mut from) = (Vec::new(), report.from - report.from % zoned.zone_size);
        while zones.len() < limit && from < ns.blocks {
            let mut bytes = vec![0; HEAD + room * (DESCRIPTOR + extension)];
            let command = RawCommand {
                opcode: io::ZONE_MANAGEMENT_RECEIVE,
                nsid,
                cdw10: from as u32,
                cdw11: (from >> 32) as u32,
                cdw12: (bytes.len() / 4 - 1) as u32,
                cdw13: report.dword13(true),
                ..RawCommand::default()
            };
            let done = self.execute(&command, Transfer::Read(&mut bytes), None)?;
            if !done.status.is_success() {
                let command = crate::command::io_name(io::ZONE_MANAGEMENT_RECEIVE);
                return Err(Error::Refused { device, command, status: done.status });
            }
            let more = Zone::parse(&bytes, extension);
            let full = more.len() == room;
            for zone in more {
                if zone.start < from || zone.start >= ns.blocks || !zone.start.is_multiple_of(zoned.zone_size) {
                    let what = format!("namespace {nsid} reports a zone at block {}, where none begins", zone.start);
                    return Err(Error::Nonsense { device, what });
                }
                from = zone.start.saturating_add(zoned.zone_size);
                zones.push(zone);
            }
            if !full {
                break;
            }
        }
        zones.truncate(limit);
        Ok(zones)
    }

    /// A namespace with zones, of a queue that runs.
    fn zoned(&mut self, nsid: u32) -> Result<Limits, Reject> {
        if !self.gate.open() {
            return Err(self.closed());
        }
        let ns = self.namespace(nsid)?;
        if ns.zone_size > 0 { Ok(ns) } else { Err(Reject::Invalid("the namespace has no zones")) }
    }
}

/// Whether a zone begins at a block.
fn zone_begins(ns: Limits, lba: u64) -> Result<(), Reject> {
    match lba.is_multiple_of(ns.zone_size) {
        true => in_range(ns, lba, 1),
        false => Err(Reject::Invalid("no zone begins at that block")),
    }
}
