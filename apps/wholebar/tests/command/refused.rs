//! Servers that refuse what they are asked, as libvfio-user's do: with an error reply that has a payload.

#[path = "../../../../framework/core/tests/vfio_user/raw.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod raw;

use crate::common::{json, on_one_line, stdout};
use raw::{ERROR, Message, REPLY, longs, word, words};
use std::os::unix::net::{UnixListener, UnixStream};

const CONFIG: u32 = 7;
/// Where the MSI-X table is, which nobody may read.
const TABLE: u32 = 4;

/// Configuration space with MSI-X (PCI 3.0, 6.8.2): eight vectors, the table in BAR4, the PBA in BAR5.
fn config() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x00, &[0x1d, 0x1d, 0x01, 0x00]);
    put(0x06, &[0x10, 0x00]);
    put(0x34, &[0x40]);
    put(0x40, &[0x11, 0, 7, 0]);
    put(0x44, &TABLE.to_le_bytes());
    put(0x48, &(TABLE + 1).to_le_bytes());
    bytes
}

fn answer(ask: &Message) -> Message {
    let long = |at: usize| u64::from_ne_bytes(ask.payload[at..at + 8].try_into().unwrap());
    let payload = match ask.command {
        raw::VERSION => vec![0; 4],
        raw::GET_INFO => words(&[16, 3, 9, 5]),
        raw::GET_REGION_INFO => {
            let size = match word(&ask.payload, 2) {
                CONFIG | TABLE | 5 => 4096,
                _ => 0,
            };
            [words(&[32, 3, word(&ask.payload, 2), 0]), longs(&[size, 0])].concat()
        }
        raw::GET_IRQ_INFO => words(&[16, 1, word(&ask.payload, 2), 8]),
        raw::REGION_READ if word(&ask.payload, 2) == CONFIG => {
            let (at, len) = (long(0) as usize, word(&ask.payload, 3) as usize);
            [&ask.payload[..16], &config()[at..at + len]].concat()
        }
        raw::REGION_WRITE => ask.payload[..16].to_vec(),
        _ => {
            let (flags, payload) = (REPLY | ERROR, ask.payload.clone());
            return Message { id: ask.id, command: ask.command, flags, error: 22, payload, ..Message::default() };
        }
    };
    Message { id: ask.id, command: ask.command, flags: REPLY, payload, ..Message::default() }
}

fn serve(stream: UnixStream) {
    while let Some(ask) = raw::receive(&stream) {
        let reply = answer(&ask);
        if !raw::send(&stream, &reply.bytes(), &[]) {
            break;
        }
    }
}

#[test]
fn a_table_that_may_not_be_read_is_no_reason_to_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
    let target = format!("vfio-user:{}", socket.display());
    let text = stdout(&format!("msix {target}"));
    let words = on_one_line(&text);
    assert!(words.contains("8 MSI-X vectors, not enabled; table in BAR4 at 0x0, PBA in BAR5"), "{text}");
    assert!(text.contains("Invalid argument"), "{text}");
    assert!(text.lines().skip(1).all(|line| line.chars().count() <= 80), "{text}");
    let json = json(&format!("msix {target} --json"));
    assert_eq!((json["table_bar"].as_u64(), json["vectors"].as_array().map(Vec::len)), (Some(4), Some(0)));
    assert!(json["refused"].as_str().unwrap().contains("Invalid argument"), "{json}");
}
