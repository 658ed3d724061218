//! A vfio-user client with a server that answers anything: no panic and no hang, whatever it is told.
//!
//! The input is a row of answers: a control byte (flags, a file to send, whether the header is right or the input's), a length,
//! the payload in 4-byte words. Where it ends, the server does.
#![no_main]

#[path = "../../../framework/core/tests/vfio_user/raw.rs"]
#[allow(dead_code)]
mod raw;

use libfuzzer_sys::fuzz_target;
use raw::Message;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use wholebar::irq::EventFd;
use wholebar::mem::{Arena, ArenaOptions};
use wholebar::pci::{CONFIG, Irq, IrqAction, PciDevice, Prot};
use wholebar::vfio_user::{Options, VfioUser};

fuzz_target!(|data: &[u8]| {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|both| {
        let server = both.spawn(|| serve(theirs, data));
        // Nothing waits for so long: the server answers, or is gone.
        let options = Options::of(Duration::from_secs(20));
        if let Ok(device) = VfioUser::from_stream(ours, "vfio-user:fuzz", options) {
            let _ = use_it(&device);
        }
        let _ = server.join();
    });
});

fn serve(stream: UnixStream, mut rest: &[u8]) {
    // A client that waits for the rest of an answer says nothing more.
    let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
    while let [control, len, more @ ..] = rest {
        let (payload, more) = more.split_at(more.len().min(*len as usize * 4));
        rest = more;
        let Some(ask) = raw::receive(&stream) else { return };
        let bytes = match control & 0x80 {
            0 => {
                let flags = u32::from(control & 0x20 | 1);
                let (id, command, payload) = (ask.id, ask.command, payload.to_vec());
                Message { id, command, flags, error: u32::from(*len), payload, ..Message::default() }.bytes()
            }
            _ => payload.to_vec(),
        };
        let fds: Vec<_> = (0..control & 3).map(|_| raw::file(1 << (12 + (control >> 2 & 7)))).collect();
        if bytes.is_empty() || !raw::send(&stream, &bytes, &fds) {
            return;
        }
    }
}

fn use_it(device: &VfioUser) -> wholebar::Result<()> {
    for index in 0..9 {
        let info = device.region(index)?;
        for area in info.sparse().unwrap_or(&[]) {
            // Touched, where it could be mapped: nothing lies behind the file's end.
            let _ = device.map(index, area.clone(), Prot::ReadWrite);
        }
        let _ = device.map(index, 0..info.size, Prot::Read);
    }
    let event = EventFd::new()?;
    device.read(CONFIG, 0, &mut [0; 64])?;
    device.write(0, 8, &[0; 4])?;
    for kind in [Irq::Intx, Irq::Msi, Irq::Msix, Irq::Err, Irq::Req] {
        device.set_irqs(kind, 0, IrqAction::Fds(&[Some(event.as_fd()), None]))?;
    }
    let arena = Arena::new(4096, ArenaOptions::default())?;
    drop(device.dma().attach(arena)?);
    device.reset()
}
