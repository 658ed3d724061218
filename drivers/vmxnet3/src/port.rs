//! The device as any [`Port`]: what programs use that do not care which driver they have.

use crate::error::Error;
use crate::regs::{self, cmd};
use crate::settings::Settings;
use crate::shared::SharedMemory;
use crate::vmxnet3::{LIMITS, Vmxnet3};
use std::sync::Arc;
use wholebar_core::DriverError;
use wholebar_core::channel::Receiver;
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{
    Event, Limits, Link, Mac, Offloads, Port, PortError, Rss, RxQueue, Statistic, TxQueue, Vlans,
};

/// The commands that have the device read which packets it receives.
const FILTERS: [u32; 3] = [cmd::UPDATE_RX_MODE, cmd::UPDATE_MAC_FILTERS, cmd::UPDATE_VLAN_FILTERS];

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
            let why = format!("{mac} is no address that one station can have");
            return Err(Error::from(PortError::Address { device: self.shared().hw.name(), why }).into());
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
        Vlans::word_of(self.name(), vlan).map_err(Error::from)?;
        Ok(self.set(|settings| settings.vlans.set(vlan, on), SharedMemory::put_filters, &FILTERS)?)
    }

    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError> {
        let checked = rss.check(self.queues().0, regs::RSS_KEY, LIMITS.rss_table);
        checked.map_err(|why| Error::from(PortError::Rss { device: self.shared().hw.name(), why }))?;
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
        let (mut all, link_changes, stalls, queue_errors) = self.0.peek(|control| {
            if self.check().is_ok()
                && let Err(error) = control.count(&shared.hw)
            {
                tracing::debug!(%error, "the device's counters could not be read");
            }
            let counted =
                control.counted().map(|(id, name, value)| Statistic::new(id.name(), name, value)).collect::<Vec<_>>();
            (counted, control.link_changes, control.watchdogs.stalls(), control.queue_errors)
        });
        for (i, counters) in shared.rx_counters.iter().enumerate() {
            all.extend(Statistic::of_rx(i, counters));
        }
        for (i, counters) in shared.tx_counters.iter().enumerate() {
            all.extend(Statistic::of_tx(i, counters));
        }
        let domain = self.0.domain();
        let own = [
            ("resets", domain.epoch()),
            ("quarantined_buffers", domain.quarantined()),
            ("link_changes", link_changes),
            ("tx_stalls", stalls),
            ("queue_errors", queue_errors),
        ];
        all.extend(own.map(|(name, value)| Statistic::new("", name, value)));
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
