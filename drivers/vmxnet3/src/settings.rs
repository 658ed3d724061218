//! What a port is asked to be besides its queues: addresses, VLANs, how packets are spread, sizes, offloads. It is written to shared memory when the
//! device starts, again after each reset, and in part when it changes.

use crate::error::Result;
use crate::regs::{self, feature, rx_mode};
use crate::shared::MAX_GROUPS;
use wholebar_core::net::{HashFields, Mac, Offloads, PortError, Rss, Vlans};

/// The largest MTU, in bytes (`VMXNET3_MAX_MTU`).
pub(crate) const MAX_MTU: u16 = 9000;
/// Ethernet's header and a VLAN tag, in bytes.
const AROUND: u32 = 14 + 4;
/// The largest packet that was merged of segments, in bytes: IPv4's total length, and what is around it.
const MERGED: u32 = 65535 + AROUND;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub mac: Mac,
    pub promiscuous: bool,
    pub all_multicast: bool,
    /// Groups of which it receives.
    pub groups: Vec<Mac>,
    pub vlans: Vlans,
    pub rss: Option<Rss>,
    pub mtu: u16,
    pub granted: Offloads,
}

impl Settings {
    /// The largest packet that is sent without being cut, in bytes.
    pub fn max_packet(&self) -> u32 {
        u32::from(self.mtu) + AROUND
    }

    /// The largest packet that is received, in bytes.
    pub fn max_received(&self) -> u32 {
        if self.granted.lro { MERGED } else { self.max_packet() }
    }

    /// What the device does with packets that it receives.
    pub fn features(&self) -> u64 {
        let bits = [
            (self.granted.rx_checksum, feature::RXCSUM),
            (self.rss.is_some(), feature::RSS),
            (self.granted.vlan_strip, feature::RXVLAN),
            (self.granted.lro, feature::LRO),
        ];
        bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
    }

    /// What is received.
    pub fn rx_mode(&self) -> u32 {
        let bits = [
            (self.promiscuous, rx_mode::PROMISC),
            (self.promiscuous || self.all_multicast, rx_mode::ALL_MULTI),
            (!self.groups.is_empty(), rx_mode::MCAST),
        ];
        bits.iter().filter(|(on, _)| *on).fold(rx_mode::UCAST | rx_mode::BCAST, |all, (_, bit)| all | bit)
    }

    /// The VLANs that are received: all, where there is no filter. An empty table lets all pass to who is promiscuous.
    pub fn vlan_table(&self) -> [u32; 128] {
        match (self.promiscuous, self.granted.vlan_filter) {
            (true, _) => [0; 128],
            (false, true) => *self.vlans.words(),
            (false, false) => [u32::MAX; 128],
        }
    }

    /// How packets are spread (`struct UPT1_RSSConf`): kinds of hash, its function (Toeplitz), lengths of key and table, key, table.
    pub fn rss_bytes(&self) -> Option<Vec<u8>> {
        const TOEPLITZ: u16 = 1;
        let rss = self.rss.as_ref()?;
        let head = [hash_types(rss.fields), TOEPLITZ, rss.key.len() as u16, rss.table.len() as u16];
        let mut bytes: Vec<u8> = head.iter().flat_map(|half| half.to_le_bytes()).collect();
        bytes.extend(&rss.key);
        bytes.resize(regs::RSS_HEAD, 0);
        bytes.extend(rss.table.iter().map(|queue| *queue as u8));
        bytes.resize(regs::RSS_HEAD + usize::from(regs::RSS_TABLE), 0);
        Some(bytes)
    }

    /// Whether these addresses can be filtered for.
    pub fn check_filters(device: &str, filters: &[Mac]) -> Result<()> {
        let refuse = |why| Err(PortError::Address { device: device.to_owned(), why }.into());
        match filters.iter().find(|mac| !mac.is_multicast()) {
            Some(mac) if mac.is_unicast() => refuse(format!(
                "it has one address of a station, so {mac} besides its own cannot be had: be promiscuous"
            )),
            Some(mac) => refuse(format!("{mac} is nobody's address")),
            None if filters.len() > MAX_GROUPS => refuse(format!(
                "{} groups are more than the {MAX_GROUPS} it has room for: receive all multicast",
                filters.len()
            )),
            None => Ok(()),
        }
    }
}

/// The kinds of hash (`UPT1_RSS_HASH_TYPE_*`). UDP is hashed by its addresses.
fn hash_types(fields: HashFields) -> u16 {
    let HashFields { ipv4, tcp4, ipv6, tcp6, .. } = fields;
    [ipv4, tcp4, ipv6, tcp6].into_iter().enumerate().fold(0, |all, (i, on)| all | u16::from(on) << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            promiscuous: false,
            all_multicast: false,
            groups: Vec::new(),
            vlans: Vlans::default(),
            rss: None,
            mtu: 1500,
            granted: Offloads::NONE,
        }
    }

    #[test]
    fn what_is_received_is_as_linux_has_it() {
        let group = vec![Mac([1, 0, 0x5e, 0, 0, 1])];
        assert_eq!((settings().rx_mode(), settings().vlan_table()[3]), (5, u32::MAX));
        assert_eq!(Settings { groups: group.clone(), ..settings() }.rx_mode(), 7);
        assert_eq!(Settings { all_multicast: true, ..settings() }.rx_mode(), 13);
        let filtered = Settings { granted: Offloads { vlan_filter: true, ..Offloads::NONE }, ..settings() };
        assert_eq!(filtered.vlan_table(), *Vlans::default().words());
        let all = Settings { promiscuous: true, ..filtered };
        assert_eq!((all.rx_mode(), all.vlan_table()), (29, [0; 128]));
        assert_eq!(settings().features(), 0);
        let all = Settings { granted: Offloads::ALL, rss: Some(Rss::evenly(1, 1)), ..settings() };
        assert_eq!((all.features(), all.max_packet(), all.max_received()), (15, 1518, 65553));
    }

    #[test]
    fn filters_that_cannot_be_are_refused() {
        let group = |i: u16| Mac([1, 0, 0x5e, 0, (i >> 8) as u8, i as u8]);
        let groups: Vec<_> = (0..MAX_GROUPS as u16 + 1).map(group).collect();
        assert!(Settings::check_filters("x", &groups[1..]).is_ok());
        for (bad, why) in [(&groups[..], "more than"), (&[Mac([2; 6])], "promiscuous"), (&[Mac::default()], "nobody")] {
            let error = Settings::check_filters("x", bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn spreading_is_laid_out_as_the_device_reads_it() {
        let good = Rss { table: vec![0, 1, 2, 0], ..Rss::evenly(4, 4) };
        let bytes = Settings { rss: Some(good), ..settings() }.rss_bytes().unwrap();
        assert_eq!((bytes.len(), &bytes[..9]), (176, &[15, 0, 1, 0, 40, 0, 4, 0, 0x6d][..]));
        assert_eq!(&bytes[46..53], &[1, 0xfa, 0, 1, 2, 0, 0]);
    }
}
