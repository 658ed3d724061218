//! The NVMe model's I/O commands, through raw rings.

mod common;

use common::{Cmd, DNR, MORE, PAGE, Rig};

const WRITE: u8 = 1;
const READ: u8 = 2;

#[test]
fn what_is_written_is_read() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 16);
    let buf = rig.memory(PAGE);
    let data: Vec<u8> = (0..512u32).map(|i| (i * 7) as u8).collect();
    buf.write(0, &data).unwrap();
    let at = rig.at(&buf);
    assert_eq!(rig.io(&mut q, Cmd::rw(WRITE, 5, 1).prp(at, 0)).status, 0);
    buf.zero();
    assert_eq!(rig.io(&mut q, Cmd::rw(READ, 5, 1).prp(at + 1024, 0)).status, 0);
    let mut back = vec![0; 512];
    buf.read(1024, &mut back).unwrap();
    assert_eq!(back, data);
    let beyond = rig.io(&mut q, Cmd::rw(READ, 2048, 1).prp(at, 0));
    assert_eq!(beyond.status, 0x80 | DNR | MORE);
}
