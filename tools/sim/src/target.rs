//! Models by name: `sim:nvme,size=1G`; and how one is started.

use crate::faults::FaultCounts;
use crate::fpga::Fpga;
use crate::nvme::{Nvme, NvmeParams};
use crate::params::{self, Parameter};
use crate::virtio::blk::{self, BlkParams};
use crate::virtio::net::{self, NetHandle, NetParams};
use crate::wire::PairThread;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use wholebar_core::model::{InProcess, Model};

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

/// A model's name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was given: what its device is called.
    pub name: String,
    /// Which model, and how it is to be.
    pub params: ModelParams,
}

/// A model that runs.
pub struct Opened {
    /// The device. Its thread ends when the last reference to it, which is usually a driver's, is dropped.
    pub model: Arc<InProcess>,
    /// How often each fault struck, where the model has faults.
    pub fault_counts: Option<Arc<FaultCounts>>,
    /// The link and the counters of a network model.
    pub net: Option<Arc<NetHandle>>,
}

/// Starts a model by its name, on a thread of its own.
///
/// # Errors
/// As [`Target::parse`] and [`Target::open`].
pub fn open(name: &str) -> Result<Opened> {
    Target::parse(name)?.open(None)
}

impl Target {
    /// Reads a name: `sim:MODEL` or `sim:MODEL,KEY=VALUE,...`.
    ///
    /// # Errors
    /// [`Error::Target`] for what does not begin with `sim:`, [`Error::Model`] for what no model is called; [`Error::Parameter`],
    /// [`Error::Value`] and [`Error::Conflict`] for parameters.
    pub fn parse(text: &str) -> Result<Self> {
        let model = text.strip_prefix("sim:").ok_or_else(|| Error::Target { text: text.to_owned() })?;
        let (model, params) = model.split_once(',').unwrap_or((model, ""));
        let params = match model {
            "nvme" => ModelParams::Nvme(NvmeParams::parse(params)?),
            "fpga" => params::split("sim:fpga", params, &[]).map(|_| ModelParams::Fpga)?,
            "virtio-net" => ModelParams::VirtioNet(NetParams::parse(params)?),
            "virtio-blk" => ModelParams::VirtioBlk(BlkParams::parse(params)?),
            _ => return Err(Error::Model { name: model.to_owned() }),
        };
        Ok(Self { name: text.to_owned(), params })
    }

    /// Makes the model and runs it: on a thread of its own, pinned to `core` where one is given; or, where it is wired to a model that
    /// runs already, on that one's thread.
    ///
    /// # Errors
    /// [`Error::Backing`], [`Error::Short`], [`Error::Tap`], [`Error::Capture`] and [`Error::PairTaken`] for what it needs;
    /// [`Error::Framework`] where there is no thread or memory to be had.
    pub fn open(&self, core: Option<usize>) -> Result<Opened> {
        let name = &self.name;
        let alone = PairThread::default();
        match &self.params {
            ModelParams::Nvme(params) => {
                let model = Nvme::new(params.clone())?.named(name);
                let fault_counts = model.fault_counts();
                Ok(Opened { model: run(&alone, model, core)?, fault_counts, net: None })
            }
            ModelParams::Fpga => {
                Ok(Opened { model: run(&alone, Fpga::new()?.named(name), core)?, fault_counts: None, net: None })
            }
            ModelParams::VirtioNet(params) => {
                let (model, port) = net::model(params.clone())?;
                let fault_counts = model.fault_counts();
                let (model, handle) = (run(&port.pair_thread, model.named(name), core)?, port.handle);
                let counted = handle.clone();
                model.set_counters(move || counted.stats().all().collect());
                Ok(Opened { model, fault_counts, net: Some(handle) })
            }
            ModelParams::VirtioBlk(params) => {
                let model = blk::model(params.clone())?.named(name);
                let fault_counts = model.fault_counts();
                Ok(Opened { model: run(&alone, model, core)?, fault_counts, net: None })
            }
        }
    }
}

/// Puts a model behind the seam, and runs it on the thread that runs the other end of its pair, if one does.
fn run<M: Model + 'static>(pair_thread: &PairThread, model: M, core: Option<usize>) -> Result<Arc<InProcess>> {
    let device = InProcess::new(model)?;
    pair_thread.run(device.clone(), move || {
        if let Some(id) = core
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            tracing::warn!(core = id, "the model's thread could not be pinned");
        }
    })?;
    Ok(device)
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
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
        let target = Target::parse("sim:nvme,size=64M,block=4096").unwrap();
        let ModelParams::Nvme(params) = &target.params else { panic!("not an NVMe model") };
        assert_eq!(
            (target.to_string().as_str(), params.size, &params.blocks),
            ("sim:nvme,size=64M,block=4096", Some(64 << 20), &vec![4096])
        );
        assert_eq!(Target::parse("sim:fpga").unwrap().params, ModelParams::Fpga);
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["", "nvme", "vfio-user:/run/x.sock", "0000:01:00.0"] {
            assert!(error(text).contains("names no model"), "{text}");
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
}
