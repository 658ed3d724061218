//! The errors of ports through the kernel.

use rustix::io::Errno;

/// An error of a network interface that is used as a port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such interface.
    #[error("there is no network interface {interface:?} in this network namespace: there are {known}")]
    NoInterface {
        /// What was given.
        interface: String,
        /// Those that there are.
        known: String,
    },
    /// Its packets are no Ethernet frames.
    #[error(
        "{interface} is no Ethernet interface (its type is {kind}, ARPHRD_* of the kernel's), so it cannot be a port"
    )]
    NotEthernet {
        /// The interface.
        interface: String,
        /// Its type.
        kind: u16,
    },
    /// It is down.
    #[error("{interface} is down: bring it up by `ip link set {interface} up`")]
    Down {
        /// The interface.
        interface: String,
    },
    /// The kernel uses it.
    #[error(
        "{interface} is in use: {uses}; the kernel would answer the same packets: use an interface that has no part in its network, or say kernel:{interface},force"
    )]
    InUse {
        /// The interface.
        interface: String,
        /// What for.
        uses: String,
    },
    /// This process may not.
    #[error(
        "{interface}: {step}: {cause}: that needs {capabilities}, in the user namespace that the network namespace belongs to: run as root, or give them to the program by setcap(8)"
    )]
    Permission {
        /// The interface.
        interface: String,
        /// What was tried.
        step: String,
        /// The system's refusal: `EPERM` or `EACCES`.
        cause: std::io::Error,
        /// The capabilities, and what they allow.
        capabilities: &'static str,
    },
    /// The system refused something else.
    #[error("{interface}: {what}: {cause}{advice}")]
    System {
        /// The interface.
        interface: String,
        /// What was tried.
        what: String,
        /// What came back.
        cause: std::io::Error,
        /// What a person can do, after a colon; or nothing.
        advice: &'static str,
    },
    /// The framework's error.
    #[error("{interface}: {error}")]
    Core {
        /// The interface.
        interface: String,
        /// The step that failed, and the system's error.
        error: wholebar_core::Error,
    },
    /// The port cannot have this number of queues.
    #[error("{interface}: {asked} queues that {direction} cannot be had: there are 1 to {most}")]
    Queues {
        /// The interface.
        interface: String,
        /// `receive` or `send`.
        direction: &'static str,
        /// What was asked for.
        asked: u16,
        /// How many there can be.
        most: u16,
    },
    /// The queue does not exist, or is in use.
    #[error("{interface}: queue {queue} that {direction} cannot be had: {why}")]
    NoQueue {
        /// The interface.
        interface: String,
        /// `receives` or `sends`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// Why.
        why: &'static str,
    },
    /// A queue cannot have this number of descriptors.
    #[error("{interface}: a queue of {asked} descriptors cannot be had: it must be a power of two up to {most}")]
    Descriptors {
        /// The interface.
        interface: String,
        /// What was asked for.
        asked: u16,
        /// The most.
        most: u16,
    },
    /// The interface has a smaller MTU.
    #[error(
        "{interface}: an MTU of {asked} cannot be had: the interface's is {mtu}; change it by `ip link set {interface} mtu {asked}`"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// What was asked for, in bytes.
        asked: u16,
        /// The interface's, in bytes.
        mtu: u32,
    },
    /// The buffers are too small for packets.
    #[error(
        "{interface}: buffers of {size} bytes with {headroom} of headroom cannot receive packets of {packet} bytes: make them larger"
    )]
    Buffers {
        /// The interface.
        interface: String,
        /// What a buffer of the pool holds, in bytes.
        size: u32,
        /// What is left in front, in bytes.
        headroom: u16,
        /// The largest packet, in bytes.
        packet: u32,
    },
    /// What a port through the kernel does not do.
    #[error("{interface}: {what} is the kernel's affair: {advice}")]
    Unsupported {
        /// The interface.
        interface: String,
        /// What was asked for.
        what: &'static str,
        /// How a person does that.
        advice: String,
    },
}

impl Error {
    /// The error of a step of the core's.
    pub(super) fn of(interface: &str, error: wholebar_core::Error) -> Self {
        match error {
            wholebar_core::Error::Io { what, cause } => Self::system(interface, what, cause),
            error => Self::Core { interface: interface.to_owned(), error },
        }
    }

    /// The error of a step that the system refused.
    pub(super) fn system(interface: &str, what: String, cause: std::io::Error) -> Self {
        let interface = interface.to_owned();
        let is = |errno: Errno| cause.raw_os_error() == Some(errno.raw_os_error());
        // Steps by bpf(2) say so.
        let bpf = what.ends_with("(bpf)");
        if is(Errno::PERM) || is(Errno::ACCESS) {
            let capabilities = match bpf {
                true => "the capabilities CAP_BPF and CAP_NET_ADMIN, for programs and what they are attached to",
                false => "the capability CAP_NET_RAW, for packet and AF_XDP sockets",
            };
            return Self::Permission { interface, step: what, cause, capabilities };
        }
        let xdp = what.contains("AF_XDP");
        let advice = if bpf && (is(Errno::BUSY) || is(Errno::EXIST)) {
            ": it has an XDP program already (`ip link show` names it)"
        } else if xdp && is(Errno::BUSY) {
            ": another socket has the queue"
        } else if xdp && is(Errno::INVAL) {
            ": there is no such queue, perhaps (`ethtool -l`, or /sys/class/net/NAME/queues)"
        } else if xdp && is(Errno::NOBUFS) {
            ": raise the limit of locked memory (`ulimit -l`)"
        } else if xdp && is(Errno::OPNOTSUPP) {
            ": its driver has no zero copy; leave that to the kernel, without `,zerocopy`"
        } else if is(Errno::AFNOSUPPORT) || is(Errno::NOSYS) {
            ": this kernel was built without it; another mode= may do"
        } else {
            ""
        };
        Self::System { interface, what, cause, advice }
    }
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}
