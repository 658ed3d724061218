//! Admin commands (base 5).

use super::bits::{Status, admin};
use super::command::{Answer, Command};
use super::identify::{self, KELVIN, WARNING_TEMPERATURE};
use super::log::{self, Event, Health};
use super::poll::Held;
use super::queue::{Cq, Sq};
use super::quirk::Quirk;
use super::{Nvme, Shadow, data};
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;

/// Feature identifiers (base 5.27.1).
mod feature {
    pub(super) const ARBITRATION: u8 = 0x01;
    pub(super) const POWER: u8 = 0x02;
    pub(super) const TEMPERATURE: u8 = 0x04;
    pub(super) const ERROR_RECOVERY: u8 = 0x05;
    pub(super) const WRITE_CACHE: u8 = 0x06;
    pub(super) const QUEUES: u8 = 0x07;
    pub(super) const COALESCING: u8 = 0x08;
    pub(super) const VECTOR: u8 = 0x09;
    pub(super) const ATOMICITY: u8 = 0x0a;
    pub(super) const EVENTS: u8 = 0x0b;
    pub(super) const HOST_MEMORY: u8 = 0x0d;
    pub(super) const HOST_BEHAVIOR: u8 = 0x16;
    pub(super) const FDP: u8 = 0x1d;
    pub(super) const FDP_EVENTS: u8 = 0x1e;
    pub(super) const HOST_IDENTIFIER: u8 = 0x81;
    pub(super) const RESERVATION_MASK: u8 = 0x82;

    /// Those that are there always, and those of flexible data placement.
    pub(super) const ALL: [u8; 10] =
        [ARBITRATION, POWER, TEMPERATURE, ERROR_RECOVERY, WRITE_CACHE, QUEUES, COALESCING, VECTOR, ATOMICITY, EVENTS];
    pub(super) const PLACED: [u8; 2] = [FDP, FDP_EVENTS];
}

/// What Set Features changes.
pub(super) struct Features {
    /// Those that are only remembered, by their identifier.
    plain: [u32; 16],
    /// Over and under temperature thresholds, in kelvins.
    thresholds: [u16; 2],
    /// Interrupt vectors whose coalescing is off.
    uncoalesced: Vec<u16>,
    /// How many I/O queues of each kind the host was given.
    queues: u16,
    /// The temperature is outside of the thresholds, and the host wanted to know: it was told.
    told_temperature: bool,
}

impl Features {
    /// As they are after a reset.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            plain: [0; 16],
            thresholds: [WARNING_TEMPERATURE + KELVIN, 0],
            uncoalesced: Vec::new(),
            queues,
            told_temperature: false,
        }
    }

    /// For how many completions, and microseconds, an interrupt of a vector waits (base 5.27.1.8, 5.27.1.9); `None` where it does not.
    #[inline]
    pub(super) fn coalescing(&self, vector: u16) -> Option<(u32, u32)> {
        let value = self.plain[usize::from(feature::COALESCING)];
        let (threshold, time) = (value & 0xff, value >> 8 & 0xff);
        (time > 0 && !self.uncoalesced.contains(&vector)).then_some((threshold + 1, 100 * time))
    }

    /// Whether the host wants to be told of changed namespaces (Asynchronous Event Configuration, bit 8).
    pub(super) fn tells_of_namespaces(&self) -> bool {
        self.plain[usize::from(feature::EVENTS)] & 1 << 8 != 0
    }
}

/// How an admin command ended: its status and dword 0; `None` where the answer comes later.
pub(super) type Outcome = Result<Option<u32>, Status>;

/// Done, with nothing to tell.
const DONE: Outcome = Ok(Some(0));

impl Nvme {
    /// Does an admin command.
    pub(super) fn admin(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        // No fused commands; PRPs only (base 4.1.2: SGLs are not for admin commands over PCIe).
        if cmd.fuse() != 0 || cmd.psdt() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if let (admin::FORMAT | admin::SANITIZE | admin::NAMESPACE_MANAGEMENT, Some(memory)) =
            (cmd.opcode(), &mut self.store.host_memory)
        {
            memory.forget();
        }
        match cmd.opcode() {
            admin::IDENTIFY if self.params.quirk == Some(Quirk::Descriptors) && cmd.cdw10() & 0xff == 3 => Ok(None),
            admin::IDENTIFY => {
                let page = identify::identify(&self.params, &self.manage, &self.store, cmd)?;
                data::copy_out(host, cmd, &page[..], self.rules)?;
                DONE
            }
            admin::CREATE_CQ => self.create_cq(host, cmd),
            admin::CREATE_SQ => self.create_sq(host, cmd),
            admin::DELETE_CQ => self.delete_cq(cmd),
            admin::DELETE_SQ => self.delete_sq(cmd),
            admin::SET_FEATURES => self.set_feature(host, cmd),
            admin::GET_FEATURES => self.get_feature(host, cmd).map(Some),
            admin::GET_LOG_PAGE => self.log_page(host, cmd),
            admin::ABORT => Ok(Some(u32::from(!self.abort(cmd.cdw10() as u16, (cmd.cdw10() >> 16) as u16)))),
            admin::ASYNC_EVENT => self.events.request(cmd.cid()).map(|()| None),
            admin::DOORBELL_BUFFER if self.params.shadow => self.doorbell_buffer(host, cmd),
            admin::FORMAT => self.format(cmd),
            admin::SANITIZE => self.sanitize(cmd),
            admin::SELF_TEST => self.self_test(cmd),
            admin::FIRMWARE_DOWNLOAD => self.firmware_download(host, cmd),
            admin::FIRMWARE_COMMIT => self.firmware_commit(cmd),
            admin::SECURITY_SEND | admin::SECURITY_RECEIVE if self.params.quirk == Some(Quirk::Security) => {
                Err(Status::INVALID_OPCODE)
            }
            admin::SECURITY_SEND => self.security_send(host, cmd),
            admin::SECURITY_RECEIVE => self.security_receive(host, cmd),
            admin::DIRECTIVE_RECEIVE if self.params.has_directives() => self.directive_receive(host, cmd),
            admin::DIRECTIVE_SEND if self.params.has_directives() => {
                self.store.directive_send(cmd)?;
                DONE
            }
            admin::NAMESPACE_MANAGEMENT if self.params.spare > 0 => self.namespace_management(host, cmd),
            admin::NAMESPACE_ATTACHMENT if self.params.spare > 0 => self.namespace_attachment(host, cmd),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The queue id and size of a Create command, if they make sense.
    fn new_queue(&self, cmd: &Command, entry_size: u32, expected: u32, taken: bool) -> Result<(u16, u32), Status> {
        let (id, entries) = (cmd.cdw10() as u16, (cmd.cdw10() >> 16) + 1);
        if id == 0 || id > self.features.queues || taken {
            return Err(Status::INVALID_QUEUE_ID);
        }
        // The entry size in CC is the host's to set first; which status a wrong one gets is not said.
        if entries < 2 || entries > self.params.entries || entry_size != expected {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        // CAP.CQR: contiguous queues only.
        if cmd.cdw11() & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if cmd.prp1() & (self.rules.page - 1) != 0 {
            return Err(Status::PRP_OFFSET);
        }
        match self.params.quirk {
            Some(Quirk::Dma48) if cmd.prp1() >> 48 != 0 => Err(Status::INVALID_FIELD),
            Some(Quirk::Entries) if entries > 2 => Err(Status::INVALID_QUEUE_SIZE),
            _ => Ok((id, entries)),
        }
    }

    /// Create I/O Completion Queue (base 5.4).
    fn create_cq(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let taken = self.queues.cq(cmd.cdw10() as u16).is_some();
        let (id, entries) = self.new_queue(cmd, self.cc.iocqes(), 4, taken)?;
        let vector = (cmd.cdw11() >> 16) as u16;
        if vector >= self.params.vector_count() {
            return Err(Status::INVALID_VECTOR);
        }
        let vector = (cmd.cdw11() & 2 != 0).then_some(vector);
        let vector = if self.params.quirk.is_some_and(Quirk::has_one_vector) { vector.map(|_| 0) } else { vector };
        self.clear_doorbell(host, 2 * u64::from(id) + 1);
        self.queues.cqs[usize::from(id)] = Some(Cq::new(id, cmd.prp1(), entries, vector));
        DONE
    }

    /// Create I/O Submission Queue (base 5.5).
    fn create_sq(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let taken = self.queues.sq(cmd.cdw10() as u16).is_some();
        let long = self.params.quirk == Some(Quirk::LongEntries);
        let (id, entries) = self.new_queue(cmd, self.cc.iosqes(), 6 + u32::from(long), taken)?;
        let cq = (cmd.cdw11() >> 16) as u16;
        if cq == 0 || cq > self.features.queues {
            return Err(Status::INVALID_QUEUE_ID);
        }
        self.queues.cq(cq).ok_or(Status::CQ_INVALID)?.users += 1;
        self.clear_doorbell(host, 2 * u64::from(id));
        self.queues.sqs[usize::from(id)] = Some(Sq::new(id, cq, cmd.prp1(), entries, long));
        self.queues.active.push(id);
        DONE
    }

    /// Delete I/O Completion Queue (base 5.6).
    fn delete_cq(&mut self, cmd: &Command) -> Outcome {
        let id = cmd.cdw10() as u16;
        let cq = self.queues.cq(id).filter(|cq| cq.id != 0).ok_or(Status::INVALID_QUEUE_ID)?;
        if cq.users > 0 {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.queues.cqs[usize::from(id)] = None;
        DONE
    }

    /// Delete I/O Submission Queue (base 5.7). Commands are done as they are fetched: those not fetched yet are forgotten, as
    /// the host may no longer expect them.
    fn delete_sq(&mut self, cmd: &Command) -> Outcome {
        let id = cmd.cdw10() as u16;
        let cq = self.queues.sq(id).filter(|sq| sq.id != 0).map(|sq| sq.cq).ok_or(Status::INVALID_QUEUE_ID)?;
        if let Some(cq) = self.queues.cq(cq) {
            cq.users -= 1;
        }
        self.queues.sqs[usize::from(id)] = None;
        self.queues.active.retain(|q| *q != id);
        self.held.retain(|h| h.sq() != id);
        DONE
    }

    /// Abort (base 5.1). Commands are done as they are fetched, so only what waits for an event, or what a fault delays, can be.
    fn abort(&mut self, sq: u16, cid: u16) -> bool {
        let event = sq == 0 && self.events.abort(cid);
        if event {
            self.deferred.push_back(Answer::new(0, cid, Err(Status::ABORT_REQUESTED)));
        }
        event || self.held.iter_mut().filter(|h| h.is(sq, cid)).map(Held::abort).count() > 0
    }

    /// Set Features (base 5.27).
    fn set_feature(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let (id, value) = (cmd.cdw10() as u8, cmd.cdw11());
        // The save bit.
        if cmd.cdw10() >> 31 != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        match id {
            feature::ARBITRATION | feature::ERROR_RECOVERY | feature::COALESCING | feature::ATOMICITY => {
                self.features.plain[usize::from(id)] = value;
            }
            feature::EVENTS => {
                self.features.plain[usize::from(id)] = value;
                self.check_temperature();
            }
            feature::POWER if value & 0x1f == 0 => {}
            feature::TEMPERATURE => {
                // Sensor 0 is the composite temperature, 15 all of them; others there are none.
                let side = (value >> 20 & 3) as usize;
                let limit = self.features.thresholds.get_mut(side).filter(|_| [0, 15].contains(&(value >> 16 & 15)));
                *limit.ok_or(Status::INVALID_FIELD)? = value as u16;
                self.check_temperature();
            }
            feature::WRITE_CACHE => self.store.write_cache = value & 1 != 0,
            feature::QUEUES => return self.set_queues(value).map(Some),
            feature::VECTOR => {
                let vector = self.vector(value)?;
                self.features.uncoalesced.retain(|v| *v != vector);
                if value & 1 << 16 != 0 {
                    self.features.uncoalesced.push(vector);
                }
            }
            feature::HOST_MEMORY => {
                let memory = self.store.host_memory.as_mut().ok_or(Status::INVALID_FIELD)?;
                memory.set(host, cmd, self.rules)?;
            }
            // LBAFEE, in byte 2: this controller's formats are the same without.
            feature::HOST_BEHAVIOR if self.params.metadata.is_extended() => {
                let mut behavior = [0; 512];
                data::copy_in(host, cmd, &mut behavior, self.rules)?;
                if behavior[2] > 1 {
                    return Err(Status::INVALID_FIELD);
                }
            }
            feature::HOST_IDENTIFIER => {
                let member = self.store.member.as_mut().ok_or(Status::INVALID_FIELD)?;
                if member.host != [0; 16] {
                    return Err(Status::COMMAND_SEQUENCE);
                }
                member.extended = value & 1 != 0;
                let len = if member.extended { 16 } else { 8 };
                data::copy_in(host, cmd, &mut member.host[..len], self.rules)?;
                member.identified();
            }
            feature::RESERVATION_MASK => {
                self.store.allocated(cmd.nsid())?;
                self.store.member.as_ref().ok_or(Status::INVALID_FIELD)?.inbox.set_mask(cmd.nsid(), value);
            }
            feature::FDP => {
                let namespaces = self.store.namespaces.iter().any(|ns| ns.allocated);
                self.store.fdp()?.set_mode(value, cmd.cdw12(), namespaces)?;
            }
            feature::FDP_EVENTS => {
                let mut types = vec![0; self.store.fdp()?.types_in(value)?];
                data::copy_in(host, cmd, &mut types, self.rules)?;
                self.store.fdp()?.set_recorded(value, &types, cmd.cdw12() & 1 != 0)?;
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        DONE
    }

    /// Get Features (base 5.15): the current values.
    fn get_feature(&mut self, host: &Host<'_>, cmd: &Command) -> Result<u32, Status> {
        let (id, value) = (cmd.cdw10() as u8, cmd.cdw11());
        // Select: only the current value; ONCS says so.
        if cmd.cdw10() >> 8 & 7 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(match id {
            feature::ARBITRATION
            | feature::ERROR_RECOVERY
            | feature::COALESCING
            | feature::ATOMICITY
            | feature::EVENTS => self.features.plain[usize::from(id)],
            feature::POWER => 0,
            feature::TEMPERATURE => {
                let limit = self.features.thresholds.get((value >> 20 & 3) as usize).filter(|_| value >> 16 & 15 == 0);
                u32::from(*limit.ok_or(Status::INVALID_FIELD)?)
            }
            feature::WRITE_CACHE => self.store.write_cache.into(),
            feature::QUEUES => self.granted_queues(),
            feature::VECTOR => {
                let vector = self.vector(value)?;
                u32::from(self.features.uncoalesced.contains(&vector)) << 16 | u32::from(vector)
            }
            feature::HOST_IDENTIFIER => {
                let member = self.store.member.as_ref().ok_or(Status::INVALID_FIELD)?;
                let len = if value & 1 != 0 { 16 } else { 8 };
                data::copy_out(host, cmd, &member.host[..len], self.rules)?;
                0
            }
            feature::RESERVATION_MASK => {
                self.store.member.as_ref().ok_or(Status::INVALID_FIELD)?.inbox.mask(cmd.nsid())
            }
            feature::HOST_MEMORY => {
                let memory = self.store.host_memory.as_ref().ok_or(Status::INVALID_FIELD)?;
                let (bytes, enabled) = memory.get();
                data::copy_out(host, cmd, &bytes, self.rules)?;
                enabled
            }
            feature::FDP => self.store.fdp()?.mode(value)?,
            feature::FDP_EVENTS => {
                let types = self.store.fdp()?.recorded(value)?;
                data::copy_out(host, cmd, &types, self.rules)?;
                types.len() as u32 / 2
            }
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Number of Queues (base 5.27.1.5): submission queues in bits 15:0, completion queues in 31:16, less one each.
    fn set_queues(&mut self, value: u32) -> Result<u32, Status> {
        let (submission, completion) = (value as u16, (value >> 16) as u16);
        if submission == u16::MAX || completion == u16::MAX {
            return Err(Status::INVALID_FIELD);
        }
        if !self.queues.active.is_empty() || self.queues.cqs.iter().skip(1).any(Option::is_some) {
            return Err(Status::COMMAND_SEQUENCE);
        }
        // The two are not counted apart here: what the host asks most for decides.
        let most = if self.params.quirk == Some(Quirk::LongEntries) { 1 } else { self.params.queues };
        self.features.queues = (submission.max(completion) + 1).min(most);
        Ok(self.granted_queues())
    }

    fn granted_queues(&self) -> u32 {
        let n = u32::from(self.features.queues) - 1;
        n << 16 | n
    }

    fn vector(&self, value: u32) -> Result<u16, Status> {
        Some(value as u16).filter(|v| *v < self.params.vector_count()).ok_or(Status::INVALID_FIELD)
    }

    /// Reports the temperature as it leaves the thresholds, where the host asked for that (Asynchronous Event Configuration, bit 1).
    fn check_temperature(&mut self) {
        let tell = self.too_hot() && self.features.plain[usize::from(feature::EVENTS)] & 2 != 0;
        if tell && !self.features.told_temperature {
            self.events.raise(Event::TemperatureThreshold);
        }
        self.features.told_temperature = tell;
    }

    fn too_hot(&self) -> bool {
        let [over, under] = self.features.thresholds;
        let temperature = self.params.temperature + KELVIN;
        temperature >= over || temperature <= under
    }

    /// Get Log Page (base 5.16).
    fn log_page(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let (id, retain) = (cmd.cdw10() as u8, cmd.cdw10() & 1 << 15 != 0);
        let dwords = (u64::from(cmd.cdw11() & 0xffff) << 16 | u64::from(cmd.cdw10() >> 16)) + 1;
        let offset = cmd.cdw12_13();
        let mut log = match id {
            log::page::ERROR => self.errors.bytes(),
            // Of the whole controller: there is none a namespace.
            log::page::SMART if [0, u32::MAX].contains(&cmd.nsid()) => {
                let health = Health { temperature: self.params.temperature + KELVIN, too_hot: self.too_hot() };
                log::smart(&health, &self.store.counters, &self.errors)
            }
            log::page::SMART => return Err(Status::INVALID_FIELD),
            log::page::FIRMWARE => self.manage.firmware_slots(),
            log::page::SELF_TEST => self.manage.self_test_log(),
            log::page::SANITIZE => self.sanitize_log(),
            log::page::CHANGED_NAMESPACES => self.events.changed_namespaces(),
            log::page::RESERVATION if self.store.member.is_some() => {
                self.store.member.as_ref().map(|member| member.inbox.page(retain)).unwrap_or_default()
            }
            log::page::HOST_MEMORY if self.params.hmb > 0 => {
                self.store.host_memory.as_ref().map(|memory| memory.log()).unwrap_or_default()
            }
            log::page::SUPPORTED => log::supported(&self.params),
            log::page::COMMANDS => log::commands(&self.params),
            log::page::FEATURES => {
                let placed = feature::PLACED.into_iter().filter(|_| self.params.fdp);
                let shared = [feature::HOST_IDENTIFIER, feature::RESERVATION_MASK];
                let shared = shared.into_iter().filter(|_| self.store.member.is_some());
                let memory = self.store.host_memory.as_ref().map(|_| feature::HOST_MEMORY);
                log::features(feature::ALL.into_iter().chain(placed).chain(shared).chain(memory))
            }
            log::page::FDP_CONFIGS..=log::page::FDP_EVENTS if self.params.fdp => {
                self.store.fdp()?.log(id, (cmd.cdw11() >> 16) as u16, cmd.cdw10() & 1 << 8 != 0)?
            }
            log::page::MANAGEMENT => log::management(),
            _ => return Err(Status::INVALID_LOG_PAGE),
        };
        if !offset.is_multiple_of(4) || offset > log.len() as u64 || dwords * 4 > self.store.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        log.drain(..offset as usize);
        log.resize((dwords * 4).min(data::LONGEST) as usize, 0);
        data::copy_out(host, cmd, &log, self.rules)?;
        if !retain {
            self.events.read(id);
        }
        DONE
    }

    /// Directive Receive (base 5.10).
    fn directive_receive(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let len = (u64::from(cmd.cdw10()) + 1) * 4;
        if len > self.store.max_transfer.min(data::LONGEST) {
            return Err(Status::INVALID_FIELD);
        }
        let (mut bytes, result) = self.store.directive_receive(cmd)?;
        if !bytes.is_empty() {
            bytes.resize(len as usize, 0);
            data::copy_out(host, cmd, &bytes, self.rules)?;
        }
        Ok(Some(result))
    }

    /// Doorbell Buffer Config (base 5.8): two pages of the host's, for tails and heads, and for what the controller saw of them.
    fn doorbell_buffer(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let pages = [cmd.prp1(), cmd.prp2()];
        if pages.iter().any(|p| p & (self.rules.page - 1) != 0) {
            return Err(Status::PRP_OFFSET);
        }
        let len = self.rules.page;
        if let Some(page) = pages.into_iter().find(|p| host.dma(Iova(*p), len).is_none_or(|m| !m.writable())) {
            return Err(data::denied(host, "a doorbell buffer", page, len, true));
        }
        self.shadow = Some(Shadow { values: pages[0], seen: pages[1] });
        DONE
    }
}
