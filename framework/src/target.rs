//! Devices by name: `0000:01:00.0`; `vfio-user:/run/x.sock`, with the feature `vfio-user`; `vhost-user:/run/x.sock`, with the feature
//! `vhost-user`; `sim:nvme,size=1G`, with the feature `sim`; `kernel:/dev/nvme0n1` and `kernel:eth0`, with the feature `kernel`, and
//! `vhost-user:/run/x.sock,back-end`, with the features `vhost-user` and `sim`, which are disks and ports, but no PCI devices.

#[cfg(feature = "vhost-user")]
mod vhost;

use crate::OpenError;
use std::fmt;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::pci::{Address, PciDevice};
use wholebar_core::vfio::{IommuType, Route, Vfio, VfioOptions};
#[cfg(feature = "vfio-user")]
use wholebar_core::vfio_user::{self, VfioUser};
#[cfg(feature = "vhost-user")]
use wholebar_core::vhost_user::{self, VhostUser};

/// Opens a device by its name, with [`OpenOptions::default`].
///
/// | name | device |
/// |---|---|
/// | `0000:01:00.0` | a PCI function that vfio-pci has (`wholebar bind` gives it there); `,token=UUID` for a virtual function |
/// | `vfio-user:/run/x.sock` | one that another process serves over vfio-user |
/// | `vhost-user:/run/x.sock` | a virtio device that another process serves over vhost-user |
/// | `sim:nvme,size=1G` | a model in this process; also `sim:virtio-net`, `sim:virtio-blk`, `sim:fpga` |
///
/// The last three need the features `vfio-user`, `vhost-user` and `sim`. [`Target`] has all that may follow a name.
///
/// The result keeps all that the device needs: a driver holds it, and a model in this process runs as long. It is the bare PCI function, for a driver of
/// your own. [`block::open_target`](crate::block::open_target) and [`net::open_target`](crate::net::open_target) take the same names, and return a disk or a
/// port. Opening a function takes it for this process: milliseconds, and a reset where the kernel does one.
///
/// ```
/// # #[cfg(feature = "sim")] {
/// use wholebar::pci::Config;
///
/// let device = wholebar::open("sim:nvme,size=1G")?;
/// let config = Config::of(device.as_ref())?;
/// println!("{}: {:04x}:{:04x}", device.name(), config.vendor(), config.device());
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// - [`OpenError::Target`]: the text names no device. [`OpenError::Parameter`], [`OpenError::Value`]: what follows the name is wrong.
/// - [`OpenError::Feature`]: its scheme is of a feature that is not compiled in, which the error names.
/// - [`OpenError::Device`]: the kernel or the server refuses it; the error says what is in the way, and what to do.
/// - `OpenError::Model`, of the feature `sim`: the model cannot be made.
/// - [`OpenError::NotPci`]: it is a disk or a port without a PCI device (`kernel:eth0`), which `open_target` opens.
pub fn open(target: &str) -> Result<Arc<dyn PciDevice>, OpenError> {
    Ok(Target::parse(target)?.open(&OpenOptions::default())?.device)
}

/// The name of a device, parsed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Target {
    /// A PCI function, through the kernel's VFIO: `0000:01:00.0`, perhaps followed by `,via=group`, `,iommu=type1`, `,token=UUID`.
    Pci {
        /// The address of the function.
        address: Address,
        /// The route, the IOMMU, the VF token.
        options: VfioOptions,
    },
    /// A vfio-user server: `vfio-user:/run/x.sock`, perhaps followed by `,timeout=SECONDS`.
    #[cfg(feature = "vfio-user")]
    VfioUser {
        /// The path of its socket.
        path: PathBuf,
        /// How long the server may take to answer a message; `None` where the name does not say.
        timeout: Option<Duration>,
    },
    /// A virtio device of a vhost-user back end: `vhost-user:/run/x.sock`, perhaps followed by `,server`, `,net` or `,blk`, `,mac=`, `,mtu=`,
    /// `,timeout=SECONDS` and `,reconnect=SECONDS`.
    #[cfg(feature = "vhost-user")]
    VhostUser {
        /// The path of the socket.
        path: PathBuf,
        /// How the back end is reached, and what its device is to be.
        options: vhost_user::Options,
    },
    /// A port at the other end of a front end's rings: `vhost-user:/run/x.sock,back-end`, perhaps followed by `,server` and `,mac=`. It is no PCI device, so
    /// that it is opened by [`Drivers::open_target`](crate::drivers::Drivers::open_target) alone.
    #[cfg(all(feature = "vhost-user", feature = "sim"))]
    VhostUserBackEnd(wholebar_sim::virtio::net::back_end::BackEnd),
    /// A disk or a port that is reached through the kernel: `kernel:/dev/nvme0n1`, `kernel:eth0`. It is no PCI device, so that it is opened by
    /// [`Drivers::open_target`](crate::drivers::Drivers::open_target) alone.
    #[cfg(feature = "kernel")]
    Kernel(wholebar_kernel::Target),
    /// A model in this process: `sim:nvme,size=1G`.
    #[cfg(feature = "sim")]
    Sim(Box<wholebar_sim::Target>),
}

/// The options with which a device is opened, where its name does not have them.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// The core that a model's thread is pinned to; `None` for the kernel's choice.
    pub model_core: Option<usize>,
    /// How long a vfio-user server or a vhost-user back end may take to answer a message; `None` for the default, 5 seconds.
    pub timeout: Option<Duration>,
}

/// An open device, with the model behind it, where that is in this process.
pub struct Opened {
    /// The device. It does not need the other fields to be kept.
    pub device: Arc<dyn PciDevice>,
    /// The model behind the device: its faults, its counters, its thread.
    #[cfg(feature = "sim")]
    pub sim: Option<wholebar_sim::Opened>,
}

#[cfg(feature = "vfio-user")]
const SERVER: &str = "timeout=SECONDS (and a comma of its path's own only where a file has that name)";
const PCI: &str = "via=group|node|no-iommu, iommu=type1|tce1|tce2 and token=UUID";

impl Target {
    /// Parses a name. It touches no device.
    ///
    /// # Errors
    /// [`OpenError::Target`] for text that names no device; [`OpenError::Feature`] for a scheme whose feature is not compiled in;
    /// [`OpenError::Parameter`], [`OpenError::Value`] or `OpenError::Model` (of the feature `sim`) for what follows the name.
    pub fn parse(text: &str) -> Result<Self, OpenError> {
        let unknown = || {
            #[cfg(feature = "sim")]
            let models = wholebar_sim::MODELS.map(|(name, _)| format!("sim:{name}, ")).concat();
            #[cfg(not(feature = "sim"))]
            let models = "";
            let servers = if cfg!(feature = "vfio-user") { "vfio-user:PATH, " } else { "" };
            let kernel = if cfg!(feature = "kernel") { "kernel:PATH, kernel:INTERFACE, " } else { "" };
            let back_ends = if cfg!(feature = "vhost-user") { "vhost-user:PATH or " } else { "" };
            let is_path = cfg!(feature = "kernel") && text.contains('/') && !text.contains(':');
            let path = if is_path { format!("kernel:{text} for what is there, or ") } else { String::new() };
            let known = format!("{path}{models}{servers}{kernel}{back_ends}a PCI address such as 0000:01:00.0");
            OpenError::Target { text: text.to_owned(), known }
        };
        match text.split_once(':') {
            #[cfg(feature = "sim")]
            Some(("sim", _)) => Ok(Self::Sim(wholebar_sim::Target::parse(text)?.into())),
            #[cfg(not(feature = "sim"))]
            Some(("sim", _)) => Err(OpenError::Feature { text: text.to_owned(), feature: "sim" }),
            #[cfg(not(feature = "vfio-user"))]
            Some(("vfio-user", _)) => Err(OpenError::Feature { text: text.to_owned(), feature: "vfio-user" }),
            #[cfg(feature = "vfio-user")]
            Some(("vfio-user", target)) => {
                let (mut path, mut timeout) = (target, None);
                while let Some((before, key, value)) = last_parameter(path) {
                    match key {
                        "timeout" => timeout = Some(seconds("timeout", value.unwrap_or(""), false)?),
                        _ if is_socket_name(path) => break,
                        _ => return Err(no_parameter("a vfio-user server", key, SERVER)),
                    }
                    path = before;
                }
                match path {
                    "" => Err(unknown()),
                    path => Ok(Self::VfioUser { path: path.into(), timeout }),
                }
            }
            #[cfg(not(feature = "vhost-user"))]
            Some(("vhost-user", _)) => Err(OpenError::Feature { text: text.to_owned(), feature: "vhost-user" }),
            #[cfg(feature = "vhost-user")]
            Some(("vhost-user", target)) => match vhost::parse(target)? {
                vhost::Name { path: "", .. } => Err(unknown()),
                vhost::Name { path, options, back_end: false } => Ok(Self::VhostUser { path: path.into(), options }),
                #[cfg(feature = "sim")]
                vhost::Name { path, options, back_end: true } => {
                    Ok(Self::VhostUserBackEnd(vhost::back_end(path, &options)?))
                }
                #[cfg(not(feature = "sim"))]
                vhost::Name { back_end: true, .. } => Err(OpenError::Feature { text: text.to_owned(), feature: "sim" }),
            },
            #[cfg(not(feature = "kernel"))]
            Some(("kernel", _)) => Err(OpenError::Feature { text: text.to_owned(), feature: "kernel" }),
            #[cfg(feature = "kernel")]
            Some(("kernel", target)) => Ok(Self::Kernel(wholebar_kernel::Target::parse(target)?)),
            _ => {
                let (address, parameters) = text.split_once(',').unwrap_or((text, ""));
                let address = address.parse().map_err(|_| unknown())?;
                Ok(Self::Pci { address, options: pci_options(parameters)? })
            }
        }
    }

    /// Returns whether the target is a PCI device, which [`open`](Self::open) opens; else it is a disk or a port in its own right.
    pub fn is_pci(&self) -> bool {
        match self {
            #[cfg(feature = "kernel")]
            Self::Kernel(_) => false,
            #[cfg(all(feature = "vhost-user", feature = "sim"))]
            Self::VhostUserBackEnd(_) => false,
            _ => true,
        }
    }

    /// Opens the device. A model runs on a thread of its own from then on, until the device is dropped.
    ///
    /// # Errors
    /// [`OpenError::Device`], with the error of the kernel or the server; `OpenError::Model`, of the feature `sim`, where the model cannot be made;
    /// [`OpenError::NotPci`] where the target is a disk or a port without such a device.
    #[cfg_attr(
        not(any(feature = "sim", feature = "vfio-user", feature = "vhost-user")),
        allow(unused_variables, reason = "the kernel's devices have none of these options")
    )]
    pub fn open(&self, options: &OpenOptions) -> Result<Opened, OpenError> {
        let device: Arc<dyn PciDevice> = match self {
            Self::Pci { address, options } => Vfio::open(*address, options)?,
            #[cfg(feature = "vfio-user")]
            Self::VfioUser { path, timeout } => {
                let limits =
                    timeout.or(options.timeout).map_or_else(vfio_user::Options::default, vfio_user::Options::of);
                VfioUser::connect(path, limits)?
            }
            #[cfg(feature = "vhost-user")]
            Self::VhostUser { path, options: own } => {
                let usual = own.timeout == vhost_user::Options::default().timeout;
                let timeout = options.timeout.filter(|_| usual);
                VhostUser::connect(path, timeout.map_or(*own, |timeout| own.with_timeout(timeout)))?
            }
            #[cfg(feature = "kernel")]
            Self::Kernel(_) => return Err(OpenError::NotPci { target: self.to_string() }),
            #[cfg(all(feature = "vhost-user", feature = "sim"))]
            Self::VhostUserBackEnd(_) => return Err(OpenError::NotPci { target: self.to_string() }),
            #[cfg(feature = "sim")]
            Self::Sim(target) => {
                let sim = target.open(options.model_core)?;
                return Ok(Opened { device: sim.model.clone(), sim: Some(sim) });
            }
        };
        Ok(Opened {
            device,
            #[cfg(feature = "sim")]
            sim: None,
        })
    }
}

/// Seconds: `30`, `30s`, `0.5`; `0` where none at all is a time, too.
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
fn seconds(key: &'static str, text: &str, none: bool) -> Result<Duration, OpenError> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    let seconds = seconds.filter(|s| (0.001..=1e6).contains(s) || none && *s == 0.0);
    let expected = if none { "seconds, from 0.001 to 1000000, or 0" } else { "seconds, from 0.001 to 1000000" };
    let bad = || OpenError::Value { key, value: text.to_owned(), expected };
    seconds.map(Duration::from_secs_f64).ok_or_else(bad)
}

/// A path, and the parameter behind its last comma: its name, and its value where there is one.
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
fn last_parameter(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (path, parameter) = text.rsplit_once(',')?;
    Some(parameter.split_once('=').map_or((path, parameter, None), |(key, value)| (path, key, Some(value))))
}

/// Whether text with a comma in it, and no parameter that is known behind that, is a path as it stands: a path may have commas of its own. A parameter has no
/// slash, and where no file has that name it is more likely that one was misspelt.
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
fn is_socket_name(path: &str) -> bool {
    path.rsplit_once(',').is_none_or(|(_, last)| last.contains('/')) || std::path::Path::new(path).exists()
}

#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
fn no_parameter(target: &'static str, key: &str, known: &'static str) -> OpenError {
    OpenError::Parameter { target, key: key.to_owned(), known }
}

fn pci_options(text: &str) -> Result<VfioOptions, OpenError> {
    let mut options = VfioOptions::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let bad = |key, expected| OpenError::Value { key, value: value.to_owned(), expected };
        match key {
            "via" => {
                options.route = match value {
                    "group" => Route::Group,
                    "node" => Route::Node,
                    "no-iommu" => Route::NoIommu,
                    _ => {
                        let expected = "group, node, or no-iommu (the device can then overwrite any memory)";
                        return Err(bad("via", expected));
                    }
                }
            }
            "iommu" => {
                options.iommu = Some(match value {
                    "type1" => IommuType::Type1v2,
                    "tce1" => IommuType::TceV1,
                    "tce2" => IommuType::TceV2,
                    _ => return Err(bad("iommu", "type1, tce1 or tce2, where the kernel offers several")),
                });
            }
            "token" => options.vf_token = Some(value.parse()?),
            _ => return Err(OpenError::Parameter { target: "a PCI function", key: key.to_owned(), known: PCI }),
        }
    }
    Ok(options)
}

impl FromStr for Target {
    type Err = OpenError;

    fn from_str(text: &str) -> Result<Self, OpenError> {
        Self::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "vfio-user")]
            Self::VfioUser { path, timeout: None } => write!(f, "vfio-user:{}", path.display()),
            #[cfg(feature = "vfio-user")]
            Self::VfioUser { path, timeout: Some(timeout) } => {
                write!(f, "vfio-user:{},timeout={}", path.display(), timeout.as_secs_f64())
            }
            #[cfg(feature = "vhost-user")]
            Self::VhostUser { path, options } => vhost::show(path, options, f),
            #[cfg(all(feature = "vhost-user", feature = "sim"))]
            Self::VhostUserBackEnd(target) => target.fmt(f),
            // The token is a secret.
            Self::Pci { address, options } => {
                write!(f, "{address}")?;
                match options.route {
                    Route::Auto => {}
                    Route::Group => f.write_str(",via=group")?,
                    Route::Node => f.write_str(",via=node")?,
                    Route::NoIommu => f.write_str(",via=no-iommu")?,
                }
                match options.iommu {
                    Some(IommuType::Type1v2 | IommuType::Type1) => f.write_str(",iommu=type1"),
                    Some(IommuType::TceV1) => f.write_str(",iommu=tce1"),
                    Some(IommuType::TceV2) => f.write_str(",iommu=tce2"),
                    Some(IommuType::None) | None => Ok(()),
                }
            }
            #[cfg(feature = "kernel")]
            Self::Kernel(target) => write!(f, "kernel:{target}"),
            #[cfg(feature = "sim")]
            Self::Sim(target) => target.fmt(f),
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
    fn names_are_understood_and_shown_as_they_were() {
        #[cfg(feature = "vfio-user")]
        for (text, path, timeout) in [
            ("vfio-user:/run/x.sock", "/run/x.sock", None),
            ("vfio-user:/run/x,y=1/s", "/run/x,y=1/s", None),
            ("vfio-user:/run/x,y=1/s,timeout=0.5", "/run/x,y=1/s", Some(Duration::from_millis(500))),
            ("vfio-user:x,timeout=30", "x", Some(Duration::from_secs(30))),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), text);
            let Target::VfioUser { path: p, timeout: t } = target else { panic!("{text}") };
            assert_eq!((p, t), (path.into(), timeout));
        }
        #[cfg(feature = "vfio-user")]
        {
            assert!(matches!(Target::parse("vfio-user:x,timeout=30s"), Ok(Target::VfioUser { timeout: Some(_), .. })));
            assert!(error("vfio-user:x,timeout=soon").starts_with("timeout=soon: expected seconds"));
            assert!(error("vfio-user:x,timeout=-1").starts_with("timeout=-1: expected seconds"));
            assert!(error("vfio-user:x,timeout").starts_with("timeout=: expected seconds"));
            for text in ["vfio-user:x,timout=1", "vfio-user:/run/x.sock,timout=1,timeout=1"] {
                assert!(error(text).starts_with("a vfio-user server has no parameter \"timout\"; it has timeout="));
            }
            // A file that is there may have any name.
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x,timout=1");
            std::fs::write(&path, "").unwrap();
            let text = format!("vfio-user:{},timeout=1", path.display());
            assert_eq!(Target::parse(&text).unwrap().to_string(), text);
        }
        for (text, address) in
            [("0000:01:00.0", "0000:01:00.0"), ("01:00.0", "0000:01:00.0"), ("000A:fF:1f.7", "000a:ff:1f.7")]
        {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), address);
            assert!(matches!(target, Target::Pci { options: VfioOptions { route: Route::Auto, .. }, .. }));
        }
        for text in ["0000:01:00.0,via=no-iommu", "0000:01:00.0,via=group,iommu=tce1", "0000:01:00.0,via=node"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        let token = Target::parse("0000:01:00.0,token=2ab74924-c335-45f4-9b16-8569e5b08258").unwrap();
        assert_eq!(token.to_string(), "0000:01:00.0", "a secret is not shown");
        assert!(matches!(token, Target::Pci { options: VfioOptions { vf_token: Some(_), .. }, .. }));
        assert!(error("0000:01:00.0,via=luck").starts_with("via=luck: expected group"));
        assert!(error("0000:01:00.0,speed=1").starts_with("a PCI function has no parameter \"speed\""));
        assert!(error("0000:01:00.0,token=1").contains("UUID"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "",
            "nvme",
            "vfio-user:",
            "vfio-user:,timeout=1",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "1:00.0",
            "00:01:00.0.0",
            "+1:00.0",
        ] {
            assert!(error(text).contains("names no device"), "{text}");
        }
    }

    #[test]
    fn what_needs_a_feature_says_which() {
        if cfg!(not(feature = "vfio-user")) {
            assert!(error("vfio-user:x").contains("the feature \"vfio-user\""));
        }
        if cfg!(not(feature = "vhost-user")) {
            assert!(error("vhost-user:x").contains("the feature \"vhost-user\""));
        }
        if cfg!(feature = "kernel") {
            for text in ["kernel:/dev/nvme0n1,sqpoll", "kernel:./a,b", "kernel:eth0"] {
                assert_eq!(Target::parse(text).unwrap().to_string(), text);
                let error = open(text).err().unwrap();
                assert!(error.is_name() && error.to_string().contains("is no PCI device"), "{error}");
            }
            assert!(error("kernel:").contains("names nothing"));
        } else {
            assert!(error("kernel:eth0").contains("the feature \"kernel\""));
        }
        if cfg!(feature = "sim") {
            assert_eq!(Target::parse("sim:nvme,size=64M").unwrap().to_string(), "sim:nvme,size=64M");
            assert!(error("sim:toaster").contains("there is no model"));
        } else {
            assert!(error("sim:nvme").contains("the feature \"sim\""));
        }
    }

    #[test]
    fn a_function_that_is_not_there_says_so() {
        let error = open("fffe:ff:1f.7").err().unwrap().to_string();
        assert!(error.starts_with("fffe:ff:1f.7 cannot be opened: there is no such PCI function"), "{error}");
    }
}
