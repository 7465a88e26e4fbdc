//! Huge pages: what the host has, and how to get more.
