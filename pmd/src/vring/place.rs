//! Where a packed ring stands, by its descriptors alone: for a front-end that has lost the place. (QEMU
//! remembers it only when a ring is stopped in good order, and after a crash of the device says where the ring
//! began.)

use crate::spec::virtio as v;

/// The first place that is not used, and its wrap counter in bit 15, of a ring with these flags. `None`: that
/// cannot be told, because chains of several descriptors leave flags of an earlier lap behind.
pub(super) fn find(flags: &[u16]) -> Option<u16> {
    let avail = |i: usize| flags[i] & v::DESC_F_AVAIL != 0;
    let open = |i: usize| avail(i) != (flags[i] & v::DESC_F_USED != 0);
    let n = flags.len();
    // virtio 1.3 §2.8.1: from the place of the device to that of the driver descriptors are available, from
    // there on they are used; AVAIL changes where the driver is in its lap.
    let starts = |i: &usize| open(*i) && !open((i + n - 1) % n);
    let mut runs = (0..n).filter(starts);
    let (at, wrap) = match (runs.next(), runs.next()) {
        (Some(at), None) => (at, avail(at)),
        (Some(_), Some(_)) => return None,
        // All of them, or none: between the laps.
        (None, _) => match (1..n).find(|&i| avail(i) != avail(i - 1)) {
            Some(at) => (at, avail(at) == open(at)),
            None => (0, avail(0) == open(0)),
        },
    };
    // Every other descriptor must be as it is in a ring that stands there.
    let next = if open(at) { (0..n).find(|d| !open((at + d) % n)).unwrap_or(n) } else { 0 };
    let fits = (0..n).all(|d| {
        let i = (at + d) % n;
        // Available ones are of this lap from here on, of the next before; used ones of the one before.
        let lap = if i >= at { wrap } else { !wrap };
        open(i) == (d < next) && avail(i) == if d < next { lap } else { !lap }
    });
    fits.then_some(at as u16 | if wrap { 0x8000 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vring::driver::Raw;

    /// Every state of a ring whose chains have one descriptor, through its first laps.
    #[test]
    fn every_place_is_found() {
        for n in 1..7u16 {
            let mut flags = vec![0; n.into()];
            let (mut driver, mut device) = ((0u16, true), (0u16, true));
            let step = |(at, wrap): (u16, bool)| if at + 1 == n { (0, !wrap) } else { (at + 1, wrap) };
            let mut out = 0;
            // The driver is ahead by all amounts in turn.
            for i in 0..60 * n {
                let want = device.0 | if device.1 { 0x8000 } else { 0 };
                assert_eq!(find(&flags), Some(want), "{n}: {flags:x?}, {out} available");
                if out < n && (i / n % 2 == 0 || out == 0) {
                    flags[usize::from(driver.0)] = Raw::avail_bits(driver.1);
                    (driver, out) = (step(driver), out + 1);
                } else {
                    flags[usize::from(device.0)] = Raw::used_bits(device.1);
                    (device, out) = (step(device), out - 1);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_told_is_not() {
        let (a, u) = (Raw::avail_bits(true), Raw::used_bits(true));
        // A chain of three was used, one is available; two chains of two.
        for flags in [[u, a, a, a, 0, a], [u, a, u, a, 0, 0], [a, u, 0, a, u, u], [0, u, 0, u, 0, u]] {
            assert_eq!(find(&flags), None, "{flags:x?}");
        }
    }
}
