//! A vfio-user server with a client that says anything: no panic, no hang, and no more memory than was agreed on.
//!
//! The input is a row of messages: a control byte (descriptors to send, whether the header is made up or the input's), a
//! length, a header or a command, the payload.
#![no_main]

#[path = "../../../framework/core/tests/vfio_user/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../../../framework/core/tests/vfio_user/raw.rs"]
#[allow(dead_code)]
mod raw;

use libfuzzer_sys::fuzz_target;
use model::Adder;
use raw::Message;
use rustix::event::{EventfdFlags, eventfd};
use std::os::unix::net::UnixStream;
use wholebar::vfio_user::Server;

fuzz_target!(|data: &[u8]| {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut server = Server::from_stream(theirs, Adder::new().0);
    let mut polls = |n: usize| {
        (0..n).all(|_| {
            let _ = server.poll();
            server.is_connected()
        })
    };

    let (&honest, mut rest) = data.split_first().unwrap_or((&0, &[]));
    if honest & 1 == 0 {
        raw::send(&ours, &Message::command(raw::VERSION, vec![0; 4]).bytes(), &[]);
        polls(4);
    }
    while let [control, len, more @ ..] = rest {
        let (payload, more) = more.split_at(more.len().min(*len as usize));
        rest = more;
        let bytes = match (control & 0x80, payload) {
            // All of it is the input's.
            (0x80, _) => payload.to_vec(),
            (_, [command, flags, payload @ ..]) => {
                let flags = u32::from(flags & 0x3f);
                Message { flags, ..Message::command(u16::from(command % 20), payload.to_vec()) }.bytes()
            }
            _ => break,
        };
        let fds: Vec<_> = (0..control & 3)
            .map(|_| match control & 4 {
                0 => raw::file(u64::from(control & 0x78) << 12),
                _ => eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            })
            .collect();
        if bytes.is_empty() || !raw::send(&ours, &bytes, &fds) || !polls(8) {
            break;
        }
        // Now and then the client reads its replies.
        if control & 0x40 != 0 {
            let _ = std::io::Read::read(&mut &ours, &mut [0; 4096]);
        }
    }
    drop(ours);
    while polls(1) {}
});
