//! What we know of the database: the rows that the server told us of, and how columns are read.
//!
//! Values stay in the JSON of RFC 7047 §5.1: a scalar, `["uuid", id]`, `["set", [...]]` or `["map", [[k, v], ...]]`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

/// The name of a row.
pub(crate) type Uuid = String;

/// The columns of one row, as the server sent them.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Row(Map<String, Value>);

/// All rows of the tables we follow.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    tables: HashMap<String, BTreeMap<Uuid, Row>>,
}

impl Replica {
    /// Takes a `<table-updates>` (RFC 7047 §4.1.6) in. The error says what is not as it should be.
    pub(crate) fn update(&mut self, updates: &Value) -> Result<(), String> {
        let tables = updates.as_object().ok_or("table updates are not an object")?;
        for (table, rows) in tables {
            let rows =
                rows.as_object().ok_or_else(|| format!("updates of table {table} are not an object"))?;
            let ours = self.tables.entry(table.clone()).or_default();
            for (uuid, change) in rows {
                match change.get("new") {
                    Some(Value::Object(row)) => ours.insert(uuid.clone(), Row(row.clone())),
                    None | Some(Value::Null) => ours.remove(uuid),
                    Some(_) => return Err(format!("row {uuid} of table {table} is not an object")),
                };
            }
        }
        Ok(())
    }

    /// One row.
    pub(crate) fn row(&self, table: &str, uuid: &str) -> Option<&Row> {
        self.tables.get(table)?.get(uuid)
    }

    /// All rows of a table, in the order of their names.
    pub(crate) fn rows(&self, table: &str) -> impl Iterator<Item = (&Uuid, &Row)> {
        self.tables.get(table).into_iter().flatten()
    }
}

/// The members of a column's value: one for a scalar, any number for a set.
fn members(value: Option<&Value>) -> &[Value] {
    match value {
        Some(Value::Array(a)) if a.len() == 2 && a[0] == "set" => a[1].as_array().map_or(&[], Vec::as_slice),
        Some(v) => std::slice::from_ref(v),
        None => &[],
    }
}

fn uuid(value: &Value) -> Option<Uuid> {
    match value.as_array()?.as_slice() {
        [kind, id] if kind == "uuid" => id.as_str().map(str::to_owned),
        _ => None,
    }
}

impl Row {
    /// A string, or the first of a set.
    pub(crate) fn string(&self, column: &str) -> Option<String> {
        members(self.0.get(column)).first()?.as_str().map(str::to_owned)
    }

    /// All strings of a set.
    pub(crate) fn strings(&self, column: &str) -> Vec<String> {
        members(self.0.get(column)).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    /// An integer, when there is one.
    pub(crate) fn integer(&self, column: &str) -> Option<i64> {
        members(self.0.get(column)).first()?.as_i64()
    }

    /// All integers of a set.
    pub(crate) fn integers(&self, column: &str) -> Vec<i64> {
        members(self.0.get(column)).iter().filter_map(Value::as_i64).collect()
    }

    /// A truth value; false when there is none.
    pub(crate) fn flag(&self, column: &str) -> bool {
        members(self.0.get(column)).first().and_then(Value::as_bool).unwrap_or(false)
    }

    /// A reference to one row.
    pub(crate) fn reference(&self, column: &str) -> Option<Uuid> {
        members(self.0.get(column)).first().and_then(uuid)
    }

    /// References to rows.
    pub(crate) fn references(&self, column: &str) -> Vec<Uuid> {
        members(self.0.get(column)).iter().filter_map(uuid).collect()
    }

    /// A map of strings.
    pub(crate) fn map(&self, column: &str) -> BTreeMap<String, String> {
        pairs(self.0.get(column))
            .filter_map(|(k, v)| Some((k.as_str()?.into(), v.as_str()?.into())))
            .collect()
    }

    /// A map of numbers to rows, such as a QoS has.
    pub(crate) fn numbered(&self, column: &str) -> BTreeMap<i64, Uuid> {
        pairs(self.0.get(column)).filter_map(|(k, v)| Some((k.as_i64()?, uuid(v)?))).collect()
    }
}

fn pairs(value: Option<&Value>) -> impl Iterator<Item = (&Value, &Value)> {
    let list = match value {
        Some(Value::Array(a)) if a.len() == 2 && a[0] == "map" => {
            a[1].as_array().map_or(&[][..], Vec::as_slice)
        }
        _ => &[],
    };
    list.iter().filter_map(|p| match p.as_array()?.as_slice() {
        [k, v] => Some((k, v)),
        _ => None,
    })
}

/// A column of at most one value.
pub(crate) fn optional(value: Option<impl Into<Value>>) -> Value {
    value.map_or_else(|| json!(["set", []]), Into::into)
}

/// A column that maps strings to strings or numbers.
pub(crate) fn map<V: Into<Value>>(pairs: impl IntoIterator<Item = (String, V)>) -> Value {
    let list: Vec<Value> = pairs.into_iter().map(|(k, v)| json!([k, v.into()])).collect();
    json!(["map", list])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_as_rfc_7047_writes_them() {
        let mut replica = Replica::default();
        let updates = json!({"Port": {"p": {"new": {
            "name": "a", "tag": ["set", []], "trunks": ["set", [1, 2]], "one": 7, "up": true,
            "interfaces": ["uuid", "i"], "more": ["set", [["uuid", "j"], ["uuid", "k"]]],
            "other_config": ["map", [["x", "y"]]], "queues": ["map", [[3, ["uuid", "q"]]]],
        }}}});
        replica.update(&updates).expect("an update");
        let row = replica.row("Port", "p").expect("a row");
        assert_eq!(row.string("name").as_deref(), Some("a"));
        assert_eq!(row.strings("name"), ["a"]);
        assert_eq!((row.integer("tag"), row.integer("one")), (None, Some(7)));
        assert_eq!(row.integers("trunks"), [1, 2]);
        assert!(row.flag("up") && !row.flag("down"));
        assert_eq!(row.reference("interfaces").as_deref(), Some("i"));
        assert_eq!(row.references("more"), ["j", "k"]);
        assert_eq!(row.map("other_config")["x"], "y");
        assert_eq!(row.numbered("queues")[&3], "q");
        replica.update(&json!({"Port": {"p": {"old": {"name": "a"}}}})).expect("an update");
        assert!(replica.row("Port", "p").is_none());
        assert_eq!(replica.rows("Port").count(), 0);
    }

    #[test]
    fn a_server_that_talks_nonsense_is_told() {
        let mut replica = Replica::default();
        for bad in [json!(1), json!({"Port": 1}), json!({"Port": {"p": {"new": 1}}})] {
            assert!(replica.update(&bad).is_err(), "{bad}");
        }
        replica
            .update(
                &json!({"Port": {"p": {"new": {"tag": ["set"], "name": ["uuid"], "m": ["map", [1, [2]]]}}}}),
            )
            .expect("taken");
        let row = replica.row("Port", "p").expect("a row");
        assert_eq!((row.integer("tag"), row.reference("name"), row.map("m").len()), (None, None, 0));
    }
}
