//! The device as any [`Port`]: what programs use that do not care which driver they have.

use crate::error::Error;
use crate::regs::cmd;
use crate::settings::Settings;
use crate::shared::SharedMemory;
use crate::vmxnet3::{LIMITS, Vmxnet3};
use std::sync::Arc;
use wholebar_core::DriverError;
use wholebar_core::channel::Receiver;
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{Event, Limits, Link, Mac, Offloads, Port, Rss, RxQueue, Statistic, TxQueue};

/// The commands that have the device read which packets it receives.
const FILTERS: [u32; 3] = [cmd::UPDATE_RX_MODE, cmd::UPDATE_MAC_FILTERS, cmd::UPDATE_VLAN_FILTERS];

impl Vmxnet3 {
    fn refuse(&self, why: String) -> DriverError {
        Error::Address { device: self.shared().hw.name(), why }.into()
    }
}

impl Port for Vmxnet3 {
    fn driver(&self) -> &'static str {
        "vmxnet3"
    }

    fn name(&self) -> &str {
        self.device().name()
    }

    fn limits(&self) -> &Limits {
        &LIMITS
    }

    fn granted(&self) -> Offloads {
        self.shared().granted
    }

    fn queues(&self) -> (u16, u16) {
        (self.shared().config.rx_queues, self.shared().config.tx_queues)
    }

    fn mtu(&self) -> u16 {
        self.0.peek(|control| control.settings.mtu)
    }

    fn mac(&self) -> Mac {
        self.0.peek(|control| control.settings.mac)
    }

    fn set_mac(&self, mac: Mac) -> Result<(), DriverError> {
        if !mac.is_unicast() {
            return Err(self.refuse(format!("{mac} is no address that one station can have")));
        }
        Ok(self.0.with(|control| {
            control.settings.mac = mac;
            self.shared().hw.set_address(mac)
        })?)
    }

    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(|settings| settings.promiscuous = on, SharedMemory::put_filters, &FILTERS)?)
    }

    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(|settings| settings.all_multicast = on, SharedMemory::put_filters, &FILTERS)?)
    }

    fn set_filters(&self, addresses: &[Mac]) -> Result<(), DriverError> {
        Settings::check_filters(self.name(), addresses)?;
        Ok(self.set(|settings| settings.groups = addresses.to_vec(), SharedMemory::put_filters, &FILTERS)?)
    }

    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), DriverError> {
        if !(1..=4094).contains(&vlan) {
            return Err(self.refuse(format!("{vlan} is not a VLAN: they are from 1 to 4094")));
        }
        let (word, bit) = (usize::from(vlan >> 5), 1 << (vlan & 31));
        let change = |settings: &mut Settings| {
            settings.vlans[word] = if on { settings.vlans[word] | bit } else { settings.vlans[word] & !bit };
        };
        Ok(self.set(change, SharedMemory::put_filters, &FILTERS)?)
    }

    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError> {
        let checked = Settings::check_rss(rss, self.queues().0);
        checked.map_err(|why| Error::Rss { device: self.shared().hw.name(), why })?;
        let write = |memory: &SharedMemory, settings: &Settings| {
            memory.put_features(settings);
            memory.put_rss(settings);
        };
        let commands = [cmd::UPDATE_FEATURE, cmd::UPDATE_RSSIDT];
        Ok(self.set(|settings| settings.rss = Some(rss.clone()), write, &commands)?)
    }

    fn link(&self) -> Link {
        self.0.peek(|control| control.link)
    }

    fn events(&self) -> &Receiver<Event> {
        Vmxnet3::events(self)
    }

    fn statistics(&self) -> Vec<Statistic> {
        let shared = self.shared();
        let of = |queue: String, name: &'static str, value| Statistic { queue: queue.into(), name: name.into(), value };
        let (mut all, link_changes, stalls, queue_errors) = self.0.peek(|control| {
            if self.check().is_ok()
                && let Err(error) = control.count(&shared.hw)
            {
                tracing::debug!(%error, "the device's counters could not be read");
            }
            let counted = control.counted().map(|(id, name, value)| of(id.name(), name, value)).collect::<Vec<_>>();
            (counted, control.link_changes, control.stalls, control.queue_errors)
        });
        for (i, counters) in shared.rx_counters.iter().enumerate() {
            all.extend(counters.all().map(|(name, value)| of(format!("rx{i}"), name, value)));
        }
        for (i, counters) in shared.tx_counters.iter().enumerate() {
            all.extend(counters.all().map(|(name, value)| of(format!("tx{i}"), name, value)));
        }
        let domain = self.0.domain();
        let own = [
            ("resets", domain.epoch()),
            ("quarantined_buffers", domain.quarantined()),
            ("link_changes", link_changes),
            ("tx_stalls", stalls),
            ("queue_errors", queue_errors),
        ];
        all.extend(own.map(|(name, value)| of(String::new(), name, value)));
        all
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        Ok(Vmxnet3::attach(self, arena)?)
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        Ok(Vmxnet3::detach(self, arena)?)
    }

    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        Ok(Box::new(self.rx(index, pool)?))
    }

    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        Ok(Box::new(self.tx(index)?))
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(Vmxnet3::reset(self)?)
    }
}
