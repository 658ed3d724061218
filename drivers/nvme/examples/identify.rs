//! `identify [MODEL]`: everything a controller, here a model, says of itself, its namespaces, features and logs.
//!
//! ```sh
//! cargo run -p wholebar-nvme --example identify -- sim:nvme,block=512+4096,ns=2
//! ```

use std::error::Error;
use std::io::Write;
use wholebar_nvme::{Nvme, Options, feature};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let target = std::env::args().nth(1).unwrap_or_else(|| "sim:nvme".to_owned());
    let opened = wholebar_sim::open(&target)?;
    let nvme = Nvme::open(opened.model, Options::default())?;
    writeln!(out, "{:#?}", nvme.identify())?;
    writeln!(out, "{:#?}", nvme.namespaces())?;
    writeln!(
        out,
        "pages of {} bytes, transfers of at most {} bytes, {} I/O queues of at most {} entries",
        nvme.page(),
        nvme.max_transfer(),
        nvme.io_queues(),
        nvme.max_entries()
    )?;
    for (name, id) in [
        ("Arbitration", feature::ARBITRATION),
        ("Temperature Threshold", feature::TEMPERATURE_THRESHOLD),
        ("Volatile Write Cache", feature::VOLATILE_WRITE_CACHE),
        ("Number of Queues", feature::NUMBER_OF_QUEUES),
        ("Asynchronous Event Configuration", feature::ASYNC_EVENT_CONFIGURATION),
    ] {
        match nvme.feature(id) {
            Ok(value) => writeln!(out, "{name}: {value:#x}")?,
            Err(error) => writeln!(out, "{name}: {error}")?,
        }
    }
    writeln!(out, "{:#?}", nvme.smart()?)?;
    writeln!(out, "{:#?}", nvme.firmware_log()?)?;
    writeln!(out, "{:#?}", nvme.error_log()?)?;
    Ok(())
}
