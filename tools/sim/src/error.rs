//! What can go wrong before a model runs: names, parameters, backing files.

use std::io;
use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is called so.
    #[error("{text:?} names no model: use sim:nvme, sim:fpga, sim:virtio-net or sim:virtio-blk")]
    Target {
        /// What was given.
        text: String,
    },
    /// There is no such model.
    #[error("there is no model {name:?}: there are nvme, fpga, virtio-net and virtio-blk")]
    Model {
        /// What was given.
        name: String,
    },
    /// A device has no such parameter.
    #[error("{model} has no parameter {key:?}; it has {allowed}")]
    Parameter {
        /// The device.
        model: &'static str,
        /// What was given.
        key: String,
        /// Those there are.
        allowed: String,
    },
    /// A parameter's value makes no sense.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The parameter.
        key: String,
        /// What was given.
        value: String,
        /// What it can be.
        expected: String,
    },
    /// Parameters that don't go together.
    #[error("{0}")]
    Conflict(String),
    /// The backing file cannot be used.
    #[error("backing file {}: {cause}{hint}", path.display())]
    Backing {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The backing file is too short.
    #[error("backing file {} has {actual} bytes, {asked} are asked for: make it longer (truncate -s {asked} FILE) or ask for less", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length, in bytes.
        actual: u64,
        /// What was asked for, in bytes.
        asked: u64,
    },
    /// The TAP interface cannot be used.
    #[error("TAP interface {name}: {cause}{hint}")]
    Tap {
        /// The interface.
        name: String,
        /// What the system said.
        cause: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A capture file cannot be used.
    #[error("capture file {}: {why}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What was tried, and what came back.
        why: String,
    },
    /// A pair has two ends.
    #[error("wire=pair:{name} has two ends already: use another name, or close one of them")]
    PairTaken {
        /// The pair.
        name: String,
    },
    /// A back end's port cannot be, or do, what is asked of it.
    #[error("{port}: {why}")]
    Port {
        /// The target by which it was opened.
        port: String,
        /// What was tried, and why it can't be.
        why: String,
    },
    /// What the framework says.
    #[error(transparent)]
    Framework(#[from] wholebar_core::Error),
}

impl Error {
    /// Whether it is the model's name or parameters that are wrong: then nothing was touched.
    pub fn is_name(&self) -> bool {
        matches!(
            self,
            Self::Target { .. } | Self::Model { .. } | Self::Parameter { .. } | Self::Value { .. } | Self::Conflict(_)
        )
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
