//! Options from a file.

use std::ffi::OsString;
use std::path::Path;

use toml::{Table, Value};

use crate::Error;

/// Reads a TOML file whose keys are the long options, as arguments. `vdev` is a list of strings, or of
/// tables with `name` and the port's keys.
///
/// # Errors
/// When the file cannot be read or is no such file; the message names it and the place.
pub(super) fn read(path: &Path) -> Result<Vec<OsString>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(format!("--config {}", path.display())))?;
    arguments(&text).map_err(|e| Error::Usage(format!("--config {}: {e}", path.display())))
}

fn arguments(text: &str) -> Result<Vec<OsString>, String> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().lines().next().unwrap_or("not TOML"))
    })?;
    let mut out = Vec::new();
    for (key, value) in &table {
        match value {
            Value::Boolean(true) => out.push(format!("--{key}").into()),
            Value::Boolean(false) => {}
            Value::Array(items) if key == "txpkts" => {
                let lengths = items.iter().map(|v| scalar(key, v)).collect::<Result<Vec<_>, _>>()?;
                out.push(format!("--{key}={}", lengths.join(",")).into());
            }
            Value::Array(items) => {
                for item in items {
                    out.push(format!("--{key}={}", one(key, item)?).into());
                }
            }
            value => out.push(format!("--{key}={}", one(key, value)?).into()),
        }
    }
    Ok(out)
}

fn one(key: &str, value: &Value) -> Result<String, String> {
    let Value::Table(table) = value else { return scalar(key, value) };
    let name = table.get("name").and_then(Value::as_str).ok_or(format!("{key}: a table needs 'name'"))?;
    let mut text = name.to_string();
    for (k, v) in table.iter().filter(|(k, _)| *k != "name") {
        text += &format!(",{k}={}", scalar(k, v)?);
    }
    Ok(text)
}

fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Integer(i) => Ok(i.to_string()),
        Value::Float(f) => Ok(f.to_string()),
        Value::Boolean(b) => Ok(u8::from(*b).to_string()),
        _ => Err(format!("{key}: allowed: text, a number, true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_long_options() {
        let text = "
            forward-mode = 'mac'
            burst = 64
            idle-sleep = true
            tx-first = false
            txpkts = [64, 128]
            [[vdev]]
            name = 'vhost0'
            iface = '/run/a'
            client = true
            [[vdev]]
            name = 'null1'
            size = 128
        ";
        let mut got = arguments(text).unwrap();
        got.sort();
        assert_eq!(
            got,
            [
                "--burst=64",
                "--forward-mode=mac",
                "--idle-sleep",
                "--txpkts=64,128",
                "--vdev=null1,size=128",
                "--vdev=vhost0,client=1,iface=/run/a",
            ]
        );
        assert!(arguments("a = \n b = 2").unwrap_err().starts_with("line 1: "));
        assert_eq!(arguments("vdev = [{size = 1}]").unwrap_err(), "vdev: a table needs 'name'");
    }
}
