//! A driver's error, where a program does not know which driver it has.

use std::error::Error;
use std::fmt;

/// What a driver says went wrong, whichever driver it is: what [`Port`](crate::net::Port) and [`Disk`](crate::block::Disk) return.
///
/// It is shown as the driver's own error, which [`downcast_ref`](Self::downcast_ref) gives to those who know the driver.
pub struct DriverError(Box<dyn Error + Send + Sync>);

impl DriverError {
    /// Holds a driver's own error. Drivers have a `From` for theirs, so that `?` does it.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }

    /// The driver's own error, where it is of this type.
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
