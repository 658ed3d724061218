//! Primary and secondary controllers (NVM Express Base 2.0, 8.26): the controllers of virtual functions, and the queues and interrupts that the physical
//! function's has for them.
//!
//! A secondary controller comes up with what it was given while it was offline. What the primary one keeps for itself, it keeps from its next reset on:
//! so first it gives up flexible resources ([`Nvme::allocate_flexible`]) and is reset as a function, then each secondary controller gets some
//! ([`Nvme::assign_flexible`]) and goes online ([`Nvme::set_secondary_online`]).

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::command::admin;
use crate::error::Result;
use crate::identify::{IdentifyRequest, LEN, cns};
use crate::nvme::Nvme;
use crate::raw::{RawCommand, Transfer};

/// Flexible resources (5.28, RT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlexibleResource {
    /// VQ: pairs of queues, the admin queues' included.
    Queues,
    /// VI: interrupt vectors.
    Interrupts,
}

/// What a primary controller has of one resource (5.17.2.14, CNS 14h). Private are those that a controller has for good, flexible those that move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceCapabilities {
    /// VQFRT, VIFRT: the flexible ones, of the primary and all secondary controllers together.
    pub flexible_total: u32,
    /// VQRFA, VIRFA: those that secondary controllers have.
    pub flexible_assigned: u32,
    /// VQRFAP, VIRFAP: those that the primary controller has.
    pub flexible_primary: u16,
    /// VQPRT, VIPRT: the primary controller's private ones.
    pub private: u16,
    /// VQFRSM, VIFRSM: the most that one secondary controller can have.
    pub most: u16,
    /// VQGRAN, VIGRAN: what numbers of them are best multiples of; 0 where it doesn't say.
    pub granularity: u16,
}

impl ResourceCapabilities {
    fn parse(bytes: &[u8], at: usize) -> Self {
        Self {
            flexible_total: u32_at(bytes, at),
            flexible_assigned: u32_at(bytes, at + 4),
            flexible_primary: u16_at(bytes, at + 8),
            private: u16_at(bytes, at + 10),
            most: u16_at(bytes, at + 12),
            granularity: u16_at(bytes, at + 14),
        }
    }
}

/// What a primary controller has for its secondary ones (5.17.2.14, CNS 14h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrimaryCapabilities {
    /// CNTLID: the primary controller.
    pub id: u16,
    /// PORTID.
    pub port: u16,
    /// CRT bits 0 and 1: whether queues, and interrupts, can be moved.
    pub movable: (bool, bool),
    /// Pairs of queues.
    pub queues: ResourceCapabilities,
    /// Interrupt vectors.
    pub interrupts: ResourceCapabilities,
}

impl PrimaryCapabilities {
    fn parse(bytes: &[u8]) -> Self {
        let types = u8_at(bytes, 4);
        Self {
            id: u16_at(bytes, 0),
            port: u16_at(bytes, 2),
            movable: (types & 1 != 0, types & 2 != 0),
            queues: ResourceCapabilities::parse(bytes, 32),
            interrupts: ResourceCapabilities::parse(bytes, 64),
        }
    }
}

/// A secondary controller, as the primary one has it in its list (5.17.2.15, CNS 15h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondaryController {
    /// SCID: its identifier.
    pub id: u16,
    /// PCID: its primary controller.
    pub primary: u16,
    /// SCS bit 0: it can be used.
    pub online: bool,
    /// VFN: its virtual function, counted from 1; 0 where it is none.
    pub virtual_function: u16,
    /// NVQ: its pairs of queues.
    pub queues: u16,
    /// NVI: its interrupt vectors.
    pub interrupts: u16,
}

impl SecondaryController {
    fn parse(entry: &[u8]) -> Self {
        Self {
            id: u16_at(entry, 0),
            primary: u16_at(entry, 2),
            online: u8_at(entry, 4) & 1 != 0,
            virtual_function: u16_at(entry, 8),
            queues: u16_at(entry, 10),
            interrupts: u16_at(entry, 12),
        }
    }

    /// All of a list: their number, and from byte 32 on 32 bytes of each.
    fn list(bytes: &[u8]) -> Vec<Self> {
        let entries = bytes.get(32..).unwrap_or_default().chunks_exact(32);
        entries.take(u8_at(bytes, 0).into()).map(Self::parse).collect()
    }
}

/// ACT (5.28).
const PRIMARY_ALLOCATION: u32 = 1;
const SECONDARY_OFFLINE: u32 = 7;
const SECONDARY_ASSIGN: u32 = 8;
const SECONDARY_ONLINE: u32 = 9;

impl Nvme {
    /// Reads what the controller, a primary one, has for its secondary ones (CNS 14h).
    ///
    /// # Errors
    /// [`Error::NotOffered`](crate::Error::NotOffered) where the controller has no Virtualization Management, and those of
    /// [`identify_data`](Self::identify_data).
    pub fn primary_capabilities(&self) -> Result<PrimaryCapabilities> {
        self.needs_virtualization()?;
        let request =
            IdentifyRequest { cns: cns::PRIMARY_CAPABILITIES, cntid: self.identify().id, ..IdentifyRequest::default() };
        Ok(PrimaryCapabilities::parse(&self.identify_data(request)?))
    }

    /// Reads the secondary controllers, from identifier `first` on (CNS 15h).
    ///
    /// # Errors
    /// Those of [`primary_capabilities`](Self::primary_capabilities).
    pub fn secondary_controllers(&self, first: u16) -> Result<Vec<SecondaryController>> {
        self.needs_virtualization()?;
        let (mut all, mut first) = (Vec::new(), Some(first));
        while let Some(from) = first {
            let request =
                IdentifyRequest { cns: cns::SECONDARY_CONTROLLERS, cntid: from, ..IdentifyRequest::default() };
            let part = SecondaryController::list(&self.identify_data(request)?);
            // Identifiers ascend; a list that doesn't has no next part.
            let full = part.len() >= (LEN - 32) / 32;
            first = part.last().filter(|last| full && last.id >= from).and_then(|last| last.id.checked_add(1));
            all.extend(part);
        }
        Ok(all)
    }

    /// Sets how many flexible resources the controller has itself, from its next reset as a function on; returns how many were changed (5.28, ACT 1h).
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) with the controller's status, and those of [`primary_capabilities`](Self::primary_capabilities).
    pub fn allocate_flexible(&self, resource: FlexibleResource, count: u16) -> Result<u16> {
        self.virtualization(PRIMARY_ALLOCATION, self.identify().id, Some(resource), count)
    }

    /// Sets how many flexible resources a secondary controller has, which is offline; returns how many were changed (5.28, ACT 8h).
    ///
    /// # Errors
    /// Those of [`allocate_flexible`](Self::allocate_flexible).
    pub fn assign_flexible(&self, secondary: u16, resource: FlexibleResource, count: u16) -> Result<u16> {
        self.virtualization(SECONDARY_ASSIGN, secondary, Some(resource), count)
    }

    /// Has a secondary controller go online with what it was assigned, two pairs of queues and a vector at least, or offline (5.28, ACT 9h and 7h). One that
    /// goes offline ends what it does.
    ///
    /// # Errors
    /// Those of [`allocate_flexible`](Self::allocate_flexible).
    pub fn set_secondary_online(&self, secondary: u16, on: bool) -> Result<()> {
        let action = if on { SECONDARY_ONLINE } else { SECONDARY_OFFLINE };
        self.virtualization(action, secondary, None, 0).map(drop)
    }

    fn needs_virtualization(&self) -> Result<()> {
        self.needs(self.identify().has_virtualization(), "Virtualization Management")
    }

    fn virtualization(
        &self,
        action: u32,
        controller: u16,
        resource: Option<FlexibleResource>,
        count: u16,
    ) -> Result<u16> {
        self.needs_virtualization()?;
        let kind = u32::from(resource == Some(FlexibleResource::Interrupts));
        let command = RawCommand {
            opcode: admin::VIRTUALIZATION_MANAGEMENT,
            cdw10: action | kind << 8 | u32::from(controller) << 16,
            cdw11: count.into(),
            ..RawCommand::default()
        };
        // Dword 0, bits 15:0: NRM.
        Ok(self.command(&command, Transfer::None, None)? as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_read() {
        let mut bytes = vec![0; LEN];
        bytes[..5].copy_from_slice(&[7, 0, 2, 0, 3]);
        bytes[32..48].copy_from_slice(&[8, 0, 0, 0, 4, 0, 0, 0, 2, 0, 3, 0, 5, 0, 1, 0]);
        bytes[64] = 9;
        let caps = PrimaryCapabilities::parse(&bytes);
        assert_eq!((caps.id, caps.port, caps.movable, caps.interrupts.flexible_total), (7, 2, (true, true), 9));
        let queues = ResourceCapabilities {
            flexible_total: 8,
            flexible_assigned: 4,
            flexible_primary: 2,
            private: 3,
            most: 5,
            granularity: 1,
        };
        assert_eq!(caps.queues, queues);

        let mut bytes = vec![0; LEN];
        bytes[0] = 2;
        bytes[32..46].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 3, 0, 2, 0]);
        bytes[64] = 2;
        let list = SecondaryController::list(&bytes);
        let first =
            SecondaryController { id: 1, primary: 0, online: true, virtual_function: 1, queues: 3, interrupts: 2 };
        assert_eq!((list[0], list[1].id, list[1].online, list.len()), (first, 2, false, 2));
        // More than there is room for; less than there should be.
        bytes[0] = 255;
        assert_eq!(SecondaryController::list(&bytes).len(), 127);
        assert!(SecondaryController::list(&[9; 40]).is_empty());
    }
}
