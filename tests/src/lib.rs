//! The same test bodies over every backend.
