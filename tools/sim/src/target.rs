//! Devices by name: `sim:nvme,size=1G`, `vfio-user:/run/x.sock`, `0000:01:00.0`.

use crate::faults::Struck;
use crate::fpga::Fpga;
use crate::nvme::{Nvme, NvmeParams};
use crate::params::{self, Parameter};
use crate::virtio::blk::{self, BlkParams};
use crate::virtio::net::{self, NetHandle, NetParams};
use crate::wire::Company;
use crate::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::model::{InProcess, Model, ModelThread};
use wholebar_core::pci::{Address, PciDevice};
use wholebar_core::vfio::{IommuType, Route, VfToken, Vfio, VfioOptions};
use wholebar_core::vfio_user::{self, VfioUser};

/// A device's name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A model in this process.
    Model {
        /// The name it was asked for by.
        name: String,
        /// Which model, and how it is to be.
        params: ModelParams,
    },
    /// A vfio-user server.
    VfioUser {
        /// Its socket.
        path: PathBuf,
        /// `timeout`: how long it may take to answer a message, where that is said.
        timeout: Option<Duration>,
    },
    /// A PCI function, through the kernel's VFIO.
    Pci {
        /// Where it is.
        address: Address,
        /// How to open it.
        params: PciParams,
    },
}

/// How to open a PCI function: `0000:01:00.0,via=group`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PciParams {
    /// `via`: its group or its own node; or without an IOMMU, which must be asked for.
    pub route: Route,
    /// `iommu`: which kind, where there are several.
    pub iommu: Option<IommuType>,
    /// `token`: the VF token.
    pub vf_token: Option<VfToken>,
}

const PCI_PARAMETERS: [Parameter; 3] = [
    ("via", "group, node, or no-iommu (it can then overwrite any memory)"),
    ("iommu", "type1, tce1 or tce2: the kind of IOMMU, where the kernel offers several"),
    ("token", "UUID: the secret of its physical function, for a virtual function"),
];

/// The models there are, by the names that follow `sim:`, and what each is.
pub const MODELS: [Parameter; 4] = [
    ("nvme", "an NVMe controller"),
    ("fpga", "a small FPGA card: a DMA copy engine beside an MSI-X table"),
    ("virtio-net", "a virtio network card, wired to itself, another, a TAP interface or capture files"),
    ("virtio-blk", "a virtio disk"),
];

/// A model and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelParams {
    /// `sim:nvme`.
    Nvme(NvmeParams),
    /// `sim:fpga`, which has none.
    Fpga,
    /// `sim:virtio-net`.
    VirtioNet(NetParams),
    /// `sim:virtio-blk`.
    VirtioBlk(BlkParams),
}

/// How to open a device.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// The core that a model's thread is pinned to; `None` leaves it to the system.
    pub core: Option<usize>,
    /// How long a vfio-user server may take to answer a message, where its target doesn't say; `None` for the client's own limit.
    pub timeout: Option<Duration>,
}

/// A device that was opened.
pub struct Opened {
    /// The device.
    pub device: Arc<dyn PciDevice>,
    /// The thread of a model in this process: the device stops when it is dropped.
    pub thread: Option<ModelThread>,
    /// How often each fault struck, where a model was asked for faults.
    pub struck: Option<Arc<Struck>>,
    /// The link and the counters of a network model.
    pub net: Option<Arc<NetHandle>>,
}

/// Opens a device. A model runs on a thread of its own from here on.
///
/// # Errors
/// Where the model can't be made, or the kind of device can't be opened.
pub fn open(target: &Target, options: OpenOptions) -> Result<Opened> {
    match target {
        Target::Model { name, params: ModelParams::Nvme(params) } => {
            let model = Nvme::new(params.clone())?.named(name);
            let struck = model.struck();
            Ok(Opened { struck, ..run(model, options)? })
        }
        Target::Model { name, params: ModelParams::Fpga } => run(Fpga::new()?.named(name), options),
        Target::Model { name, params: ModelParams::VirtioNet(params) } => {
            let (model, port) = net::model(params.clone())?;
            let struck = model.struck();
            Ok(Opened { struck, net: Some(port.handle), ..run_in(&port.company, model.named(name), options)? })
        }
        Target::Model { name, params: ModelParams::VirtioBlk(params) } => {
            let model = blk::model(params.clone())?.named(name);
            let struck = model.struck();
            Ok(Opened { struck, ..run(model, options)? })
        }
        Target::VfioUser { path, timeout } => {
            let how = timeout.or(options.timeout).map_or_else(vfio_user::Options::default, vfio_user::Options::of);
            let device = VfioUser::connect(path, how)?;
            Ok(Opened { device, thread: None, struck: None, net: None })
        }
        Target::Pci { address, params: PciParams { route, iommu, vf_token } } => {
            let options = VfioOptions { route: *route, iommu: *iommu, vf_token: *vf_token, share: None };
            Ok(Opened { device: Vfio::open(*address, &options)?, thread: None, struck: None, net: None })
        }
    }
}

/// Puts a model behind the seam, and runs it on a thread.
fn run<M: Model + 'static>(model: M, options: OpenOptions) -> Result<Opened> {
    run_in(&Company::default(), model, options)
}

/// The same on the thread of its company, if it has some.
fn run_in<M: Model + 'static>(company: &Company, model: M, options: OpenOptions) -> Result<Opened> {
    let device = InProcess::new(model)?;
    let thread = company.run(&device, move || {
        if let Some(id) = options.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            tracing::warn!(core = id, "the model's thread could not be pinned");
        }
    })?;
    Ok(Opened { device, thread: Some(thread), struck: None, net: None })
}

impl Target {
    /// Reads a name.
    ///
    /// # Errors
    /// [`Error::Target`] for what names nothing, and those of a model's parameters.
    pub fn parse(text: &str) -> Result<Self> {
        let unknown = || Error::Target { text: text.to_owned() };
        if let Some(model) = text.strip_prefix("sim:") {
            let (model, params) = model.split_once(',').unwrap_or((model, ""));
            let params = match model {
                "nvme" => ModelParams::Nvme(NvmeParams::parse(params)?),
                "fpga" => params::split("sim:fpga", params, &[]).map(|_| ModelParams::Fpga)?,
                "virtio-net" => ModelParams::VirtioNet(NetParams::parse(params)?),
                "virtio-blk" => ModelParams::VirtioBlk(BlkParams::parse(params)?),
                _ => return Err(Error::Model { name: model.to_owned() }),
            };
            return Ok(Self::Model { name: text.to_owned(), params });
        }
        match text.strip_prefix("vfio-user:") {
            Some("") => Err(unknown()),
            Some(target) => {
                // A path may have commas of its own.
                let (path, timeout) = match target.rsplit_once(",timeout=") {
                    Some((path, text)) => (path, Some(timeout(text)?)),
                    None => (target, None),
                };
                Ok(Self::VfioUser { path: path.into(), timeout })
            }
            None => {
                let (address, params) = text.split_once(',').unwrap_or((text, ""));
                Ok(Self::Pci { address: address.parse().map_err(|_| unknown())?, params: PciParams::parse(params)? })
            }
        }
    }
}

/// Seconds: `30`, `30s`, `0.5`.
fn timeout(text: &str) -> Result<Duration> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok().filter(|s| (0.001..=1e6).contains(s));
    let bad = || Error::Value {
        key: "timeout".to_owned(),
        value: text.to_owned(),
        expected: "seconds, from 0.001 to 1000000".to_owned(),
    };
    seconds.map(Duration::from_secs_f64).ok_or_else(bad)
}

impl PciParams {
    fn parse(text: &str) -> Result<Self> {
        let mut params = Self::default();
        for given in params::split("a PCI function", text, &PCI_PARAMETERS)? {
            match (given.key, given.value) {
                ("via", "group") => params.route = Route::Group,
                ("via", "node") => params.route = Route::Node,
                ("via", "no-iommu") => params.route = Route::NoIommu,
                ("iommu", "type1") => params.iommu = Some(IommuType::Type1v2),
                ("iommu", "tce1") => params.iommu = Some(IommuType::TceV1),
                ("iommu", "tce2") => params.iommu = Some(IommuType::TceV2),
                ("token", uuid) => params.vf_token = Some(uuid.parse()?),
                _ => return Err(given.bad()),
            }
        }
        Ok(params)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model { name, .. } => f.write_str(name),
            Self::VfioUser { path, timeout: None } => write!(f, "vfio-user:{}", path.display()),
            Self::VfioUser { path, timeout: Some(timeout) } => {
                write!(f, "vfio-user:{},timeout={}", path.display(), timeout.as_secs_f64())
            }
            Self::Pci { address, params } => {
                write!(f, "{address}")?;
                match params.route {
                    Route::Auto => {}
                    Route::Group => f.write_str(",via=group")?,
                    Route::Node => f.write_str(",via=node")?,
                    Route::NoIommu => f.write_str(",via=no-iommu")?,
                }
                match params.iommu {
                    Some(IommuType::Type1v2 | IommuType::Type1) => f.write_str(",iommu=type1"),
                    Some(IommuType::TceV1) => f.write_str(",iommu=tce1"),
                    Some(IommuType::TceV2) => f.write_str(",iommu=tce2"),
                    Some(IommuType::None) | None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Target::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn names_are_understood() {
        let Target::Model { name, params: ModelParams::Nvme(params) } =
            Target::parse("sim:nvme,size=64M,block=4096").unwrap()
        else {
            panic!("not a model")
        };
        assert_eq!(
            (name.as_str(), params.size, params.blocks),
            ("sim:nvme,size=64M,block=4096", Some(64 << 20), vec![4096])
        );
        assert!(matches!(Target::parse("sim:fpga"), Ok(Target::Model { params: ModelParams::Fpga, .. })));
        for (text, path, timeout) in [
            ("vfio-user:/run/x.sock", "/run/x.sock", None),
            ("vfio-user:/run/x,y=1", "/run/x,y=1", None),
            ("vfio-user:/run/x,y=1,timeout=0.5", "/run/x,y=1", Some(Duration::from_millis(500))),
            ("vfio-user:x,timeout=30", "x", Some(Duration::from_secs(30))),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target, Target::VfioUser { path: path.into(), timeout });
            assert_eq!(target.to_string(), text);
        }
        assert!(matches!(Target::parse("vfio-user:x,timeout=30s"), Ok(Target::VfioUser { timeout: Some(_), .. })));
        for (text, address) in
            [("0000:01:00.0", "0000:01:00.0"), ("01:00.0", "0000:01:00.0"), ("000A:fF:1f.7", "000a:ff:1f.7")]
        {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), address);
            assert!(matches!(target, Target::Pci { params: PciParams { route: Route::Auto, .. }, .. }));
        }
        for text in ["0000:01:00.0,via=no-iommu", "0000:01:00.0,via=group,iommu=tce1", "0000:01:00.0,via=node"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        let token = "0000:01:00.0,token=2ab74924-c335-45f4-9b16-8569e5b08258";
        assert!(matches!(Target::parse(token), Ok(Target::Pci { params: PciParams { vf_token: Some(_), .. }, .. })));
        assert!(error("0000:01:00.0,via=luck").starts_with("via=luck: expected group"));
        assert!(error("0000:01:00.0,token=1").contains("UUID"));
        assert!(error("vfio-user:x,timeout=soon").starts_with("timeout=soon: expected seconds"));
        assert!(error("vfio-user:x,timeout=-1").starts_with("timeout=-1: expected seconds"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "",
            "nvme",
            "vfio-user:",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "1:00.0",
            "00:01:00.0.0",
            "+1:00.0",
        ] {
            assert!(error(text).contains("names no device"), "{text}");
        }
        assert_eq!(
            error("sim:toaster,size=1"),
            "there is no model \"toaster\": there are nvme, fpga, virtio-net and virtio-blk"
        );
        assert!(error("sim:fpga,size=1G").ends_with("it has none"));
        let unknown = error("sim:nvme,colour=red");
        assert!(
            unknown.contains("\"colour\"") && unknown.contains("size=") && unknown.contains("faults="),
            "{unknown}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for text in [
            "size=0",
            "size=",
            "size=1X",
            "size=-1",
            "size=1000",
            "size=99999999T",
            "block=520",
            "block=",
            "block=512+",
            "backing=tape",
            "file=",
            "ro=1",
            "ro=2",
            "file=x,backing=ram",
            "file=x,ns=2",
            "ns=0",
            "ns=10001",
            "nslist=2",
            "queues=0",
            "queues=512",
            "queues=511,dstrd=1",
            "entries=1",
            "entries=65537",
            "mdts=17",
            "dstrd=9",
            "msix=mars",
            "vectors=0",
            "vectors=2049",
            "vectors=257",
            "page=1k",
            "page=5k",
            "mps=2k",
            "mps=64k-4k",
            "mps=256M",
            "sgl=yes",
            "shadow=2",
            "serial=123456789012345678901",
            "noiob=65536",
            "temp=201",
            "to=0",
            "to=256",
            "faults=",
            "faults=drop",
            "faults=drop:2/1",
            "faults=drop:1/0",
            "faults=drop:@0",
            "faults=fire:1/2",
            "seed=x",
            "delay=60001",
            "strike=me",
            "size=1G,size=1G",
            "=",
            "size",
        ] {
            let text = format!("sim:nvme,{text}");
            assert!(Target::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_function_that_is_not_there_says_so() {
        let target = Target::parse("fffe:ff:1f.7").unwrap();
        let error = open(&target, OpenOptions::default()).err().unwrap().to_string();
        assert!(error.starts_with("fffe:ff:1f.7 cannot be opened: there is no such PCI function"), "{error}");
    }
}
