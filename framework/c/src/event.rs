//! What happens to disks and ports, as a kind and a sentence.

use std::ffi::c_char;
use wholebar::control_plane::DeviceEvent;
use wholebar::{block, net};

/// The namespaces may have changed: wb_disk_namespaces has them as they are now.
pub const WB_EVENT_NAMESPACES: u32 = 1;
/// The device reports something else; the text has it.
pub const WB_EVENT_DEVICE: u32 = 2;
/// The kernel reports an error of the function (AER).
pub const WB_EVENT_FUNCTION_ERROR: u32 = 3;
/// The kernel wants the device back: close it soon.
pub const WB_EVENT_UNBIND_REQUEST: u32 = 4;
/// The device was reset, and queues run again; the text says why, and which queues are lost.
pub const WB_EVENT_RESET: u32 = 5;
/// The device cannot be used any more; the text says why.
pub const WB_EVENT_ENDED: u32 = 6;
/// A port's link changed; the text has how it is.
pub const WB_EVENT_LINK: u32 = 7;
/// A queue that sends is stuck; the text says which, and for how long.
pub const WB_EVENT_STALLED: u32 = 8;
/// The device asks that its address be announced, after it was moved.
pub const WB_EVENT_ANNOUNCE: u32 = 9;

/// Something that happened to a disk or a port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_event {
    /// What: one of WB_EVENT_. Later versions may have others.
    pub kind: u32,
    /// A sentence, cut off where it is longer.
    pub text: [c_char; 252],
}

pub(crate) fn of_disk(event: &block::Event) -> wb_event {
    use block::Event;
    match event {
        Event::Namespaces => new(WB_EVENT_NAMESPACES, "the namespaces may have changed"),
        Event::Reported(what) => new(WB_EVENT_DEVICE, what),
        Event::Device(event) => of_device(event),
        other => new(WB_EVENT_DEVICE, &format!("{other:?}")),
    }
}

pub(crate) fn of_port(event: &net::Event) -> wb_event {
    use net::Event;
    match event {
        Event::Link(link) => new(WB_EVENT_LINK, &format!("the link is {link}")),
        Event::Stalled { queue, waited } => {
            let text = format!("send queue {queue} has had no room for {} ms", waited.as_millis());
            new(WB_EVENT_STALLED, &text)
        }
        Event::Announce => new(WB_EVENT_ANNOUNCE, "the address is to be announced"),
        Event::Device(event) => of_device(event),
        other => new(WB_EVENT_DEVICE, &format!("{other:?}")),
    }
}

fn of_device(event: &DeviceEvent) -> wb_event {
    let kind = match event {
        DeviceEvent::FunctionError => WB_EVENT_FUNCTION_ERROR,
        DeviceEvent::UnbindRequest => WB_EVENT_UNBIND_REQUEST,
        DeviceEvent::Reset { .. } => WB_EVENT_RESET,
        DeviceEvent::Ended { .. } => WB_EVENT_ENDED,
    };
    new(kind, &event.to_string())
}

fn new(kind: u32, text: &str) -> wb_event {
    let mut event = wb_event { kind, text: [0; 252] };
    // The last is NUL; a character is not cut in two.
    let most = event.text.len() - 1;
    let whole = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= most).map(|(_, c)| c.len_utf8()).sum();
    for (to, from) in event.text.iter_mut().zip(text.bytes().take(whole)) {
        *to = from as c_char;
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::time::Duration;

    fn text(event: &wb_event) -> String {
        let bytes: Vec<_> = event.text.iter().map(|c| *c as u8).collect();
        CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn events_have_a_kind_and_a_sentence() {
        let event = of_disk(&DeviceEvent::Reset { why: "a command timed out".to_owned(), lost: vec![1, 3] }.into());
        assert_eq!(
            (event.kind, text(&event).as_str()),
            (WB_EVENT_RESET, "it was reset, and lost queues [1, 3]: a command timed out")
        );
        let event = of_port(&net::Event::Stalled { queue: 2, waited: Duration::from_secs(1) });
        assert_eq!((event.kind, text(&event).as_str()), (WB_EVENT_STALLED, "send queue 2 has had no room for 1000 ms"));
        let event = of_port(&net::Event::Link(net::Link { up: true, ..net::Link::default() }));
        assert_eq!((event.kind, text(&event).as_str()), (WB_EVENT_LINK, "the link is up"));
    }

    #[test]
    fn long_sentences_are_cut_between_characters() {
        let event = of_disk(&DeviceEvent::Ended { why: "ä".repeat(1000) }.into());
        assert_eq!((event.kind, text(&event)), (WB_EVENT_ENDED, format!("it ended: {}", "ä".repeat(120))));
    }
}
