//! Reports fit a terminal of 80 columns, but for a line a function of `devices`, which is not to be broken where it is searched. The comparisons of stored runs
//! are seen to by their own tests.

use crate::common::{assert_fits, run};

#[test]
fn reports_fit_80_columns() {
    let pair = "sim:virtio-net,wire=pair:columns";
    for line in [
        "doctor",
        "nvme identify sim:nvme,ns=3,serial=01234567890123456789",
        "nvme smart sim:nvme",
        "nvme id-ctrl sim:nvme",
        "nvme id-ns sim:nvme --namespace-id 1",
        "nvme list-ns sim:nvme,ns=3",
        "nvme get-log sim:nvme --log-id 0",
        "nvme get-log sim:nvme --log-id 5",
        "nvme error-log sim:nvme",
        "nvme fw-log sim:nvme",
        "nvme self-test-log sim:nvme",
        "nvme sanitize-log sim:nvme",
        "nvme get-feature sim:nvme",
        "nvme zns report sim:nvme,zoned=1",
        "nvme perf sim:nvme,size=16M --time 0.1 --warmup 0 --histogram",
        "nvme read sim:nvme,size=16M --bytes 1M --out /dev/null",
        "blk info sim:virtio-blk,queues=4",
        "blk perf sim:virtio-blk,size=16M --time 0.1 --warmup 0 --histogram",
        "blk perf sim:virtio-blk,size=16M --time 0.1 --warmup 0 --baseline sim:nvme,size=16M",
        "idle sim:virtio-net --quick",
        "bench --seconds 1",
        "barmap sim:nvme",
        "barmap sim:fpga",
        "barmap sim:fpga --page-size 64k",
        "msix sim:nvme --enable 2",
        &format!("net fwd {pair} {pair} --mode txonly --packets 100000 --stats 0.1"),
        &format!("net fwd {pair} {pair} --mode rxonly --time 0.2 --queues 1"),
        &format!("net gen {pair} --to {pair} --rate max --count 20000 --size imix --flows 64 --tolerate"),
        &format!(
            "net gen {pair} --to {pair} --rate 1k --count 100 --faults drop=0.1,duplicate=0.1,corrupt=0.1 --tolerate"
        ),
    ] {
        let (code, out, error) = run(line);
        // `bench` fails where its cores were never its own, `doctor` where nothing can be opened: they report all the same.
        assert!(
            code == Some(0) || (["bench", "doctor"].iter().any(|name| line.starts_with(name)) && code == Some(1)),
            "{line}: {code:?}\n{error}"
        );
        // Names of controllers are as long as they are, and so are commands to copy.
        let kept = out.lines().filter(|line| !line.contains("nqn.") && !line.contains("-> "));
        assert_fits(&kept.collect::<Vec<_>>().join("\n"));
    }
}
