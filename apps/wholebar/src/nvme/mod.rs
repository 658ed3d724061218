//! `wholebar nvme`: what people do with an NVMe controller.

mod admin;
mod copy;
mod directives;
mod erase;
mod fdp;
mod features;
mod firmware;
mod identify;
mod list;
mod logs;
mod namespaces;
mod passthru;
mod perf;
mod pmr;
pub mod reads;
mod resv;
mod smart;
mod virtualization;
mod zns;

pub use virtualization::table as secondary_table;

use crate::devices;
use crate::storage::{Space, Storage};
use crate::target::Target;
use anyhow::{Result, bail};
use std::sync::Arc;
use wholebar::PageSize;
use wholebar::bar::{DoorbellCounts, MapPolicy};
use wholebar::block::{BlockQueue, Completion, Op, QueueState, Rejected, Request, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::measure::block::QueuePair;
use wholebar::mem::Arena;
use wholebar::nvme::{Event, Namespace, Nvme, Options, Placement, Queue, QueueOptions, StatusCode};

/// Identify, read, write, measure and administer NVMe controllers
#[derive(clap::Subcommand)]
pub enum Command {
    List(ListArgs),
    Identify(identify::Args),
    #[command(alias = "smart-log")]
    Smart(smart::Args),
    Read(copy::ReadArgs),
    Write(copy::WriteArgs),
    Perf(perf::Args),
    #[command(name = "id-ctrl")]
    IdentifyController(list::ControllerArgs),
    #[command(name = "id-ns")]
    IdentifyNamespace(list::NamespaceArgs),
    #[command(name = "list-ns")]
    ListNamespaces(list::NamespacesArgs),
    #[command(name = "list-ctrl")]
    ListControllers(list::ControllersArgs),
    #[command(name = "get-log")]
    GetLog(logs::Args),
    #[command(name = "error-log")]
    ErrorLog(logs::ErrorArgs),
    #[command(name = "fw-log")]
    FirmwareLog(logs::FirmwareArgs),
    #[command(name = "get-feature")]
    GetFeature(features::GetArgs),
    #[command(name = "set-feature")]
    SetFeature(features::SetArgs),
    #[command(name = "create-ns")]
    CreateNamespace(namespaces::CreateArgs),
    #[command(name = "delete-ns")]
    DeleteNamespace(namespaces::DeleteArgs),
    #[command(name = "attach-ns")]
    AttachNamespace(namespaces::AttachArgs),
    #[command(name = "detach-ns")]
    DetachNamespace(namespaces::DetachArgs),
    Format(erase::FormatArgs),
    Sanitize(erase::SanitizeArgs),
    #[command(name = "sanitize-log")]
    SanitizeLog(logs::SanitizeArgs),
    #[command(name = "self-test", alias = "device-self-test")]
    SelfTest(erase::SelfTestArgs),
    #[command(name = "self-test-log")]
    SelfTestLog(logs::SelfTestArgs),
    #[command(name = "fw-download")]
    FirmwareDownload(firmware::DownloadArgs),
    #[command(name = "fw-commit", alias = "fw-activate")]
    FirmwareCommit(firmware::CommitArgs),
    #[command(name = "security-send")]
    SecuritySend(firmware::SendArgs),
    #[command(name = "security-recv")]
    SecurityReceive(firmware::ReceiveArgs),
    #[command(name = "admin-passthru")]
    AdminPassthru(passthru::AdminArgs),
    #[command(name = "io-passthru")]
    IoPassthru(passthru::IoArgs),
    #[command(name = "dir-receive")]
    DirectiveReceive(directives::ReceiveArgs),
    #[command(name = "dir-send")]
    DirectiveSend(directives::SendArgs),
    #[command(subcommand)]
    Fdp(fdp::Command),
    #[command(subcommand)]
    Pmr(pmr::Command),
    #[command(subcommand)]
    Resv(resv::Command),
    #[command(name = "primary-ctrl-caps")]
    PrimaryCapabilities(virtualization::CapabilitiesArgs),
    #[command(name = "list-secondary")]
    ListSecondary(virtualization::ListArgs),
    #[command(name = "virt-mgmt")]
    VirtualizationManagement(virtualization::ManagementArgs),
    #[command(subcommand)]
    Zns(zns::Command),
}

/// List the NVMe controllers of this machine, and whether they can be opened: `wholebar devices` with all their functions
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  wholebar nvme list")]
pub struct ListArgs {
    /// Write JSON, as `wholebar devices` does
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> Result<()> {
    match command {
        // NVM Express, a subclass of mass storage.
        Command::List(ListArgs { json }) => devices::run(devices::Args::of_class("0108", json)),
        Command::Identify(args) => identify::run(args),
        Command::Smart(args) => smart::run(args),
        Command::Read(args) => copy::read(args),
        Command::Write(args) => copy::write(args),
        Command::Perf(args) => perf::run(args),
        Command::IdentifyController(args) => list::controller(args),
        Command::IdentifyNamespace(args) => list::namespace(args),
        Command::ListNamespaces(args) => list::namespaces(args),
        Command::ListControllers(args) => list::controllers(args),
        Command::GetLog(args) => logs::get_log(args),
        Command::ErrorLog(args) => logs::error_log(args),
        Command::FirmwareLog(args) => logs::fw_log(args),
        Command::GetFeature(args) => features::get(args),
        Command::SetFeature(args) => features::set(args),
        Command::CreateNamespace(args) => namespaces::create(args),
        Command::DeleteNamespace(args) => namespaces::delete(args),
        Command::AttachNamespace(args) => namespaces::attach(args),
        Command::DetachNamespace(args) => namespaces::detach(args),
        Command::Format(args) => erase::format(args),
        Command::Sanitize(args) => erase::sanitize(args),
        Command::SanitizeLog(args) => logs::sanitize_log(args),
        Command::SelfTest(args) => erase::self_test(args),
        Command::SelfTestLog(args) => logs::self_test_log(args),
        Command::FirmwareDownload(args) => firmware::download(args),
        Command::FirmwareCommit(args) => firmware::commit(args),
        Command::SecuritySend(args) => firmware::send(args),
        Command::SecurityReceive(args) => firmware::receive(args),
        Command::AdminPassthru(args) => passthru::admin(args),
        Command::IoPassthru(args) => passthru::io(args),
        Command::DirectiveReceive(args) => directives::receive(args),
        Command::DirectiveSend(args) => directives::send(args),
        Command::Fdp(command) => fdp::run(command),
        Command::Pmr(command) => pmr::run(command),
        Command::Resv(command) => resv::run(command),
        Command::PrimaryCapabilities(args) => virtualization::capabilities(args),
        Command::ListSecondary(args) => virtualization::list(args),
        Command::VirtualizationManagement(args) => virtualization::manage(args),
        Command::Zns(command) => zns::run(command),
    }
}

/// A controller that was opened, and what is asked of it here.
pub struct Controller {
    nvme: Nvme,
    name: String,
    /// Where what its queues write goes.
    placement: Placement,
}

impl Controller {
    /// Opens the controller that stands behind a target. It must have as many queue pairs as the options say.
    pub fn open(target: &Target, options: Options) -> Result<Self> {
        let queues = options.io_queues;
        let nvme = Nvme::open(target.device.clone(), options)?;
        let (name, granted) = (target.device.name().to_owned(), nvme.io_queues());
        if granted < queues {
            bail!("{queues} queue pairs are asked for, and {name} has {granted}");
        }
        Ok(Self { nvme, name, placement: Placement::Any })
    }

    /// Bytes of the controller's pages, and of the largest that it could be given.
    pub fn pages(&self) -> (u64, u64) {
        (self.nvme.page(), self.nvme.max_page())
    }

    /// What the controller says of itself.
    pub fn identity(&self) -> &wholebar::nvme::Controller {
        self.nvme.identify()
    }

    /// The namespaces there are.
    pub fn namespaces(&self) -> Arc<[Namespace]> {
        self.nvme.namespaces()
    }

    /// A namespace that can be used.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace> {
        let all = self.namespaces();
        let Some(namespace) = all.iter().find(|n| n.nsid == nsid) else {
            let ids: Vec<_> = all.iter().map(|n| n.nsid.to_string()).collect();
            let has = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            bail!("{} has no namespace {nsid}; it has: {has}", self.name);
        };
        match &namespace.unsupported {
            Some(why) => bail!("{}: namespace {nsid} cannot be used: {why}", self.name),
            None if !namespace.is_plain() => bail!(
                "{}: namespace {nsid} cannot be used by this command: each of its blocks has {} bytes of metadata to go along",
                self.name,
                namespace.metadata_size
            ),
            None => Ok(namespace.clone()),
        }
    }

    /// Entries of the largest queue there can be.
    pub fn max_entries(&self) -> u32 {
        self.nvme.max_entries()
    }
}

impl Storage for Controller {
    type Queue = ControllerQueue;

    fn name(&self) -> &str {
        &self.name
    }

    fn space(&self, nsid: u32) -> Result<Space> {
        let Namespace { nsid, blocks, block_size, read_only, .. } = self.namespace(nsid)?;
        // The driver cuts what is larger than a command can be.
        Ok(Space { nsid, blocks, block_size, read_only, max_transfer: u32::MAX })
    }

    /// One entry is always empty: a full queue would look like that (NVM Express Base 2.0, 3.3.1.2).
    fn max_depth(&self) -> u32 {
        self.max_entries() - 1
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.nvme.attach(arena)?)
    }

    fn queue(&self, nsid: u32, depth: u32, bytes: u32) -> Result<ControllerQueue> {
        let namespace = self.namespace(nsid)?;
        // The driver cuts what is larger than the controller takes at once, and at the namespace's boundaries; what doesn't fit then waits.
        let boundary = match u32::from(namespace.io_boundary) {
            0 => u32::MAX,
            blocks => blocks.saturating_mul(namespace.block_size),
        };
        let most = self.nvme.max_transfer().min(boundary).max(1);
        let commands = if bytes > most { depth.saturating_mul(bytes.div_ceil(most) + 1) } else { depth };
        let entries = Some(commands.saturating_add(1).next_power_of_two().min(self.max_entries()));
        let queue = self.nvme.queue(QueueOptions { entries, ..QueueOptions::default() })?;
        Ok(ControllerQueue(queue, self.placement))
    }

    fn mapped(&self) -> (MapPolicy, PageSize) {
        let plan = self.nvme.bar().plan();
        (plan.policy, plan.page)
    }

    fn shadow_doorbells(&self) -> bool {
        self.nvme.shadow_doorbells()
    }

    fn status_name(&self, status: Status) -> String {
        status_name(status)
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if let Err(cause) = self.nvme.check() {
            return error.context(cause.to_string());
        }
        // Media and Data Integrity Errors (status type 2): the log says which block of a command it is.
        let newest = self.nvme.error_log().ok().and_then(|log| log.into_iter().next());
        let text = format!("{error:#}");
        let same = |name: &str| text.contains(name);
        match newest.filter(|entry| entry.status.kind() == 2 && entry.status.name().is_some_and(same)) {
            Some(entry) => anyhow::anyhow!("{text} (block {}, by the controller's error log)", entry.lba),
            None => error,
        }
    }

    fn resets(&self) -> Option<(usize, String)> {
        let why = |event| if let Event::Device(DeviceEvent::Reset { why, .. }) = event { Some(why) } else { None };
        let mut resets = self.nvme.events().try_iter().filter_map(why);
        resets.next().map(|first| (1 + resets.count(), first))
    }
}

/// What a status is called.
pub fn status_name(status: Status) -> String {
    match status {
        Status::Ok => "success".to_owned(),
        Status::Device(code) => StatusCode(code).to_string(),
        Status::Aborted => "given up: it took too long, or the controller was reset".to_owned(),
        Status::Gone => "the device is gone".to_owned(),
    }
}

/// A queue pair of a controller, and where what it writes goes.
pub struct ControllerQueue(Queue, Placement);

impl BlockQueue for ControllerQueue {
    #[inline]
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        match (self.1, &req.op) {
            (placement @ (Placement::Stream(_) | Placement::Handle(_)), Op::Write { .. }) => {
                self.0.submit_placed(req, placement, None)
            }
            _ => self.0.submit(req),
        }
    }

    #[inline]
    fn ring(&mut self) {
        self.0.ring();
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.0.poll(max, done)
    }

    fn state(&self) -> QueueState {
        self.0.state()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        BlockQueue::doorbells(&self.0)
    }
}

impl QueuePair for ControllerQueue {
    #[inline]
    fn poll_each(&mut self, max: usize, done: impl FnMut(Completion)) -> usize {
        self.0.poll_each(max, done)
    }

    fn fatal(&self, status: Status, nsid: u32) -> Option<String> {
        let controller = self.0.controller();
        let code = match status {
            Status::Gone => return controller.check().err().map(|error| error.to_string()),
            Status::Device(code) => StatusCode(code),
            Status::Ok | Status::Aborted => return None,
        };
        let missing = match code.name() {
            Some("Invalid Namespace or Format") => true,
            // So a namespace that is there, but not active, is to be refused (NVM Express Base 2.0, 3.2.1.4). The controller's notice of that may
            // come later.
            Some("Invalid Field in Command") => {
                controller.read_namespaces().is_ok_and(|list| list.iter().all(|n| n.nsid != nsid))
            }
            _ => false,
        };
        missing.then(|| format!("namespace {nsid} is not there any more: {code}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use wholebar::measure::block::{BACK_OFF, Direction, Job, Order, Workload};

    /// A peer may allow 64 maps, or fewer.
    #[test]
    fn many_queues_take_few_maps() {
        let target = crate::target::open("sim:nvme,size=16M,queues=64", &[], None).unwrap();
        let controller = Controller::open(&target, Options { io_queues: 64, ..Options::default() }).unwrap();
        let job = Job {
            workload: Workload { order: Order::Random, direction: Direction::Read },
            nsid: 1,
            block: 512,
            blocks: 8,
            first: 0,
            units: 2048,
            depth: 32,
            batch: 32,
            back_off: BACK_OFF,
            warmup: Duration::ZERO,
            time: Duration::ZERO,
            verify: false,
            seed: 1,
            shared_cores: true,
            device: None,
        };
        let supplies = controller.supplies(&job, &[0], 64).unwrap();
        assert_eq!((supplies.len(), supplies[0].1.len(), supplies[0].1[63].bufs.len()), (1, 64, 32));
        assert!(target.device.dma().mapped() <= 8, "{} maps", target.device.dma().mapped());
    }
}
