//! The control queue of a network device, which the front end serves.

use super::*;

#[test]
fn the_control_queue_says_how_many_pairs_are_used() {
    for packed in [false, true] {
        let (back_end, device) = open(net());
        let arena = arena();
        let mapping = device.dma().attach(arena.clone()).unwrap();
        let base = mapping.iova().0;
        let chunk = arena.alloc(0x8000, 4096).unwrap();
        let at = base + chunk.offset();
        let features = VERSION_1 | CTRL_VQ | NET_MQ | if packed { PACKED } else { 0 };
        let queues: Vec<_> = (0..4).map(|index| (index, at, 0xffff)).chain([(4, at, 0xffff)]).collect();
        start(&device, features, &queues).unwrap();
        let told = back_end.told();
        let enabled: Vec<_> = told.iter().filter(|m| m.request == SET_VRING_ENABLE).map(|m| m.word(1)).collect();
        assert_eq!(enabled, [1, 1, 0, 0], "one pair until more are asked for");
        // The command and its answer lie behind the rings; three commands, each in two descriptors.
        let commands: [(&[u8], u8); 4] = [(&[4, 0, 2, 0], 0), (&[4, 0, 3, 0], 1), (&[0, 0, 1], 1), (&[4, 0, 1, 0], 0)];
        for (number, (command, answer)) in (0u16..).zip(commands) {
            chunk.write(0x4000, command).unwrap();
            chunk.write(0x5000, &[0xff]).unwrap();
            let first = u64::from(number) * 2 % 64;
            for (part, address, len, flags) in [(0, 0x4000, command.len() as u32, 1u16), (1, 0x5000, 1, 2)] {
                let desc = 16 * (first + part);
                chunk.write(desc, &(at + address).to_le_bytes()).unwrap();
                chunk.write(desc + 8, &len.to_le_bytes()).unwrap();
                let (flags, other) = if packed { (7u16, flags | 1 << 7) } else { (flags, first as u16 + 1) };
                chunk.write(desc + 12, &flags.to_le_bytes()).unwrap();
                chunk.write(desc + 14, &other.to_le_bytes()).unwrap();
            }
            if !packed {
                chunk.write(0x1004 + 2 * u64::from(number), &(first as u16).to_le_bytes()).unwrap();
                chunk.write(0x1002, &(number + 1).to_le_bytes()).unwrap();
            }
            device.write(2, 16, &4u16.to_le_bytes()).unwrap();
            let mut said = [0];
            chunk.read(0x5000, &mut said).unwrap();
            assert_eq!(said, [answer], "{command:?}");
            let mut used = [0; 2];
            chunk.read(if packed { 16 * first + 14 } else { 0x2002 }, &mut used).unwrap();
            let expected = if packed { 1 << 7 | 1 << 15 | 2 } else { number + 1 };
            assert_eq!(u16::from_le_bytes(used), expected);
        }
        let told: Vec<_> = back_end.told().iter().map(|m| (m.request, m.word(0), m.word(1))).collect();
        let enable = |queue, on| (SET_VRING_ENABLE, queue, on);
        assert_eq!(told, [enable(2, 1), enable(3, 1), enable(2, 0), enable(3, 0)]);
    }
}

#[test]
fn a_driver_that_breaks_the_control_queue_needs_a_reset() {
    let (_back_end, device) = open(net());
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let chunk = arena.alloc(0x8000, 4096).unwrap();
    let at = mapping.iova().0 + chunk.offset();
    // A descriptor beyond the table; a chain without an end; an address that nothing is mapped at.
    for (head, next, address) in [(64u16, 0u16, 0), (0, 0, at), (0, 0, 0x7000_0000_0000)] {
        chunk.write(0, &u64::to_le_bytes(address)).unwrap();
        chunk.write(8, &4u32.to_le_bytes()).unwrap();
        chunk.write(12, &1u16.to_le_bytes()).unwrap();
        chunk.write(14, &next.to_le_bytes()).unwrap();
        chunk.write(0x1004, &head.to_le_bytes()).unwrap();
        chunk.write(0x1002, &1u16.to_le_bytes()).unwrap();
        start(&device, VERSION_1 | CTRL_VQ | NET_MQ, &[(4, at, 0xffff)]).unwrap();
        device.write(2, 16, &4u16.to_le_bytes()).unwrap();
        assert_eq!(device.get::<1>(STATUS).unwrap(), 15 | 64);
    }
}
