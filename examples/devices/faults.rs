//! What is to go wrong on a port: `drop:0.01+corrupt:0.001+permute:1`.

use pmd::port::fault::Config;

/// What may stand in it.
pub(super) const ALLOWED: &str = "NAME:CHANCE+... of drop, duplicate, corrupt, delay, reorder and hold with a \
                                  chance from 0 to 1, permute:1, turns:N, seed:N";

/// Reads it; `None`: it is no such text.
pub(super) fn parse(text: &str) -> Option<Config> {
    let mut config = Config::default();
    for part in text.split('+') {
        let (name, value) = part.split_once(':')?;
        let chance = || value.parse::<f64>().ok().filter(|c| (0.0..=1.0).contains(c));
        match name {
            "drop" => config.drop = chance()?,
            "duplicate" => config.duplicate = chance()?,
            "corrupt" => config.corrupt = chance()?,
            "delay" => config.delay = chance()?,
            "reorder" => config.reorder = chance()?,
            "hold" => config.hold = chance()?,
            "permute" if matches!(value, "0" | "1") => config.permute = value == "1",
            "turns" => config.turns = value.parse().ok().filter(|&n| n > 0)?,
            "seed" => config.seed = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_chances_and_numbers() {
        let config = parse("drop:0.01+hold:1+permute:1+turns:5+seed:7").unwrap();
        assert_eq!(
            (config.drop, config.hold, config.permute, config.turns, config.seed),
            (0.01, 1.0, true, 5, 7)
        );
        for text in [
            "",
            "drop",
            "drop:2",
            "drop:-1",
            "drop:NaN",
            "drop:x",
            "permute:2",
            "turns:0",
            "lose:0.1",
            "drop:0.1+",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
