//! The device as any [`Port`]: what programs use that do not care which driver they have.

use crate::control::{Control, apply_throttle};
use crate::error::Error;
use crate::family::Family;
use crate::nic::Nic;
use crate::settings::{RSS_KEY, Settings};
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::DriverError;
use wholebar_core::channel::Receiver;
use wholebar_core::irq::Coalescing;
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{
    Event, Limits, Link, Mac, Offloads, Port, PortError, Rss, RxQueue, Statistic, TxQueue, Vlans,
};

impl<F: Family> Port for Nic<F> {
    fn driver(&self) -> &'static str {
        F::NAME
    }

    fn name(&self) -> &str {
        self.0.driver().name()
    }

    fn limits(&self) -> &Limits {
        &F::LIMITS
    }

    fn granted(&self) -> Offloads {
        self.0.driver().granted
    }

    fn queues(&self) -> (u16, u16) {
        (self.0.driver().config.rx_queues, self.0.driver().config.tx_queues)
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
            return Err(Error::from(PortError::Address { device: self.0.driver().hw.name(), why }).into());
        }
        Ok(self.set(|settings| settings.mac = mac, |settings, hw| F::apply_addresses(hw, settings))?)
    }

    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(|settings| settings.promiscuous = on, |settings, hw| F::apply_receive(hw, settings))?)
    }

    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(|settings| settings.all_multicast = on, |settings, hw| F::apply_receive(hw, settings))?)
    }

    fn coalescing(&self) -> Option<Coalescing> {
        (self.rx_vectors() > 0).then(|| Coalescing::after(self.0.peek(|control| control.settings.throttle)))
    }

    /// A queue interrupts at once where its last interrupt is as long ago; packets are not counted.
    fn set_coalescing(&self, coalescing: Coalescing) -> Result<Coalescing, DriverError> {
        let (device, vectors) = (|| self.0.driver().name().to_owned(), self.rx_vectors());
        if vectors == 0 {
            return Err(wholebar_core::Error::NoCoalescing { device: device() }.into());
        }
        let micros = if coalescing.is_off() { 0 } else { coalescing.time.as_nanos().div_ceil(1000) };
        let throttle = u64::try_from(micros).map_or(Duration::MAX, Duration::from_micros);
        if throttle > F::MAX_THROTTLE {
            return Err(wholebar_core::Error::CoalescingTime { device: device(), most: F::MAX_THROTTLE }.into());
        }
        self.set(|settings| settings.throttle = throttle, |settings, hw| apply_throttle::<F>(hw, settings, vectors))?;
        Ok(Coalescing::after(throttle))
    }

    fn set_filters(&self, addresses: &[Mac]) -> Result<(), DriverError> {
        Settings::check_filters(self.0.driver().name(), addresses, F::ADDRESSES)?;
        Ok(self
            .set(|settings| settings.filters = addresses.to_vec(), |settings, hw| F::apply_addresses(hw, settings))?)
    }

    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), DriverError> {
        let word = Vlans::word_of(self.0.driver().name(), vlan).map_err(Error::from)?;
        Ok(self.set(|settings| settings.vlans.set(vlan, on), |settings, hw| F::apply_vlans(hw, settings, word))?)
    }

    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError> {
        let checked = rss.check(self.0.driver().config.rx_queues, RSS_KEY, F::LIMITS.rss_table);
        checked.map_err(|why| Error::from(PortError::Rss { device: self.0.driver().hw.name(), why }))?;
        Ok(self.set(|settings| settings.rss = Some(rss.clone()), |settings, hw| F::apply_rss(hw, settings))?)
    }

    fn link(&self) -> Link {
        F::link(&self.0.driver().hw).unwrap_or_default()
    }

    fn renegotiate(&self) -> Result<(), DriverError> {
        if !F::NEGOTIATES {
            return Err(wholebar_core::Error::NoNegotiation { device: self.0.driver().name().to_owned() }.into());
        }
        Ok(self.0.with(|_| F::start_link(&self.0.driver().hw))?)
    }

    fn events(&self) -> &Receiver<Event> {
        Nic::events(self)
    }

    fn statistics(&self) -> Vec<Statistic> {
        let (counters, dropped, link_changes, stalls) = self.0.peek(|control| {
            if self.0.check().is_ok()
                && let Err(error) = control.count::<F>(&self.0.driver().hw)
            {
                tracing::debug!(%error, "the device's counters could not be read");
            }
            let Control { totals, link_changes, watchdogs, .. } = control;
            (totals.counters.clone(), totals.dropped.clone(), *link_changes, watchdogs.stalls())
        });
        let (small, large) = F::counters();
        let names = small.iter().chain(large).map(|(_, name)| *name);
        let mut all: Vec<_> = names.zip(counters).map(|(name, value)| Statistic::new("", name, value)).collect();
        for (i, (counters, dropped)) in self.0.driver().rx_counters.iter().zip(dropped).enumerate() {
            all.extend(Statistic::of_rx(i, counters));
            all.extend(dropped.map(|value| Statistic::new(format!("rx{i}"), "dropped_no_descriptors", value)));
        }
        for (i, counters) in self.0.driver().tx_counters.iter().enumerate() {
            all.extend(Statistic::of_tx(i, counters));
        }
        let domain = &self.0.driver().domain;
        let own = [
            ("resets", domain.epoch()),
            ("quarantined_buffers", domain.quarantined()),
            ("link_changes", link_changes),
            ("tx_stalls", stalls),
        ];
        all.extend(own.map(|(name, value)| Statistic::new("", name, value)));
        all
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        Ok(Nic::attach(self, arena)?)
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        Ok(Nic::detach(self, arena)?)
    }

    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        Ok(Box::new(self.rx(index, pool)?))
    }

    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        Ok(Box::new(self.tx(index)?))
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(Nic::reset(self)?)
    }
}
