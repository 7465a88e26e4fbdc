//! Receive side scaling: the hash key and the table of queues that chips are given.

/// Toeplitz key of 40 bytes, as in Microsoft's "Verifying the RSS hash calculation", in words as they
/// are written to registers.
pub(crate) fn key() -> [u32; 10] {
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    std::array::from_fn(|i| u32::from_le_bytes(KEY[4 * i..4 * i + 4].try_into().expect("4 bytes")))
}

/// A table of `N` entries of 8 bits that deals `queues` queues in turn, in words of four.
pub(crate) fn table<const N: usize>(queues: u16) -> Vec<u32> {
    let entry = |i: usize| (i % usize::from(queues)) as u8;
    (0..N / 4).map(|word| u32::from_le_bytes(std::array::from_fn(|i| entry(4 * word + i)))).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn queues_are_dealt_in_turn() {
        assert_eq!(super::table::<8>(3), [0x0002_0100, 0x0100_0201]);
        assert_eq!(super::table::<128>(1), [0; 32]);
        assert_eq!(super::key()[0], 0xda56_5a6d);
    }
}
