//! The errors of the kernel's path: each a sentence with its facts.

/// An error of a disk or a port that is reached through the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The framework's error.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// A network interface's.
    #[error(transparent)]
    Net(#[from] crate::net::Error),
    /// The text names nothing.
    #[error("\"kernel:{text}\" names nothing: use kernel:/dev/NAME, kernel:./FILE or kernel:INTERFACE")]
    Target {
        /// What stands behind `kernel:`.
        text: String,
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
    /// A port is asked for, and a path is given.
    #[error("kernel:{target} is a disk: a port is a network interface, such as kernel:eth0")]
    NotAPort {
        /// What was given, behind `kernel:`.
        target: String,
    },
    /// A disk is asked for, and an interface is given.
    #[error("kernel:{target} is a network interface: a disk is a path with a slash in it, such as kernel:./{target}")]
    NotADisk {
        /// What was given, behind `kernel:`.
        target: String,
    },
    /// This version has no such disks or ports.
    #[error("kernel:{target} cannot be opened: {what} are not built into this version")]
    NotBuiltIn {
        /// What was given, behind `kernel:`.
        target: String,
        /// What is missing.
        what: &'static str,
    },
}

/// A result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns whether the target's name is wrong. Nothing was opened then, and a program exits with the code of wrong usage.
    pub fn is_name(&self) -> bool {
        matches!(
            self,
            Self::Target { .. }
                | Self::Parameter { .. }
                | Self::Value { .. }
                | Self::NotAPort { .. }
                | Self::NotADisk { .. }
        )
    }
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}
