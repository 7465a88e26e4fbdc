//! Lists of cores.

use crate::Error;

/// A logical core and the CPU it is pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lcore {
    /// The number it goes by.
    pub(crate) id: usize,
    /// The number the kernel has for it.
    pub(crate) cpu: usize,
}

/// Cores in the order given.
pub(crate) type List = Vec<Lcore>;

/// Largest number of a core.
const MAX_CORE: usize = 4095;

const ALLOWED: &str = "allowed: cores like 0,2-3, or lcore@cpu like 0@4,(1-2)@(5-6)";

/// Reads `0,2-3` and DPDK's maps `lcores[@cpus]` with groups in parentheses. An lcore that is given
/// several CPUs takes the one at its own place in the group, or the first.
pub(super) fn parse(text: &str) -> Result<List, String> {
    let mut list = List::new();
    for item in items(text)? {
        let (lcores, cpus) = item.split_once('@').unwrap_or((item, item));
        let (lcores, cpus) = (group(lcores)?, group(cpus)?);
        for (i, &id) in lcores.iter().enumerate() {
            if list.iter().any(|l| l.id == id) {
                return Err(format!("core {id} is given twice; {ALLOWED}"));
            }
            list.push(Lcore { id, cpu: *cpus.get(i).unwrap_or(&cpus[0]) });
        }
    }
    Ok(list)
}

/// The cores of a hexadecimal mask, as a list that [`parse`] reads.
pub(super) fn of_mask(mask: &str) -> Result<String, Error> {
    let wrong = || Error::Usage(format!("-c {mask}: allowed: a hexadecimal mask of cores, like 0x3"));
    let digits = mask.trim_start_matches("0x");
    let bits = u128::from_str_radix(digits, 16).map_err(|_| wrong())?;
    if bits == 0 {
        return Err(wrong());
    }
    let cores: Vec<String> = (0..128).filter(|i| bits >> i & 1 == 1).map(|i| i.to_string()).collect();
    Ok(cores.join(","))
}

/// Parts between commas that are not inside parentheses.
fn items(text: &str) -> Result<Vec<&str>, String> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    if depth == 0 { Ok(out) } else { Err(ALLOWED.into()) }
}

fn group(text: &str) -> Result<Vec<usize>, String> {
    let text = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
    let mut out = Vec::new();
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let bound = |t: &str| t.trim().parse::<usize>().ok().filter(|&n| n <= MAX_CORE).ok_or(ALLOWED);
        let (low, high) = (bound(low)?, bound(high)?);
        if low > high {
            return Err(ALLOWED.into());
        }
        out.extend(low..=high);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_maps_and_masks() {
        for (text, expected) in [
            ("0", vec![(0, 0)]),
            ("3,0-1", vec![(3, 3), (0, 0), (1, 1)]),
            ("0@4,1@5", vec![(0, 4), (1, 5)]),
            ("(0-1)@(6,7)", vec![(0, 6), (1, 7)]),
            ("(0,2)@1,7@(3-4)", vec![(0, 1), (2, 1), (7, 3)]),
        ] {
            let expected: List = expected.into_iter().map(|(id, cpu)| Lcore { id, cpu }).collect();
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "a", "2-1", "0,0", "(0", "0)", "0@", "99999", "-1", "0,,1"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(of_mask("0x15").unwrap(), "0,2,4");
        assert_eq!(of_mask("f").unwrap(), "0,1,2,3");
        assert!(of_mask("0").is_err() && of_mask("xyz").is_err());
    }
}
