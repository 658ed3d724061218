//! A network device as a [`Port`]: what programs configure, read and reset, and the queues that they take.

use super::control::Command;
use super::owned::{Rx, Tx};
use super::rx::Layout;
use super::{Coalescing, Ethernet, LEAST_PACKET, LINK_HEADER, Net, Queue, Tell, Wanted, bit, config};
use crate::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wholebar_core::DriverError;
use wholebar_core::channel::Receiver as Channel;
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{Event, Limits, Link, Mac, Offloads, Port, Rss, RxQueue, Statistic, TxQueue};

impl Port for Net {
    fn driver(&self) -> &'static str {
        "virtio"
    }

    fn name(&self) -> &str {
        &self.0.driver().device_type.name
    }

    fn limits(&self) -> &Limits {
        &self.0.driver().device_type.limits
    }

    fn granted(&self) -> Offloads {
        self.0.driver().device_type.granted
    }

    fn queues(&self) -> (u16, u16) {
        (self.0.driver().device_type.pairs, self.0.driver().device_type.pairs)
    }

    fn mtu(&self) -> u16 {
        self.0.driver().device_type.mtu
    }

    fn mac(&self) -> Mac {
        let set = self.0.peek(|control| control.state.wanted.mac);
        set.or(self.0.driver().device_type.chosen).or(self.0.driver().device_type.facts.mac).unwrap_or_default()
    }

    fn set_mac(&self, mac: Mac) -> Result<(), DriverError> {
        if !mac.is_unicast() {
            return Err(self
                .0
                .driver()
                .shared
                .hw
                .unavailable(format!("{mac} is not the address of one station"))
                .into());
        }
        Ok(self.set(bit::CTRL_MAC_ADDR, "way to change its address", |w| w.mac = Some(mac), &Ethernet::tell_mac)?)
    }

    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(bit::CTRL_RX, "promiscuous mode", |w| w.promiscuous = on, &Ethernet::tell_mode)?)
    }

    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError> {
        Ok(self.set(bit::CTRL_RX, "mode for all multicast", |w| w.all_multicast = on, &Ethernet::tell_mode)?)
    }

    fn set_filters(&self, addresses: &[Mac]) -> Result<(), DriverError> {
        let set = |w: &mut Wanted| w.filters = addresses.to_vec();
        Ok(self.set(bit::CTRL_RX, "filters for addresses", set, &Ethernet::tell_filters)?)
    }

    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), DriverError> {
        if !(1..=4094).contains(&vlan) {
            return Err(self
                .0
                .driver()
                .shared
                .hw
                .unavailable(format!("{vlan} is not a VLAN: they are 1 to 4094"))
                .into());
        }
        let set = |w: &mut Wanted| if on { w.vlans.insert(vlan) } else { w.vlans.remove(&vlan) };
        let command = if on { Command::VLAN_ADD } else { Command::VLAN_REMOVE };
        let tell: Tell<'_> = &|_, shared, control, _| control.execute(shared, command, &vlan.to_le_bytes());
        self.set(bit::CTRL_VLAN, "filter for VLANs that was asked for", set, tell)?;
        Ok(())
    }

    fn coalescing(&self) -> Option<Coalescing> {
        let offered = self.0.driver().shared.has(bit::NOTF_COAL);
        offered.then(|| self.0.peek(|control| control.state.wanted.coalescing.of_all()))
    }

    fn set_coalescing(&self, coalescing: Coalescing) -> Result<Coalescing, DriverError> {
        // Whole microseconds, no less than that.
        let micros = coalescing.time.as_nanos().div_ceil(1000);
        let time = u64::try_from(micros).map_or(Duration::MAX, Duration::from_micros);
        let coalescing = Coalescing { time, ..coalescing };
        Net::set_coalescing(self, None, coalescing)?;
        Ok(coalescing)
    }

    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError> {
        // Refused before it is what is wanted.
        config::rss_data(
            &self.0.driver().shared.hw,
            &self.0.driver().device_type.facts,
            rss,
            self.0.driver().device_type.pairs,
            true,
        )?;
        let set = |w: &mut Wanted| w.rss = Some(rss.clone());
        Ok(self.set(bit::RSS, "RSS that was asked for when it was opened", set, &Ethernet::tell_spread)?)
    }

    fn link(&self) -> Link {
        *self.0.driver().device_type.link.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn events(&self) -> &Channel<Event> {
        self.0.events()
    }

    fn statistics(&self) -> Vec<Statistic> {
        let mut all = Vec::new();
        for (i, (rx, tx)) in self.0.driver().device_type.counters.iter().enumerate() {
            all.extend(Statistic::of_rx(i, rx));
            all.extend(Statistic::of_tx(i, tx));
        }
        let domain = &self.0.driver().shared.domain;
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let own = [
            ("resets", domain.epoch()),
            ("quarantined_buffers", domain.quarantined()),
            ("link_changes", count(&self.0.driver().device_type.link_changes)),
            ("tx_stalls", count(&self.0.driver().device_type.stalls)),
        ];
        all.extend(own.map(|(name, value)| Statistic::new("", name, value)));
        all.extend(Statistic::of_model(self.0.driver().shared.hw.device.as_ref()));
        all
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        let (shared, own) = (&self.0.driver().shared, &self.0.driver().device_type);
        let Layout { before, header, merge, .. } = own.layout;
        let whole = u32::from(header) + (u32::from(own.mtu) + LINK_HEADER).max(LEAST_PACKET);
        // Those of a whole ring hold a packet, at least.
        let descriptors = own.rx_sizes.get(usize::from(index)).map_or(1, |size| u32::from(*size));
        let part = whole.div_ceil(descriptors).max(u32::from(header) + 64);
        let least = u32::from(before) + if merge { part } else { whole };
        if pool.size() < least {
            let what = format!(
                "buffers of {} bytes are too small: {least} are needed for its headroom and MTU{}",
                pool.size(),
                if merge { "" } else { ", or ask for scattering" }
            );
            return Err(shared.hw.unavailable(what).into());
        }
        shared.queue_context.attach(pool.arena().clone())?;
        match self.take(index, 2 * u32::from(index)) {
            Some(Queue::Rx(mut queue)) => {
                queue.set_pool(pool);
                Ok(Box::new(Rx { index: 2 * index, queue: Some(queue), home: self.0.clone() }))
            }
            _ => Err(self.none("receiving", index)),
        }
    }

    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        match self.take(index, 2 * u32::from(index) + 1) {
            Some(Queue::Tx(queue)) => {
                Ok(Box::new(Tx { index: 2 * index + 1, queue: Some(queue), home: self.0.clone() }))
            }
            _ => Err(self.none("sending", index)),
        }
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(self.0.reset()?)
    }
}

impl Net {
    fn take(&self, index: u16, virtqueue: u32) -> Option<Queue> {
        (index < self.0.driver().device_type.pairs)
            .then(|| self.0.peek(|control| control.take(virtqueue as u16)))
            .flatten()
    }

    fn none(&self, what: &'static str, index: u16) -> DriverError {
        Error::NoQueue {
            device: self.0.driver().shared.hw.name(),
            what,
            index,
            count: self.0.driver().device_type.pairs,
        }
        .into()
    }
}
