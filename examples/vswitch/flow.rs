//! The vocabulary that the datapath, the pipeline and the protocols share.
//!
//! - [`fields`]: every field, its names and numbers
//! - [`key`]: what is known of a packet, as plain words
//! - [`values`]: values of fields as text
//! - [`matching`]: what a flow matches, and its text
//! - [`action`]: what a flow does; groups and meters
//! - [`mod@print`], [`parse`]: the text of actions and flows

pub mod fields;
pub mod key;
pub mod values;
pub mod matching;
pub mod action;
pub mod print;
pub mod parse;
mod names;

pub use action::{Action, Flow};
pub use fields::{Field, Subfield};
pub use key::{Key, Mask};
pub use matching::Match;
pub use names::wire_name;
