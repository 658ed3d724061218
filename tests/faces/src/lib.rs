//! The faces of disks under what nobody here wrote: file systems over the blocking one, executors over the asynchronous one. It is all in tests and an
//! example; a crate of its own, so that what they depend on is not built for guests.
