//! An NVMe driver.
