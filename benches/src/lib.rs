//! Benchmarks of the inner loops.
