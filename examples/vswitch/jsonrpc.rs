//! JSON-RPC 1.0 as OVSDB and `ovs-appctl` speak it (RFC 7047 §4): values that follow each other on a stream.

use serde_json::{Value, json};

/// The longest message that is read.
pub(crate) const MESSAGE_LIMIT: usize = 64 << 20;

/// What a peer sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// It wants an answer; with `id` null it wants none.
    Request {
        /// What is to be done.
        method: String,
        /// With what.
        params: Vec<Value>,
        /// To be repeated in the answer.
        id: Value,
    },
    /// It answers.
    Reply {
        /// Null when it failed.
        result: Value,
        /// Null when it did not fail.
        error: Value,
        /// That of the request.
        id: Value,
    },
}

/// A request.
pub(crate) fn request(method: &str, params: Value, id: Value) -> Vec<u8> {
    json!({"method": method, "params": params, "id": id}).to_string().into_bytes()
}

/// An answer.
pub(crate) fn reply(result: Value, error: Value, id: Value) -> Vec<u8> {
    json!({"result": result, "error": error, "id": id}).to_string().into_bytes()
}

/// Finds where one value ends and the next begins; keeps its place between calls, so that a byte is looked at once.
#[derive(Default)]
pub(crate) struct Scanner {
    at: usize,
    depth: u32,
    text: bool,
    escaped: bool,
}

/// Why a stream is given up.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum JsonError {
    /// Longer than [`MESSAGE_LIMIT`].
    #[error("a message of more than {MESSAGE_LIMIT} bytes")]
    TooLong,
    /// Not an object, or not JSON.
    #[error("not JSON-RPC: {0}")]
    Malformed(String),
}

impl Scanner {
    /// The length of the first whole object in `input`, once it has come.
    pub(crate) fn scan(&mut self, input: &[u8]) -> Result<Option<usize>, JsonError> {
        while let Some(&byte) = input.get(self.at) {
            self.at += 1;
            if self.text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => {
                    let length = self.at;
                    *self = Scanner::default();
                    return Ok(Some(length));
                }
                b'}' | b']' if self.depth > 0 => self.depth -= 1,
                b'"' if self.depth > 0 => self.text = true,
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.depth > 0 => {}
                _ => return Err(JsonError::Malformed(format!("a message begins with byte {byte:#04x}"))),
            }
        }
        if input.len() > MESSAGE_LIMIT { Err(JsonError::TooLong) } else { Ok(None) }
    }
}

impl Message {
    /// Reads one value as [`Scanner`] cut it out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Message, JsonError> {
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|e| JsonError::Malformed(e.to_string()))?;
        let Some(object) = value.as_object_mut() else {
            return Err(JsonError::Malformed("not an object".into()));
        };
        let mut field = |name: &str| object.remove(name).unwrap_or(Value::Null);
        match (field("method"), field("params"), field("id")) {
            (Value::String(method), Value::Array(params), id) => Ok(Message::Request { method, params, id }),
            (Value::Null, Value::Null, id) => {
                Ok(Message::Reply { result: field("result"), error: field("error"), id })
            }
            _ => Err(JsonError::Malformed("neither a request nor a reply".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn objects_are_cut_out_of_a_stream_in_any_pieces() {
        let stream = br#" {"id":1,"method":"e}cho\"{","params":[[],{}]}
            {"id":1,"result":[],"error":null}"#;
        for step in 1..stream.len() {
            let (mut scanner, mut from, mut found) = (Scanner::default(), 0, Vec::new());
            let mut to = 0;
            while to < stream.len() {
                to = (to + step).min(stream.len());
                while let Some(n) = scanner.scan(&stream[from..to]).expect("good JSON") {
                    found.push(Message::parse(&stream[from..from + n]).expect("a message"));
                    from += n;
                }
            }
            assert_eq!(found.len(), 2, "in pieces of {step}");
            assert!(
                matches!(&found[0], Message::Request { method, params, .. } if method == "e}cho\"{" && params.len() == 2)
            );
            assert!(matches!(&found[1], Message::Reply { .. }));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in ["[]", "{\"method\":1}", "{\"method\":\"a\"}", "{"] {
            assert!(Message::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Scanner::default().scan(b"x").is_err());
        assert!(Scanner::default().scan(b"]").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut scanner = Scanner::default();
            if let Ok(Some(n)) = scanner.scan(&bytes) {
                let _ = Message::parse(&bytes[..n]);
            }
        }
    }
}
