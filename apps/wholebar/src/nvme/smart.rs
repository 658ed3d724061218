//! `wholebar nvme smart`: a controller's health.

use super::Controller;
use crate::{output, target};
use anyhow::Result;
use serde::Serialize;
use wholebar::nvme::{Options, Smart};

/// Show a controller's SMART / health information
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme smart sim:nvme
  wholebar nvme smart vfio-user:/run/nvme.sock --json")]
pub struct Args {
    /// The NVMe controller
    target: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes; names are those of nvme-cli.
#[derive(Serialize)]
struct Health<'a> {
    schema: &'static str,
    target: &'a str,
    critical_warning: u8,
    warnings: Vec<&'static str>,
    /// Kelvins, as the controller says it: 0 where it doesn't know.
    temperature: u16,
    avail_spare: u8,
    spare_thresh: u8,
    percent_used: u8,
    data_units_read: u128,
    data_units_written: u128,
    host_read_commands: u128,
    host_write_commands: u128,
    controller_busy_time: u128,
    power_cycles: u128,
    power_on_hours: u128,
    unsafe_shutdowns: u128,
    media_errors: u128,
    num_err_log_entries: u128,
    warning_temp_time: u32,
    critical_comp_time: u32,
    temperature_sensors: Vec<u16>,
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let controller = Controller::open(&target, Options { io_queues: 1, ..Options::default() })?;
    let health = Health::of(&args.target, &controller.nvme.smart()?);
    if args.json { output::print_json(&health) } else { output::print(health.text()) }
}

impl<'a> Health<'a> {
    fn of(target: &'a str, smart: &Smart) -> Self {
        // NVM Express Base 2.0, 5.16.1.3, byte 0.
        const WARNINGS: [&str; 6] = [
            "spare capacity is below its threshold",
            "the temperature is out of its range",
            "reliability is degraded",
            "the media are read-only",
            "the volatile memory backup has failed",
            "the persistent memory region is read-only or unreliable",
        ];
        let bits = WARNINGS.iter().enumerate();
        Self {
            schema: "wholebar.smart/1",
            target,
            critical_warning: smart.critical_warning,
            warnings: bits.filter(|(bit, _)| smart.critical_warning >> bit & 1 != 0).map(|(_, text)| *text).collect(),
            temperature: smart.temperature,
            avail_spare: smart.available_spare,
            spare_thresh: smart.spare_threshold,
            percent_used: smart.percentage_used,
            data_units_read: smart.data_units_read,
            data_units_written: smart.data_units_written,
            host_read_commands: smart.reads,
            host_write_commands: smart.writes,
            controller_busy_time: smart.busy_minutes,
            power_cycles: smart.power_cycles,
            power_on_hours: smart.power_on_hours,
            unsafe_shutdowns: smart.unsafe_shutdowns,
            media_errors: smart.media_errors,
            num_err_log_entries: smart.error_log_entries,
            warning_temp_time: smart.warning_minutes,
            critical_comp_time: smart.critical_minutes,
            temperature_sensors: smart.sensors.clone(),
        }
    }

    fn text(&self) -> String {
        // A unit is 1,000 times 512 bytes.
        let units = |n: u128| {
            let bytes = u64::try_from(n.saturating_mul(512_000)).unwrap_or(u64::MAX);
            format!("{n} units, {}", output::bytes(bytes))
        };
        let sensors: Vec<_> = self.temperature_sensors.iter().map(|t| celsius(*t)).collect();
        let warnings = if self.warnings.is_empty() { "none".to_owned() } else { self.warnings.join("; ") };
        let mut text = format!("{}\n", self.target);
        text += &output::pairs([
            ("warnings", warnings),
            ("temperature", celsius(self.temperature)),
            ("spare capacity", format!("{} %, threshold {} %", self.avail_spare, self.spare_thresh)),
            ("life used", format!("{} %", self.percent_used)),
            ("data read", units(self.data_units_read)),
            ("data written", units(self.data_units_written)),
            ("read commands", self.host_read_commands.to_string()),
            ("write commands", self.host_write_commands.to_string()),
            ("busy", format!("{} minutes", self.controller_busy_time)),
            ("power cycles", self.power_cycles.to_string()),
            ("power on", format!("{} hours", self.power_on_hours)),
            ("unsafe shutdowns", self.unsafe_shutdowns.to_string()),
            ("media errors", self.media_errors.to_string()),
            ("error log entries", self.num_err_log_entries.to_string()),
            ("too warm", format!("{} minutes", self.warning_temp_time)),
            ("far too warm", format!("{} minutes", self.critical_comp_time)),
        ]);
        if !sensors.is_empty() {
            text += &output::pairs([("sensors", sensors.join(", "))]);
        }
        text
    }
}

/// A temperature for people. 0 K is nowhere: so a controller says that it doesn't know.
fn celsius(kelvins: u16) -> String {
    match kelvins {
        0 => "not reported".to_owned(),
        _ => format!("{} C", i32::from(kelvins) - 273),
    }
}

#[cfg(test)]
mod tests {
    use super::celsius;

    #[test]
    fn absolute_zero_is_no_temperature() {
        assert_eq!([0, 1, 273, 313].map(celsius), ["not reported", "-272 C", "0 C", "40 C"]);
    }
}
