//! Every command that was submitted succeeded, failed or was given up, once, whatever the controller did wrong. The example `nvme_faults` does it as often as
//! one likes.

use anyhow::{Context, Result, ensure};
use wholebar_tests::in_process;
use wholebar_tests::nvme_accounting::{KINDS, impatient, total};

#[test]
fn no_command_is_lost_or_completes_twice() -> Result<()> {
    // One that hangs takes ten seconds.
    for (kind, faults) in KINDS.into_iter().filter(|(kind, _)| *kind != "hang") {
        let params = format!("size=8M,mdts=2,{faults},seed=3");
        let total = total(|| in_process(&params), &impatient(), 4000, 3).with_context(|| params.clone())?;
        ensure!(total.balances() && total.submitted == 4000, "{kind}: {total}");
        match kind {
            "corrupt" | "dma" | "detach" | "attach" => ensure!(total.failed > 0, "{kind}: {total}"),
            "dup" | "id" | "head" | "fatal" => {
                ensure!(total.resets > 0 && total.aborted > 0, "{kind}: {total}")
            }
            _ => {}
        }
    }
    Ok(())
}
