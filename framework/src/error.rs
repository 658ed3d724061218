//! What can go wrong before a program has its device: names, models, drivers.

use wholebar_core::DriverError;

/// The reason why a device was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text names no device.
    #[error("{text:?} names no device: use {known}")]
    Target {
        /// What was given.
        text: String,
        /// What can be named.
        known: String,
    },
    /// The scheme is one of a feature that was not compiled in.
    #[error(
        "{text:?} needs the feature {feature:?} of the crate wholebar, which this program was built without: add it in Cargo.toml"
    )]
    Feature {
        /// What was given.
        text: String,
        /// The feature that knows the scheme.
        feature: &'static str,
    },
    /// A target has no such parameter.
    #[error("{target} has no parameter {key:?}; it has {known}")]
    Parameter {
        /// The kind of target.
        target: &'static str,
        /// What was given.
        key: String,
        /// Those there are.
        known: &'static str,
    },
    /// A parameter's value makes no sense.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// The backend cannot open the device.
    #[error(transparent)]
    Device(#[from] wholebar_core::Error),
    /// The model cannot be made.
    #[cfg(feature = "sim")]
    #[error(transparent)]
    Model(#[from] wholebar_sim::Error),
    /// The kernel's path cannot be opened.
    #[cfg(feature = "kernel")]
    #[error(transparent)]
    Kernel(#[from] wholebar_kernel::Error),
    /// A PCI device is asked for, and what is given is a disk or a port without one: the kernel's own path, or a vhost-user back end's port.
    #[error(
        "{target} is no PCI device but a disk or a port in its own right: use it where any will do (`block::open_target`, `net::open_target`), or give a device's PCI address"
    )]
    NotPci {
        /// What was given.
        target: String,
    },
    /// No driver is for the device.
    #[error("{device} is {ids}, class {class}, and no {kind} driver is for that: there are {known}")]
    NoDriver {
        /// The device.
        device: String,
        /// Its PCI vendor and device.
        ids: String,
        /// Its PCI class.
        class: String,
        /// `network` or `storage`.
        kind: &'static str,
        /// The drivers there are, and what each is for.
        known: String,
    },
    /// The driver cannot bring the device up.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

impl OpenError {
    /// Returns whether the device's name is wrong. No device was touched then, and a program exits with the code of wrong usage.
    pub fn is_name(&self) -> bool {
        match self {
            Self::Target { .. } | Self::Feature { .. } | Self::Parameter { .. } | Self::Value { .. } => true,
            #[cfg(feature = "sim")]
            Self::Model(error) => error.is_name(),
            #[cfg(feature = "kernel")]
            Self::Kernel(error) => error.is_name(),
            Self::NotPci { .. } => true,
            _ => false,
        }
    }
}
