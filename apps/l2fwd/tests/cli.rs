//! `l2fwd` between two captures: every packet of one arrives in the other, the first ones too, which come while the port is opened.

use pcap_file::pcap::{PcapPacket, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It would have hung by then.
const PATIENCE: Duration = Duration::from_secs(300);
const PACKETS: usize = 7000;

/// Packets that are in a file so far, whole ones.
fn arrived(path: &Path) -> Vec<Vec<u8>> {
    let Ok(mut reader) = PcapNgReader::new(File::open(path).unwrap()) else { return Vec::new() };
    let mut packets = Vec::new();
    while let Some(Ok(block)) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block {
            packets.push(packet.data.into_owned());
        }
    }
    packets
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_packet_is_lost_while_ports_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in.pcap"), dir.path().join("out.pcapng"));
    let mut writer = PcapWriter::new(File::create(&from).unwrap()).unwrap();
    let packet = |n: usize| {
        // To a station that is none of the ports'.
        let mut packet = vec![2, 0, 0, 0, 0, 0x77, 2, 0, 0, 0, 0, 0x78, 0x88, 0xb5];
        packet.extend((n as u32).to_be_bytes());
        packet.resize(60, 0);
        packet
    };
    for n in 0..PACKETS {
        writer.write_packet(&PcapPacket::new(Duration::ZERO, 60, &packet(n))).unwrap();
    }
    drop(writer);
    let mut child = Running(
        Command::new(env!("CARGO_BIN_EXE_l2fwd"))
            .arg(format!("sim:virtio-net,wire=pcap,replay={},full=wait", from.display()))
            .arg(format!("sim:virtio-net,wire=pcap:{},full=wait", to.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let began = Instant::now();
    while !to.exists() || arrived(&to).len() < PACKETS {
        assert!(began.elapsed() < PATIENCE, "{} packets of {PACKETS} arrived", arrived(&to).len());
        assert!(child.0.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(100));
    }
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.0.wait().unwrap().success());
    let packets = arrived(&to);
    assert_eq!(packets.len(), PACKETS);
    assert!(packets.iter().enumerate().all(|(n, got)| got[12..] == packet(n)[12..]), "in their order");
}
