//! Namespaces made, deleted, attached to controllers and detached from them (5.22, 5.23), and the lists of what there is.

use crate::command::admin;
use crate::error::Result;
use crate::identify::{self, IdentifyRequest, cns, controller_list, namespace_list};
use crate::manage::split_format;
use crate::nvme::Nvme;
use crate::raw::{RawCommand, Transfer};
use std::time::Duration;

/// A namespace that is to be created (5.23; NVM Command Set 1.0, 4.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewNamespace {
    /// NSZE: its blocks.
    pub blocks: u64,
    /// NCAP: how many of them can be allocated at once; as many as there are, unless it is provisioned thinly.
    pub capacity: u64,
    /// FLBAS bits 3:0 and 6:5: the number of the LBA format, 0 to 63.
    pub lba_format: u8,
    /// FLBAS bit 4: metadata follows its block.
    pub metadata_extended: bool,
    /// DPS: protection information: the type in bits 2:0, bit 3 where it is first in the metadata.
    pub protection: u8,
    /// NMIC bit 0: it may be attached to more than one controller.
    pub shared: bool,
    /// ANAGRPID.
    pub ana_group: u32,
    /// NVMSETID.
    pub nvm_set: u16,
    /// ENDGID.
    pub endurance_group: u16,
}

impl Nvme {
    /// Returns the identifiers of the namespaces that are allocated, attached to this controller or not (5.17, CNS 10h).
    ///
    /// # Errors
    /// Those of [`identify_data`](Self::identify_data).
    pub fn allocated_namespaces(&self) -> Result<Vec<u32>> {
        let (mut ids, mut after): (Vec<u32>, u32) = (Vec::new(), 0);
        loop {
            let request = IdentifyRequest { cns: cns::ALLOCATED_NAMESPACES, nsid: after, ..IdentifyRequest::default() };
            let more = namespace_list(&self.identify_data(request)?, after);
            let full = more.len() == identify::LEN / 4;
            ids.extend(more);
            match ids.last() {
                Some(last) if full => after = *last,
                _ => return Ok(ids),
            }
        }
    }

    /// Returns the identifiers of the subsystem's controllers (5.17, CNS 13h), or of those that a namespace is attached to (CNS 12h); 2047 at most, from
    /// `from` on.
    ///
    /// # Errors
    /// Those of [`identify_data`](Self::identify_data).
    pub fn controllers(&self, attached_to: Option<u32>, from: u16) -> Result<Vec<u16>> {
        let cns = if attached_to.is_some() { cns::ATTACHED_CONTROLLERS } else { cns::CONTROLLERS };
        let request = IdentifyRequest { cns, nsid: attached_to.unwrap_or(0), cntid: from, csi: 0 };
        Ok(controller_list(&self.identify_data(request)?))
    }

    /// Creates a namespace, which is attached to no controller yet; returns its identifier. (SPDK: `spdk_nvme_ctrlr_create_ns`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no Namespace Management; [`Error::Refused`] with the controller's status, as `Namespace Insufficient
    /// Capacity`; [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn create_namespace(&self, new: &NewNamespace, timeout: Duration) -> Result<u32> {
        self.needs(self.identify().has_namespace_management(), "Namespace Management")?;
        let command = RawCommand { opcode: admin::NAMESPACE_MANAGEMENT, ..RawCommand::default() };
        self.command(&command, Transfer::Write(&new.bytes()), Some(timeout))
    }

    /// Deletes a namespace, or all of them (ffffffffh): **what is on it is lost**. Commands in flight on it end with the controller's status, and queues
    /// refuse further ones. (SPDK: `spdk_nvme_ctrlr_delete_ns`.)
    ///
    /// # Errors
    /// Those of [`create_namespace`](Self::create_namespace).
    pub fn delete_namespace(&self, nsid: u32, timeout: Duration) -> Result<()> {
        self.needs(self.identify().has_namespace_management(), "Namespace Management")?;
        let command = RawCommand { opcode: admin::NAMESPACE_MANAGEMENT, nsid, cdw10: 1, ..RawCommand::default() };
        self.command(&command, Transfer::None, Some(timeout)).map(drop)
    }

    /// Attaches a namespace to controllers, by their identifiers. (SPDK: `spdk_nvme_ctrlr_attach_ns`.)
    ///
    /// # Errors
    /// [`Error::QueuesExist`] where it has other blocks than the one of its identifier that went away while there were queues; the others of
    /// [`create_namespace`](Self::create_namespace).
    pub fn attach_namespace(&self, nsid: u32, controllers: &[u16]) -> Result<()> {
        self.attachment(nsid, controllers, 0)
    }

    /// Detaches a namespace from controllers. Commands in flight on it end with the controller's status, and queues refuse further ones. (SPDK:
    /// `spdk_nvme_ctrlr_detach_ns`.)
    ///
    /// # Errors
    /// Those of [`create_namespace`](Self::create_namespace).
    pub fn detach_namespace(&self, nsid: u32, controllers: &[u16]) -> Result<()> {
        self.attachment(nsid, controllers, 1)
    }

    fn attachment(&self, nsid: u32, controllers: &[u16], select: u32) -> Result<()> {
        self.needs(self.identify().has_namespace_management(), "Namespace Attachment")?;
        if controllers.len() >= identify::LEN / 2 {
            return Err(self.not_offered("a controller list has 2047 entries at most"));
        }
        // Controller list (4.4.1).
        let mut list = vec![0; identify::LEN];
        let words = std::iter::once(controllers.len() as u16).chain(controllers.iter().copied());
        list.chunks_mut(2).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        let command = RawCommand { opcode: admin::NAMESPACE_ATTACHMENT, nsid, cdw10: select, ..RawCommand::default() };
        self.command(&command, Transfer::Write(&list), None).map(drop)
    }
}

impl NewNamespace {
    /// The data of Namespace Management: the fields of Identify Namespace that the host decides.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; identify::LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let (low, high) = split_format(self.lba_format);
        put(0, &self.blocks.to_le_bytes());
        put(8, &self.capacity.to_le_bytes());
        put(26, &[(low | u32::from(self.metadata_extended) << 4 | high << 5) as u8]);
        put(29, &[self.protection]);
        put(30, &[u8::from(self.shared)]);
        put(92, &self.ana_group.to_le_bytes());
        put(100, &self.nvm_set.to_le_bytes());
        put(102, &self.endurance_group.to_le_bytes());
        bytes
    }
}
