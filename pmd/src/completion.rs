//! Receipts on their way home.
