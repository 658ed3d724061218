//! A TCP packet that a device is to cut, and the segments that it is to come as.

use anyhow::{Context, Result, bail, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use wholebar::mem::{Buf, Checked, L4, Offload, Pool};
use wholebar::net::Mac;

/// The sequence number of the first byte: it comes round on the way.
const FIRST: u32 = u32::MAX - 2000;

/// A packet larger than the wire takes.
pub struct Large<'a> {
    pub from: Mac,
    pub to: Mac,
    /// Over IPv6, rather than IPv4.
    pub ipv6: bool,
    /// Bytes of payload of each segment at most.
    pub segment: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Large<'_> {
    /// The packet, in buffers of a pool.
    pub fn packet(&self, pool: &Pool) -> Result<Buf> {
        let builder = PacketBuilder::ethernet2(self.from.0, self.to.0);
        let builder = match self.ipv6 {
            false => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            true => builder.ipv6([0xfd; 16], [0xfc; 16], 64),
        };
        let mut bytes = Vec::new();
        builder.tcp(1111, 2222, FIRST, 1000).ack(5).psh().write(&mut bytes, self.payload)?;
        let mut packet: Option<Buf> = None;
        for chunk in bytes.chunks(2000) {
            let mut buf = pool.get().context("a buffer")?;
            buf.copy_from(chunk);
            match &mut packet {
                Some(packet) => packet.append(buf),
                None => packet = Some(buf),
            }
        }
        let mut packet = packet.context("it has bytes")?;
        let (l3_len, segment) = (if self.ipv6 { 40 } else { 20 }, self.segment);
        let lengths = Offload { l2_len: 14, l3_len, l4_len: 20, ipv6: self.ipv6, ..Offload::default() };
        packet.set_offload(Some(Offload { l4: Some(L4::Tcp), segment, ..lengths }));
        Ok(packet)
    }

    /// Takes its segments from `receive`: all of them come, in order, with checksums that the device finds right.
    pub fn came(&self, mut receive: impl FnMut() -> Result<Buf>) -> Result<()> {
        let mut came = Vec::new();
        while came.len() < self.payload.len() {
            let part = receive().with_context(|| format!("{self}: {} bytes came", came.len()))?;
            let l3 = if self.ipv6 { Checked::Unknown } else { Checked::Good };
            ensure!(part.checked() == (l3, Checked::Good), "{self}: {:?}", part.checked());
            let parsed = SlicedPacket::from_ethernet(part.bytes())?;
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { bail!("{self}: no TCP") };
            let expected = usize::from(self.segment).min(self.payload.len() - came.len());
            let data = tcp.payload().get(..expected).with_context(|| format!("{self}: {part:?}"))?;
            ensure!(tcp.sequence_number() == FIRST.wrapping_add(came.len() as u32), "{self}: out of order");
            let last = came.len() + expected == self.payload.len();
            // QEMU takes PSH from the last one, too.
            ensure!((last || !tcp.psh()) && tcp.ack(), "{self}: PSH is the last one's");
            came.extend_from_slice(data);
        }
        ensure!(came == self.payload, "{self}: other bytes came");
        Ok(())
    }
}

impl std::fmt::Display for Large<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = if self.ipv6 { 6 } else { 4 };
        write!(f, "{} bytes by {} over IPv{version}", self.payload.len(), self.segment)
    }
}
