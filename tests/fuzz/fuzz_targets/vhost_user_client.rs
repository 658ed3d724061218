//! A vhost-user front end with a back end that answers anything: no panic and no hang, whatever it is told.
//!
//! The input is a row of answers to messages that have one: a control byte (flags, descriptors to send, whether the payload is that of an honest back
//! end or the input's), a length, the payload in 4-byte words. Where it ends, the back end does.
#![no_main]

#[path = "../../../framework/core/tests/vhost_user_client/raw.rs"]
#[allow(dead_code)]
mod raw;

use libfuzzer_sys::fuzz_target;
use raw::Message;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use wholebar::irq::EventFd;
use wholebar::mem::{Arena, ArenaOptions};
use wholebar::pci::{BAR0, CONFIG, Irq, IrqAction, PciDevice};
use wholebar::vhost_user::{DeviceType, Options, VhostUser};

fuzz_target!(|data: &[u8]| {
    let Some((&[first, features], data)) = data.split_first_chunk() else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|both| {
        let back_end = both.spawn(move || serve(theirs, features, data));
        let device_type = [None, Some(DeviceType::Net), Some(DeviceType::Blk), None][usize::from(first & 3)];
        // Nothing waits for so long: the back end answers, or is gone.
        let options = Options { device_type, ..Options::default() }.with_timeout(Duration::from_secs(20));
        if let Ok(device) = VhostUser::from_stream(ours, "vhost-user:fuzz", options) {
            let _ = use_it(&device);
        }
        let _ = back_end.join();
    });
});

fn serve(stream: UnixStream, features: u8, mut rest: &[u8]) {
    // A front end that waits for the rest of an answer says nothing more.
    let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
    while let Some(ask) = raw::receive(&stream) {
        let honest = match ask.request {
            raw::GET_FEATURES => raw::longs(&[1 << 32 | 1 << 30 | u64::from(features) << 8]),
            raw::GET_PROTOCOL_FEATURES => raw::longs(&[0xffff]),
            raw::GET_QUEUE_NUM | raw::GET_MAX_MEM_SLOTS => raw::longs(&[2]),
            raw::GET_VRING_BASE | raw::GET_CONFIG => ask.payload.clone(),
            _ if ask.flags & raw::NEED_REPLY != 0 => raw::longs(&[0]),
            _ => continue,
        };
        let [control, len, more @ ..] = rest else { return };
        let (payload, more) = more.split_at(more.len().min(*len as usize * 4));
        rest = more;
        let payload = if control & 0x80 == 0 { honest } else { payload.to_vec() };
        let fds =
            (0..control >> 2 & 3).map(|_| EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap()).collect();
        let flags = if control & 0x40 == 0 { raw::REPLY } else { u32::from(*len) };
        let request = if control & 0x20 == 0 { ask.request } else { u32::from(*len) };
        let size = (control & 0x10 != 0).then_some(u32::from(*len) << (control & 3) * 8);
        if !raw::send(&stream, &Message { request, flags, payload, fds, size }) {
            return;
        }
    }
}

fn use_it(device: &VhostUser) -> wholebar::Result<()> {
    let event = EventFd::new()?;
    device.write(CONFIG, 4, &[6, 0])?;
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[Some(event.as_fd()), None]))?;
    let arena = Arena::new(4096, ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() })?;
    let mapping = device.dma().attach(arena.clone())?;
    let at = mapping.iova().0.to_le_bytes();
    for status in [0u8, 3] {
        device.write(BAR0, 0x14, &[status])?;
    }
    // VERSION_1.
    device.write(BAR0, 0x08, &[1, 0, 0, 0])?;
    device.write(BAR0, 0x0c, &[1, 0, 0, 0])?;
    device.write(BAR0, 0x14, &[11])?;
    for register in [0x20, 0x28, 0x30] {
        device.write(BAR0, register, &at[..4])?;
        device.write(BAR0, register + 4, &at[4..])?;
    }
    device.write(BAR0, 0x1a, &[0, 0])?;
    device.write(BAR0, 0x1c, &[1, 0])?;
    device.write(BAR0, 0x14, &[15])?;
    device.write(2, 0, &[0, 0])?;
    device.read(BAR0, 0x2000, &mut [0; 64])?;
    device.read(BAR0, 0x14, &mut [0])?;
    device.write(BAR0, 0x14, &[0])?;
    drop(mapping);
    device.reset()
}
