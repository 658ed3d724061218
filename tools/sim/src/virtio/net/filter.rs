//! Which packets a port receives (5.1.6.5.1 to 5.1.6.5.3).

/// A port's filters.
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    mac: [u8; 6],
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    /// VLANs that are received, a bit each; `None`: all.
    vlans: Option<Box<[u64; 64]>>,
}

impl Filter {
    /// With an empty table. A driver that can't set filters gets everything; one that can gets what is for `mac`, and broadcasts.
    pub(super) fn new(mac: [u8; 6], filters: bool, vlan_filter: bool) -> Self {
        Self {
            promiscuous: !filters,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            mac,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: vlan_filter.then(|| Box::new([0; 64])),
        }
    }

    pub(super) fn set_mac(&mut self, mac: [u8; 6]) {
        self.mac = mac;
    }

    pub(super) fn set_table(&mut self, unicast: Vec<[u8; 6]>, multicast: Vec<[u8; 6]>) {
        (self.unicast, self.multicast) = (unicast, multicast);
    }

    /// Lets a VLAN in, or out; `id` is below 4096.
    pub(super) fn set_vlan(&mut self, id: u16, on: bool) {
        if let Some(vlans) = &mut self.vlans {
            let (word, bit) = (usize::from(id / 64), 1 << (id % 64));
            vlans[word] = if on { vlans[word] | bit } else { vlans[word] & !bit };
        }
    }

    /// Whether a packet, of 14 bytes at least, is received.
    #[inline]
    pub(super) fn passes(&self, packet: &[u8]) -> bool {
        (self.promiscuous || self.addressed(packet)) && self.vlans.as_ref().is_none_or(|v| in_vlan(v, packet))
    }

    fn addressed(&self, packet: &[u8]) -> bool {
        let Some(&to) = packet.first_chunk::<6>() else { return false };
        if to[0] & 1 == 0 {
            !self.no_unicast && (to == self.mac || self.all_unicast || self.unicast.contains(&to))
        } else if to == [0xff; 6] {
            !self.no_broadcast
        } else {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(&to))
        }
    }
}

/// Whether a packet has no tag, or one that is let in.
fn in_vlan(vlans: &[u64; 64], packet: &[u8]) -> bool {
    match packet.get(12..16) {
        Some([0x81, 0x00, high, low]) => {
            let id = u16::from_be_bytes([high & 0x0f, *low]);
            vlans[usize::from(id / 64)] >> (id % 64) & 1 != 0
        }
        _ => true,
    }
}
