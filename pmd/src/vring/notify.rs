//! When the other side wants to be notified.

use crate::spec::virtio as v;

/// virtio 1.3 §2.7.10: whether an index that went from `old` to `new` passed `event`.
#[inline(always)]
pub fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// virtio 1.3 §2.8.14: whether a packed ring's side that wrote `event` (its whole event area) wants
/// to hear of `count` descriptors up to position `pos` with wrap counter `wrap`, in a ring of `size`.
#[inline(always)]
pub fn passed_packed(event: u32, pos: u16, wrap: bool, count: u16, size: u16) -> bool {
    let (off_wrap, flags) = (event as u16, (event >> 16) as u16 & 3);
    match flags {
        v::EVENT_ENABLE => true,
        v::EVENT_DESC => {
            let mut off = off_wrap & 0x7fff;
            if (off_wrap >> 15 != 0) != wrap {
                off = off.wrapping_sub(size);
            }
            passed(off, pos, pos.wrapping_sub(count))
        }
        // EVENT_DISABLE, and the reserved value, which asks for nothing.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once() {
        for event in [0u16, 1, 5, 65534, 65535] {
            for step in [1u16, 2, 7, 32768] {
                let mut old = event.wrapping_sub(20);
                let mut hits = 0;
                let mut walked = 0u32;
                while walked + u32::from(step) <= 65536 {
                    let new = old.wrapping_add(step);
                    hits += u32::from(passed(event, new, old));
                    old = new;
                    walked += u32::from(step);
                }
                assert!(hits == 1 || 65536 % u32::from(step) != 0, "{event} by {step}: {hits}");
            }
        }
    }

    #[test]
    fn a_packed_event_is_passed_once_a_lap() {
        for size in [1u16, 3, 7, 256, 32768] {
            for at in [0, size / 2, size - 1] {
                let (mut pos, mut wrap, mut hits) = (0u16, true, 0);
                let event = |wrap: bool| u32::from(at | u16::from(wrap) << 15) | 2 << 16;
                for _ in 0..size {
                    let lap = wrap;
                    pos += 1;
                    if pos == size {
                        (pos, wrap) = (0, !wrap);
                    }
                    hits += u32::from(passed_packed(event(lap), pos, wrap, 1, size));
                }
                assert_eq!(hits, 1, "size {size} at {at}");
            }
        }
        assert!(passed_packed(0, 3, true, 1, 8) && !passed_packed(1 << 16, 3, true, 1, 8));
        assert!(!passed_packed(3 << 16, 3, true, 1, 8));
    }
}
