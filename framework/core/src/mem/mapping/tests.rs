use super::*;

#[test]
fn words_are_aligned_and_cover_everything_once() {
    for address in 0..16 {
        for len in 0..64 {
            let mut end = 0;
            words(address, len, |at, bytes| {
                assert!(at == end && (address + at).is_multiple_of(bytes), "{address} {len}: {at} {bytes}");
                end += bytes;
            });
            assert_eq!(end, len);
        }
    }
}

#[test]
fn what_is_copied_in_is_copied_out_and_nothing_else() {
    let bytes: Vec<_> = (1..=40).collect();
    for at in 0..16 {
        for len in 0..bytes.len() {
            // Its own each time: Miri wants words to keep their widths.
            let mut memory = [0u64; 8];
            let base = NonNull::from(&mut memory).cast::<u8>();
            let mut out = vec![0; len];
            // SAFETY: inside 64 bytes that nobody else looks at.
            unsafe {
                copy_in(base.add(at), &bytes[..len]);
                copy_out(base.add(at), &mut out);
            }
            assert_eq!(out, bytes[..len]);
            let whole: Vec<_> = memory.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(whole[at..at + len], bytes[..len]);
            assert!(whole[..at].iter().chain(&whole[at + len..]).all(|b| *b == 0));
        }
    }
}
