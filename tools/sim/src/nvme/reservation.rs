//! Reservations (base 7.2 to 7.5, 8.19), which controllers of one subsystem share: those of this process that were given the same name. Blocks they share only
//! where these are a file's. Commands are done as they are fetched, so that a preempted host has none to abort. Who is told of what is in `notices`.

use super::bits::{Status, io};
use super::command::Command;
use super::data::{self, Rules};
use super::io::{Store, active};
use super::notices::{Change, Inbox};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};
use wholebar_core::model::Host;

/// What controllers of one subsystem share.
pub(super) struct Subsystem {
    namespaces: Mutex<BTreeMap<u32, Reservation>>,
    controllers: AtomicU16,
    inboxes: Mutex<Vec<Weak<Inbox>>>,
}

/// A controller's place in its subsystem.
pub(super) struct Member {
    subsystem: Arc<Subsystem>,
    /// CNTLID.
    pub(super) controller: u16,
    /// The host's identifier, and how many bytes of it were given: none while it is zeros.
    pub(super) host: [u8; 16],
    pub(super) extended: bool,
    /// What it has to tell its host.
    pub(super) inbox: Arc<Inbox>,
}

/// A host: its identifier, and where that is zeros the controller, which nobody shares with it (base 5.27.1.25).
pub(super) type Who = ([u8; 16], Option<u16>);

/// What is registered for a namespace.
#[derive(Default)]
struct Reservation {
    generation: u32,
    /// RTYPE; 0 for none.
    kind: u8,
    holder: Option<Who>,
    persist: bool,
    registrants: Vec<Registrant>,
}

#[derive(Clone, Copy)]
struct Registrant {
    who: Who,
    key: u64,
    controller: u16,
}

/// Types of which every registrant is a holder; and those of which registrants have the rights of holders.
const ALL_REGISTRANTS: [u8; 2] = [5, 6];
const REGISTRANTS: [u8; 4] = [3, 4, 5, 6];
/// Those that let others read.
const WRITE_EXCLUSIVE: [u8; 3] = [1, 3, 5];

static SUBSYSTEMS: LazyLock<Mutex<HashMap<String, Weak<Subsystem>>>> = LazyLock::new(Mutex::default);

impl Member {
    /// The next controller of the subsystem of this name, which is there as long as a controller of it is.
    pub(super) fn join(name: &str) -> Self {
        let mut all = SUBSYSTEMS.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|_, subsystem| subsystem.strong_count() > 0);
        let subsystem = all.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let (namespaces, inboxes) = (Mutex::default(), Mutex::default());
            Arc::new(Subsystem { namespaces, controllers: AtomicU16::new(0), inboxes })
        });
        all.insert(name.to_owned(), Arc::downgrade(&subsystem));
        let controller = subsystem.controllers.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::new(([0; 16], Some(controller))));
        let mut inboxes = subsystem.inboxes.lock().unwrap_or_else(|e| e.into_inner());
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(&inbox));
        drop(inboxes);
        Self { subsystem, controller, host: [0; 16], extended: false, inbox }
    }

    /// Tells hosts what was done to a namespace's reservation.
    fn tell(&self, nsid: u32, told: &[(Who, Change)]) {
        let inboxes = self.subsystem.inboxes.lock().unwrap_or_else(|e| e.into_inner());
        inboxes.iter().filter_map(Weak::upgrade).for_each(|inbox| inbox.take(nsid, told));
    }

    /// Its host said who it is.
    pub(super) fn identified(&self) {
        self.inbox.belongs_to(self.who());
    }

    fn who(&self) -> Who {
        (self.host, (self.host == [0; 16]).then_some(self.controller))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Reservation>> {
        self.subsystem.namespaces.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A controller level reset: the host's identifier is zeros again, and a host that had no other is forgotten.
    pub(super) fn reset(&mut self) {
        let who = self.who();
        if who.1.is_some() {
            self.lock().values_mut().for_each(|reservation| reservation.forget(|r| r.who == who));
        }
        (self.host, self.extended) = ([0; 16], false);
        self.inbox.reset(self.who());
    }

    /// Whether its host may do this to a namespace (base 8.19, "Command Behavior in the Presence of a Reservation").
    fn may(&self, nsid: u32, writes: bool) -> bool {
        let all = self.lock();
        let Some(reservation) = all.get(&nsid).filter(|r| r.kind != 0) else { return true };
        let who = self.who();
        reservation.holder == Some(who)
            || REGISTRANTS.contains(&reservation.kind) && reservation.of(who).is_some()
            || !writes && WRITE_EXCLUSIVE.contains(&reservation.kind)
    }
}

impl Reservation {
    fn of(&self, who: Who) -> Option<&Registrant> {
        self.registrants.iter().find(|registrant| registrant.who == who)
    }

    /// Who is registered beside one.
    fn others(&self, one: Who) -> impl Iterator<Item = Who> {
        self.registrants.iter().map(|registrant| registrant.who).filter(move |who| *who != one)
    }

    fn holds(&self, who: Who) -> bool {
        self.kind != 0 && (self.holder == Some(who) || ALL_REGISTRANTS.contains(&self.kind) && self.of(who).is_some())
    }

    /// Registrations end, and with the holder's the reservation; one that all hold with the last of them.
    fn forget(&mut self, which: impl Fn(&Registrant) -> bool) {
        self.registrants.retain(|registrant| !which(registrant));
        let held = match ALL_REGISTRANTS.contains(&self.kind) {
            true => !self.registrants.is_empty(),
            false => self.holder.is_some_and(|who| self.of(who).is_some()),
        };
        if !held {
            (self.kind, self.holder) = (0, None);
        }
    }

    /// Whether a host is registered, with this key.
    fn check(&self, who: Who, key: u64) -> Result<(), Status> {
        self.of(who).filter(|registrant| registrant.key == key).map(drop).ok_or(Status::RESERVATION_CONFLICT)
    }

    fn set(&mut self, who: Who, kind: u8) {
        (self.kind, self.holder) = (kind, Some(who));
    }

    /// Reservation Register (base 7.3).
    fn register(
        &mut self,
        me: Registrant,
        cdw10: u32,
        [current, new]: [u64; 2],
        told: &mut Vec<(Who, Change)>,
    ) -> Result<(), Status> {
        let ignore = cdw10 & 1 << 3 != 0;
        let known = self.of(me.who).copied();
        let right = known.is_some_and(|registrant| ignore || registrant.key == current);
        match cdw10 & 7 {
            0 => match known {
                Some(registrant) if registrant.key == new => return Ok(()),
                Some(_) => return Err(Status::RESERVATION_CONFLICT),
                None => self.registrants.push(Registrant { key: new, ..me }),
            },
            1 | 2 if !right => return Err(Status::RESERVATION_CONFLICT),
            1 => {
                let shared = REGISTRANTS.contains(&self.kind);
                self.forget(|registrant| registrant.who == me.who);
                if shared && self.kind == 0 {
                    told.extend(self.others(me.who).map(|who| (who, Change::ReservationReleased)));
                }
            }
            2 => self.registrants.iter_mut().filter(|r| r.who == me.who).for_each(|r| r.key = new),
            _ => return Err(Status::INVALID_FIELD),
        }
        match cdw10 >> 30 {
            2 => self.persist = false,
            3 => self.persist = true,
            _ => {}
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Reservation Acquire (base 7.2).
    fn acquire(
        &mut self,
        who: Who,
        cdw10: u32,
        [key, other]: [u64; 2],
        told: &mut Vec<(Who, Change)>,
    ) -> Result<(), Status> {
        self.check(who, key)?;
        let kind = (cdw10 >> 8) as u8;
        if !(1..=6).contains(&kind) {
            return Err(Status::INVALID_FIELD);
        }
        match cdw10 & 7 {
            0 if self.kind == 0 => self.set(who, kind),
            0 if self.holds(who) && self.kind == kind => {}
            0 => return Err(Status::RESERVATION_CONFLICT),
            1 | 2 => {
                let before: Vec<_> = self.others(who).collect();
                let (shared, held) = (REGISTRANTS.contains(&self.kind), (self.kind, self.holder));
                let all = ALL_REGISTRANTS.contains(&self.kind);
                let holder = self.holder.and_then(|holder| self.of(holder)).map(|registrant| registrant.key);
                // Key 0 takes it from all who hold it.
                if all && other == 0 {
                    self.registrants.retain(|registrant| registrant.who == who);
                    self.set(who, kind);
                } else if self.kind != 0 && !all && holder == Some(other) {
                    self.registrants.retain(|registrant| registrant.who == who || registrant.key != other);
                    self.set(who, kind);
                } else if other == 0 {
                    return Err(Status::INVALID_FIELD);
                } else if self.registrants.iter().any(|registrant| registrant.key == other) {
                    self.forget(|registrant| registrant.key == other);
                } else {
                    return Err(Status::RESERVATION_CONFLICT);
                }
                self.generation = self.generation.wrapping_add(1);
                let gone = before.iter().filter(|host| self.of(**host).is_none());
                told.extend(gone.map(|host| (*host, Change::RegistrationPreempted)));
                if shared && held != (self.kind, self.holder) {
                    told.extend(self.others(who).map(|host| (host, Change::ReservationReleased)));
                }
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(())
    }

    /// Reservation Release (base 7.4).
    fn release(&mut self, who: Who, cdw10: u32, key: u64, told: &mut Vec<(Who, Change)>) -> Result<(), Status> {
        self.check(who, key)?;
        match cdw10 & 7 {
            0 if !self.holds(who) => Ok(()),
            0 if self.kind != (cdw10 >> 8) as u8 => Err(Status::INVALID_FIELD),
            0 => {
                if REGISTRANTS.contains(&self.kind) {
                    told.extend(self.others(who).map(|host| (host, Change::ReservationReleased)));
                }
                (self.kind, self.holder) = (0, None);
                Ok(())
            }
            1 => {
                told.extend(self.others(who).map(|host| (host, Change::ReservationPreempted)));
                self.registrants.clear();
                (self.kind, self.holder, self.generation) = (0, None, self.generation.wrapping_add(1));
                Ok(())
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The data of Reservation Report (base 7.5).
    fn report(&self, extended: bool) -> Vec<u8> {
        let size = if extended { 64 } else { 24 };
        let mut bytes = vec![0; size];
        bytes[..4].copy_from_slice(&self.generation.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5..7].copy_from_slice(&(self.registrants.len() as u16).to_le_bytes());
        bytes[9] = self.persist.into();
        for registrant in &self.registrants {
            let mut one = vec![0; size];
            one[..2].copy_from_slice(&registrant.controller.to_le_bytes());
            one[2] = self.holds(registrant.who).into();
            let (key, host, len) = if extended { (8, 16, 16) } else { (16, 8, 8) };
            one[key..key + 8].copy_from_slice(&registrant.key.to_le_bytes());
            one[host..host + len].copy_from_slice(&registrant.who.0[..len]);
            bytes.extend(one);
        }
        bytes
    }
}

impl Store {
    /// Whether the reservation of a command's namespace lets it be done.
    #[inline]
    pub(super) fn may_access(&self, cmd: &Command) -> Result<(), Status> {
        match &self.member {
            None => Ok(()),
            Some(member) => {
                let writes = match cmd.opcode() {
                    io::READ | io::COMPARE | io::VERIFY => false,
                    io::WRITE | io::WRITE_ZEROES | io::WRITE_UNCORRECTABLE | io::DATASET | io::COPY | io::FLUSH => true,
                    _ => return Ok(()),
                };
                if member.may(cmd.nsid(), writes) { Ok(()) } else { Err(Status::RESERVATION_CONFLICT) }
            }
        }
    }

    /// A reservation command.
    pub(super) fn reserve(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        active(&mut self.namespaces, cmd.nsid())?;
        let member = self.member.as_ref().ok_or(Status::INVALID_OPCODE)?;
        let mut keys = [0; 16];
        let len = match cmd.opcode() {
            io::RESERVATION_REPORT => 0,
            io::RESERVATION_RELEASE => 8,
            _ => 16,
        };
        if len > 0 {
            data::copy_in(host, cmd, &mut keys[..len], rules)?;
        }
        let (words, _) = keys.as_chunks::<8>();
        let keys = [0, 1].map(|i| u64::from_le_bytes(words[i]));
        let (who, cdw10) = (member.who(), cmd.cdw10());
        let mut all = member.lock();
        let reservation = all.entry(cmd.nsid()).or_default();
        let mut told = Vec::new();
        let done = match cmd.opcode() {
            io::RESERVATION_REGISTER if cdw10 >> 30 == 1 => Err(Status::INVALID_FIELD),
            io::RESERVATION_REGISTER => {
                let me = Registrant { who, key: 0, controller: member.controller };
                reservation.register(me, cdw10, keys, &mut told)
            }
            // IEKEY is not for these.
            io::RESERVATION_ACQUIRE | io::RESERVATION_RELEASE if cdw10 & 1 << 3 != 0 => Err(Status::INVALID_FIELD),
            io::RESERVATION_ACQUIRE => reservation.acquire(who, cdw10, keys, &mut told),
            io::RESERVATION_RELEASE => reservation.release(who, cdw10, keys[0], &mut told),
            _ => {
                let extended = cmd.cdw11() & 1 != 0;
                if extended != member.extended {
                    return Err(Status::HOST_IDENTIFIER_FORMAT);
                }
                let len = (u64::from(cdw10) + 1) * 4;
                if len > self.max_transfer.min(data::LONGEST) {
                    return Err(Status::INVALID_FIELD);
                }
                let mut bytes = reservation.report(extended);
                bytes.resize(len as usize, 0);
                data::copy_out(host, cmd, &bytes, rules)
            }
        };
        // A command that fails has done nothing.
        member.tell(cmd.nsid(), if done.is_ok() { &told } else { &[] });
        done
    }
}
