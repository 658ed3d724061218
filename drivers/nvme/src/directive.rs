//! Directives (NVM Express Base 2.0, 5.10, 5.11 and 8.7): which a namespace has, and streams of writes whose data is used and dropped together.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::command::admin;
use crate::error::Result;
use crate::nvme::Nvme;
use crate::raw::{RawCommand, Transfer};

/// Types of directives (8.7).
mod dtype {
    pub const IDENTIFY: u8 = 0x00;
    pub const STREAMS: u8 = 0x01;
    pub const DATA_PLACEMENT: u8 = 0x02;
}

/// Operations: Identify's Return Parameters and Enable Directive (8.7.2), and those of Streams (8.7.3).
mod doper {
    pub const RETURN_PARAMETERS: u8 = 0x01;
    pub const STREAM_STATUS: u8 = 0x02;
    pub const ALLOCATE: u8 = 0x03;
    pub const ENABLE: u8 = 0x01;
    pub const RELEASE_STREAM: u8 = 0x01;
    pub const RELEASE_RESOURCES: u8 = 0x02;
}

/// A Directive Send or Receive: fields of both (5.10, 5.11).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Directive {
    /// NSID.
    pub nsid: u32,
    /// DTYPE: the directive; 0 is Identify, 1 Streams, 2 Data Placement.
    pub kind: u8,
    /// DOPER: what is done with it.
    pub operation: u8,
    /// DSPEC: what is the operation's own, as a stream.
    pub specific: u16,
    /// Dword 12: what is the operation's own.
    pub cdw12: u32,
}

/// A directive that a controller, or a namespace, has (8.7.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirectiveState {
    /// Whether the directive is supported.
    pub supported: bool,
    /// Whether the directive is enabled: commands may name it.
    pub enabled: bool,
    /// Whether the directive stays enabled across resets.
    pub persistent: bool,
}

/// The directives of a namespace (Identify directive, Return Parameters, 8.7.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Directives {
    /// Streams.
    pub streams: DirectiveState,
    /// Data Placement.
    pub data_placement: DirectiveState,
}

/// What streams are there (Streams directive, Return Parameters, 8.7.3.1.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamParameters {
    /// MSL: streams of the subsystem at most.
    pub limit: u16,
    /// NSSA: those that no namespace has for its own.
    pub available: u16,
    /// NSSO: those of them that are open.
    pub open: u16,
    /// SWS: what writes to a stream should be multiples of, in blocks.
    pub write_size: u32,
    /// SGS: what is used and dropped together best, in multiples of [`write_size`](Self::write_size).
    pub granularity: u16,
    /// NSA: streams that the namespace has for its own.
    pub allocated: u16,
    /// NSO: those of them that are open.
    pub allocated_open: u16,
}

impl Directives {
    fn parse(bytes: &[u8]) -> Self {
        let state = |kind: u8| {
            // A bit for each type.
            let has = |at: usize| u8_at(bytes, at) >> kind & 1 != 0;
            DirectiveState { supported: has(0), enabled: has(32), persistent: has(64) }
        };
        Self { streams: state(dtype::STREAMS), data_placement: state(dtype::DATA_PLACEMENT) }
    }
}

impl Nvme {
    /// Receives `data` of a directive (Directive Receive, 5.10), and returns dword 0 of the completion. (nvme-cli: `dir-receive`.)
    ///
    /// # Errors
    /// [`NotOffered`](crate::Error::NotOffered) where the controller has no directives (OACS bit 5); [`Refused`](crate::Error::Refused) with the
    /// controller's status; [`Unanswered`](crate::Error::Unanswered), [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as
    /// every command.
    pub fn directive_receive(&self, directive: Directive, data: &mut [u8]) -> Result<u32> {
        self.needs(self.identify().has_directives(), "directives")?;
        let command = directive.command(admin::DIRECTIVE_RECEIVE, data.len());
        self.command(&command, if data.is_empty() { Transfer::None } else { Transfer::Read(data) }, None)
    }

    /// Sends `data` of a directive (Directive Send, 5.11), and returns dword 0 of the completion. (nvme-cli: `dir-send`.)
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn directive_send(&self, directive: Directive, data: &[u8]) -> Result<u32> {
        self.needs(self.identify().has_directives(), "directives")?;
        let command = directive.command(admin::DIRECTIVE_SEND, data.len());
        self.command(&command, if data.is_empty() { Transfer::None } else { Transfer::Write(data) }, None)
    }

    /// Returns the directives of a namespace, or of the controller (ffffffffh).
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn directives(&self, nsid: u32) -> Result<Directives> {
        let mut bytes = [0; 4096];
        let parameters = Directive { nsid, operation: doper::RETURN_PARAMETERS, ..Directive::default() };
        self.directive_receive(parameters, &mut bytes)?;
        Ok(Directives::parse(&bytes))
    }

    /// Has commands on a namespace name streams, or not (8.7.2.2.1). (SPDK: `spdk_nvme_ctrlr_cmd_directive_send`.)
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn enable_streams(&self, nsid: u32, enable: bool) -> Result<()> {
        let cdw12 = u32::from(enable) | u32::from(dtype::STREAMS) << 8;
        let kind = dtype::IDENTIFY;
        self.directive_send(Directive { nsid, kind, operation: doper::ENABLE, specific: 0, cdw12 }, &[]).map(drop)
    }

    /// Returns what streams there are for a namespace.
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn stream_parameters(&self, nsid: u32) -> Result<StreamParameters> {
        let mut b = [0; 32];
        self.directive_receive(streams(nsid, doper::RETURN_PARAMETERS), &mut b)?;
        Ok(StreamParameters {
            limit: u16_at(&b, 0),
            available: u16_at(&b, 2),
            open: u16_at(&b, 4),
            write_size: u32_at(&b, 16),
            granularity: u16_at(&b, 20),
            allocated: u16_at(&b, 22),
            allocated_open: u16_at(&b, 24),
        })
    }

    /// Returns the streams of a namespace that are open (8.7.3.1.2).
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn open_streams(&self, nsid: u32) -> Result<Vec<u16>> {
        // As many as there can be, and their number.
        let most = (self.max_transfer() as usize).min(2 * 65536);
        let mut bytes = vec![0; most];
        self.directive_receive(streams(nsid, doper::STREAM_STATUS), &mut bytes)?;
        let count = usize::from(u16_at(&bytes, 0)).min(most / 2 - 1);
        Ok((1..=count).map(|i| u16_at(&bytes, 2 * i)).collect())
    }

    /// Has a namespace have so many streams for its own (8.7.3.1.3); returns how many it has.
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn allocate_streams(&self, nsid: u32, count: u16) -> Result<u16> {
        let allocate = Directive { cdw12: count.into(), ..streams(nsid, doper::ALLOCATE) };
        Ok(self.directive_receive(allocate, &mut [])? as u16)
    }

    /// Gives back the streams that a namespace has for its own (8.7.3.2.2).
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn release_streams(&self, nsid: u32) -> Result<()> {
        self.directive_send(streams(nsid, doper::RELEASE_RESOURCES), &[]).map(drop)
    }

    /// Closes a stream: its number may be another's (8.7.3.2.1).
    ///
    /// # Errors
    /// Those of [`directive_receive`](Self::directive_receive).
    pub fn release_stream(&self, nsid: u32, stream: u16) -> Result<()> {
        let release = Directive { specific: stream, ..streams(nsid, doper::RELEASE_STREAM) };
        self.directive_send(release, &[]).map(drop)
    }
}

fn streams(nsid: u32, operation: u8) -> Directive {
    Directive { nsid, kind: dtype::STREAMS, operation, ..Directive::default() }
}

impl Directive {
    fn command(self, opcode: u8, len: usize) -> RawCommand {
        let Self { nsid, kind, operation, specific, cdw12 } = self;
        RawCommand {
            opcode,
            nsid,
            // NUMD is 0's based, and 0 where there is no data.
            cdw10: (len / 4).saturating_sub(1) as u32,
            cdw11: u32::from(operation) | u32::from(kind) << 8 | u32::from(specific) << 16,
            cdw12,
            ..RawCommand::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_has_its_fields_where_the_standard_has_them() {
        let directive = Directive { nsid: 3, kind: 1, operation: 2, specific: 0x55, cdw12: 9 };
        let command = directive.command(0x1a, 4096);
        assert_eq!((command.opcode, command.nsid, command.cdw10), (0x1a, 3, 1023));
        assert_eq!((command.cdw11, command.cdw12), (0x0055_0102, 9));
        assert_eq!(directive.command(0x19, 0).cdw10, 0);
    }

    #[test]
    fn directives_have_a_bit_each() {
        let mut bytes = [0; 96];
        (bytes[0], bytes[32], bytes[64]) = (0b111, 0b001, 0b100);
        let found = Directives::parse(&bytes);
        assert_eq!(found.streams, DirectiveState { supported: true, ..DirectiveState::default() });
        assert_eq!(found.data_placement, DirectiveState { supported: true, enabled: false, persistent: true });
        assert_eq!(Directives::parse(&[]), Directives::default());
    }
}
