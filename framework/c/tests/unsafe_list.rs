//! `UNSAFE.md` of this crate, checked as the core's is.

#[path = "../../core/tests/unsafe_list.rs"]
mod list;
