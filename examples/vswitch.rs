//! A virtual switch that is driven as Open vSwitch is. In reading order:
//!
//! - [`flow`]: fields, keys, matches, actions: the words all others use

pub mod flow;
