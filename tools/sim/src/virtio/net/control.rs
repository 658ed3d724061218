//! The control queue (5.1.6.5): filters, addresses, queues, hashing, offloads. One command a chain, answered at once.

use super::filter::Filter;
use super::flow::{Hash, KEY, KNOWN, Steering, TABLE};
use super::{Net, accepts};
use crate::virtio::bits::net;
use crate::virtio::queue::{Broken, FaultState, Pass, Queue, gather, lengths, poll_and_signal, scatter};
use wholebar_core::Work;
use wholebar_core::model::Host;

const OK: u8 = 0;
const ERR: u8 = 1;
/// The longest command: two tables of addresses.
const LONGEST: u64 = 64 << 10;
/// How many commands are done in one poll.
const COMMANDS: usize = 8;

/// A command's data, taken from its front.
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    fn flag(&mut self) -> Option<bool> {
        self.u8().filter(|b| *b < 2).map(|b| b == 1)
    }

    fn mac(&mut self) -> Option<[u8; 6]> {
        self.take()
    }

    /// A table of addresses (5.1.6.5.2).
    fn macs(&mut self) -> Option<Vec<[u8; 6]>> {
        let n = self.u32()? as usize;
        if n > self.0.len() / 6 {
            return None;
        }
        (0..n).map(|_| self.mac()).collect()
    }

    /// A hash key with its length before it, and nothing behind it.
    fn key(&mut self) -> Option<[u8; KEY]> {
        let len = usize::from(self.u8()?);
        let mut key = [0; KEY];
        key.get_mut(..len)?.copy_from_slice(self.0.get(..len)?);
        self.0 = &self.0[len..];
        Some(key)
    }
}

impl Net {
    /// A poll of the control queue.
    #[inline]
    pub(super) fn control(
        &mut self,
        host: &mut Host<'_>,
        queue: &mut Queue,
        fault_state: &mut FaultState,
    ) -> Result<Work, Broken> {
        let work = poll_and_signal!(queue, host, fault_state, |pass, ahead| {
            let mut work = Work::Idle;
            for _ in 0..COMMANDS {
                let Some((chain, parts)) = ahead.next(&mut pass, host)? else { break };
                work = Work::Busy;
                let (readable, writable) = lengths(parts);
                if !(2..=LONGEST).contains(&readable) || writable < 1 {
                    return Err("a control command without class and command, or without room for its answer".into());
                }
                let mut bytes = vec![0; readable as usize];
                gather(host, parts, 0, &mut bytes)?;
                let mut answer = Vec::new();
                let ack = match self.command(bytes[0], bytes[1], &mut Data(&bytes[2..]), &mut answer) {
                    Some(()) => OK,
                    None => {
                        tracing::debug!(class = bytes[0], command = bytes[1], "a control command is refused");
                        ERR
                    }
                };
                answer.push(ack);
                if writable < answer.len() as u64 {
                    return Err("a control command without room for its answer".into());
                }
                scatter(host, parts, 0, &answer)?;
                pass.used(chain, answer.len() as u32);
            }
            work
        });
        Ok(work.unwrap_or(Work::Idle))
    }

    /// Does a command; `None` for one that makes no sense, or was not negotiated. What it asks for goes to `answer`.
    fn command(&mut self, class: u8, command: u8, data: &mut Data<'_>, answer: &mut Vec<u8>) -> Option<()> {
        let needs = match (class, command) {
            (0, 0 | 1) | (1, 0) => net::CTRL_RX,
            (0, 2..=5) => net::CTRL_RX_EXTRA,
            (1, 1) => net::CTRL_MAC_ADDR,
            (2, 0 | 1) => net::CTRL_VLAN,
            (4, 0) => net::MQ,
            (4, 1) => net::RSS,
            (4, 2) => net::HASH_REPORT,
            (5, 0) => net::CTRL_GUEST_OFFLOADS,
            (6, 0 | 1) => net::NOTF_COAL,
            (6, 2 | 3) => net::VQ_NOTF_COAL,
            _ => return None,
        };
        if self.features & needs == 0 {
            return None;
        }
        match (class, command) {
            (0, mode) => self.filter.set_mode(mode, data.flag()?),
            (1, 0) => {
                let (unicast, multicast) = (data.macs()?, data.macs()?);
                if !data.0.is_empty()
                    || multicast.iter().any(|m| m[0] & 1 == 0)
                    || unicast.iter().any(|m| m[0] & 1 != 0)
                {
                    return None;
                }
                self.filter.set_table(unicast, multicast);
            }
            (1, _) => {
                self.mac = data.mac().filter(|m| m[0] & 1 == 0)?;
                self.filter.set_mac(self.mac);
            }
            (2, command) => {
                let id = data.u16().filter(|id| *id < 4096)?;
                self.filter.set_vlan(id, command == 0);
            }
            (4, 0) => {
                let pairs = data.u16().filter(|n| (1..=self.params.pairs).contains(n))?;
                (self.pairs, self.steering) = (pairs, Steering::auto(pairs));
            }
            (4, 1) => self.rss(data)?,
            (4, _) => {
                let types = data.u32().filter(|t| t & !KNOWN == 0)?;
                data.take::<8>()?;
                self.hash = Some(Hash::new(types, &data.key()?));
            }
            // Of all queues that send, or that receive (VIRTIO 1.3, 5.1.6.5.9).
            (6, which @ (0 | 1)) => {
                let limits = (data.u32()?, data.u32()?);
                let first = usize::from(which == 0);
                self.coalesce.iter_mut().skip(first).step_by(2).for_each(|queue| queue.set(limits));
            }
            // Of one virtqueue.
            (6, command) => {
                let (index, _) = (data.u16()?, data.u16()?);
                let queue = self.coalesce.get_mut(usize::from(index))?;
                if command == 2 {
                    queue.set((data.u32()?, data.u32()?));
                } else {
                    answer.extend([queue.max_events, queue.max_usecs].into_iter().flat_map(u32::to_le_bytes));
                }
            }
            _ => {
                let offloads = data.take().map(u64::from_le_bytes)?;
                let can = net::GUEST_CSUM | net::GUEST_TSO4 | net::GUEST_TSO6 | net::GUEST_ECN;
                if offloads & !(self.features & can) != 0 {
                    return None;
                }
                self.accepts = accepts(offloads);
            }
        }
        Some(())
    }

    /// Receive-side scaling (5.1.6.5.7.1).
    fn rss(&mut self, data: &mut Data<'_>) -> Option<()> {
        let types = data.u32().filter(|t| t & !KNOWN == 0)?;
        let entries = usize::from(data.u16()?) + 1;
        let in_range = |queue: &u16| *queue < self.params.pairs;
        let unclassified = data.u16().filter(in_range)?;
        if !entries.is_power_of_two() || entries > TABLE {
            return None;
        }
        let table: Vec<u16> = (0..entries).map(|_| data.u16().filter(in_range)).collect::<Option<_>>()?;
        let transmit = data.u16().filter(|n| (1..=self.params.pairs).contains(n))?;
        let key = data.key()?;
        let receive = table.iter().max().map_or(1, |most| most.max(&unclassified) + 1);
        self.pairs = receive.max(transmit);
        self.hash = Some(Hash::new(types, &key));
        self.steering = Steering::Rss { table, unclassified };
        Some(())
    }
}

impl Filter {
    /// Receive modes (5.1.6.5.1).
    fn set_mode(&mut self, mode: u8, on: bool) {
        let place = match mode {
            0 => &mut self.promiscuous,
            1 => &mut self.all_multicast,
            2 => &mut self.all_unicast,
            3 => &mut self.no_multicast,
            4 => &mut self.no_unicast,
            _ => &mut self.no_broadcast,
        };
        *place = on;
    }
}
