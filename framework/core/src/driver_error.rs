//! The error of a driver, for programs that do not know which driver they use.

use std::error::Error;
use std::fmt;

/// The error of any driver: what the methods of [`Port`](crate::net::Port) and [`Disk`](crate::block::Disk) return.
///
/// Shown, it reads as the driver's own error, which [`downcast_ref`](Self::downcast_ref) returns.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::{DriverError, Error};
///
/// let error = DriverError::from(Error::PageSize { bytes: 100 });
/// assert!(matches!(error.downcast_ref(), Some(Error::PageSize { bytes: 100 })));
/// ```
pub struct DriverError(Box<dyn Error + Send + Sync>);

impl DriverError {
    /// Wraps a driver's own error. Drivers implement `From` for theirs, so that `?` does this.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }

    /// Returns the driver's own error, where it is an `E`.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for DriverError {}

impl From<crate::Error> for DriverError {
    fn from(error: crate::Error) -> Self {
        Self::new(error)
    }
}
