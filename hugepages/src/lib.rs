//! Memory of guests and of our own, in the order a buffer meets it.
//!
//! The only crate that touches guest memory. Everything else holds [`Window`]s of rings and
//! [`Buf`]s on loan, and needs no `unsafe` for either; `docs/memory.md` says why that is sound.

// UNSAFETY: this crate is the room where addresses of shared memory become safe types.
#![allow(unsafe_code)]

#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!(
    "rings are little-endian and addresses are 64 bits wide: big-endian and 32-bit hosts are not supported"
);

pub mod reserve;
pub mod dma;
pub mod sigbus;
pub mod map;
pub mod postcopy;
mod copy;
pub mod table;
pub mod window;
pub mod buf;
pub mod io;
pub mod log;
pub mod private;
pub mod batch;
mod lending;
pub mod room;
pub mod pool;
#[cfg(doctest)]
mod soundness;

pub use batch::Batch;
pub use buf::{Buf, Lender, Loan, Offload, Pod};
pub use log::{DirtyLog, Marks};
pub use map::{Backing, Damage, Map, MapError, PageSize};
pub use pool::Pool;
pub use postcopy::MissingPages;
pub use private::Private;
pub use room::{Reach, Room};
pub use table::{OutOfRange, Region, Table, TableError};
pub use window::{CheckedWindow, Monitor, Window, Word, Words};
