//! A burst on its way, see [`hugepages::batch`].

pub use hugepages::batch::{BURST, Batch, CAP};
