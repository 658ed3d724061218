//! A port whose queues are a front end's rings: what a virtual machine, or DPDK's virtio_user, sends by vhost-user is received here, and what is sent here
//! it receives. A switch between virtual machines is a program that forwards between two of these.
//!
//! It is *no* model: there is no wire and no thread that moves packets. What is a model's are the registers that the server drives, and the rings.
//! A packet is copied once, from the front end's memory into the program's or back, by who polls. A thread of the port's own hears messages and
//! kicks, and does nothing while nothing is said.
//!
//! | file | what it is |
//! |---|---|
//! | `device` | the network card that the front end finds |
//! | `port` | the port, and its thread |
//! | `queues` | the port's queues |
//! | `filling` | packets into a front end's buffers |
//! | `offload` | what is left to be done to a packet, as the front end's header says it, and as the program is told |
//!
//! **Front ends come and go**: the link is up while one has a driver. Packets that are sent meanwhile are dropped and counted
//! (`dropped_no_carrier`); where a driver has no buffers, they are not taken.
//!
//! **Queues**: as many pairs are offered as the port has queues that receive. Packets of the front end's queue N come by queue N; what is sent by queue N
//! goes to its queue N, modulo the pairs that it uses. All queues of a port share its server, one at a time: several cores gain nothing by it.
//!
//! **Offloads** are those that the program asks for, and a front end is offered no others: without them it completes its checksums and cuts its segments itself.
//! With `rx_checksum` it may leave checksums out, with `lro` it may send TCP that is not cut yet, which comes in several buffers; what remains to be done is the
//! packet's [`Offload`](wholebar_core::mem::Offload), as it is of a virtio device's. What is sent with `tx_l4_checksum` and `tso` goes on as it is to a front end
//! that takes that; for one that doesn't, it is completed and cut here, in software.
//!
//! **Not there**: live migration.

mod device;
mod filling;
mod offload;
mod port;
mod queues;

use crate::Result;
use std::fmt;
use std::path::PathBuf;
use wholebar_core::net::{Mac, Port, PortConfig};

/// A back end by name: `vhost-user:/run/x.sock,back-end`, perhaps followed by `,server` and `,mac=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackEnd {
    /// The path of the socket.
    pub path: PathBuf,
    /// Whether front ends connect to it; else it connects to a front end that listens there, again and again.
    pub server: bool,
    /// The address that a front end finds; `None` for one that is made of the path.
    pub mac: Option<[u8; 6]>,
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vhost-user:{},back-end", self.path.display())?;
        if self.server {
            f.write_str(",server")?;
        }
        self.mac.map_or(Ok(()), |mac| write!(f, ",mac={}", Mac(mac)))
    }
}

/// Opens a port at the other end of a front end's rings, whether a front end is there yet or not.
///
/// The sizes of rings are the front end's to choose, and all that it sends is received, whatever `config` says of either.
///
/// # Errors
/// [`Error::Port`](crate::Error::Port) for more than 64 queues, or receive-side scaling; [`Error::Framework`](crate::Error::Framework) where
/// the socket cannot be listened on, or the system has no descriptor or thread left.
pub fn open(target: &BackEnd, config: &PortConfig) -> Result<Box<dyn Port>> {
    Ok(Box::new(port::BackEndPort::open(target, config)?))
}
