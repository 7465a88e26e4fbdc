//! The run loop of a core.
