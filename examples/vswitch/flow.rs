//! The vocabulary that the datapath, the pipeline and the protocols share.
//!
//! - [`fields`]: every field, its names and numbers
//! - [`key`]: what is known of a packet, as plain words
//! - [`values`]: values of fields as text
//! - [`matching`]: what a flow matches, and its text
//! - [`action`]: what a flow does; groups and meters

pub mod fields;
pub mod key;
pub mod values;
pub mod matching;
pub mod action;
mod names;

pub use action::{Action, Flow};
pub use fields::{Field, Subfield};
pub use key::{Key, Mask};
pub use matching::Match;
pub use names::wire_name;
