//! How the words of a ring are reached: mapped once, or checked at every access.
//!
//! The ring logic is written once over [`Access`]; the choice is a type, made when a ring is opened.

use std::sync::Arc;

use hugepages::{CheckedWindow, OutOfRange, Table, Window, Word, Words};

/// A way to reach the words of a ring.
pub trait Access: Send + Sized + 'static {
    /// A view of words of type `T`.
    type Of<T: Word>: Words<T>;
    /// A view of `n` words at `gpa`.
    ///
    /// # Errors
    /// When they cannot be reached this way.
    fn view<T: Word>(table: &Arc<Table>, gpa: u64, n: usize) -> Result<Self::Of<T>, OutOfRange>;
}

/// Translated once; an area must lie in one region.
pub struct Mapped;

/// Translated at every access by `vm-memory`; an area may lie in several regions.
pub struct Checked;

impl Access for Mapped {
    type Of<T: Word> = Window<T>;
    fn view<T: Word>(table: &Arc<Table>, gpa: u64, n: usize) -> Result<Window<T>, OutOfRange> {
        table.window(gpa, n)
    }
}

impl Access for Checked {
    type Of<T: Word> = CheckedWindow<T>;
    fn view<T: Word>(table: &Arc<Table>, gpa: u64, n: usize) -> Result<CheckedWindow<T>, OutOfRange> {
        table.checked_window(gpa, n)
    }
}
