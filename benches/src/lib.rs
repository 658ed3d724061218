//! Criterion benchmarks of the inner loops (`cargo bench -p wholebar-benches`), and instruction counts (`benches/instructions`).
//!
//! The device behind them is a model in this process: figures say what the framework costs, never what a device does.
