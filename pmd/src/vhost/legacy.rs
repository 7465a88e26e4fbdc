//! What a port leaves to the process that goes on with it.

use std::os::fd::OwnedFd;

use super::backend::Ask;
use super::endpoint::Socket;
use super::message::Frame;
use super::refusal::Refusal;
use super::wire::{Half, WireError};

/// A port, at rest: no ring runs, and nobody reads its sockets.
#[derive(Debug)]
pub struct Legacy {
    pub(super) socket: Socket,
    pub(super) pairs: u16,
    /// Rings for control.
    pub(super) control: u16,
    /// The socket that listens.
    pub(super) listener: Option<OwnedFd>,
    /// The conversation with a front-end.
    pub(super) talk: Option<Talk>,
}

/// A conversation with a front-end.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) wire: Half,
    /// The channel for our own requests, and those that are not answered yet.
    pub(super) channel: Option<Half>,
    pub(super) asked: Vec<Ask>,
    /// What it has come to, in messages.
    pub(super) said: Vec<Frame>,
    /// See [`Host::save`](super::Host::save).
    pub(super) device: Vec<u8>,
}

impl Legacy {
    /// Where its front-end is to be found.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether a front-end is connected.
    pub fn connected(&self) -> bool {
        self.talk.is_some()
    }
}

/// Why a port cannot be left, or not be gone on with.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub struct LegacyError {
    /// Its socket.
    pub path: std::path::PathBuf,
    /// Why.
    pub source: LegacyTrouble,
}

/// What is wrong with a port.
#[derive(Debug, thiserror::Error)]
pub enum LegacyTrouble {
    /// A ring does not stop, or a conversation is not one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection is none.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A descriptor cannot be passed on, or is not what it should be.
    #[error("{what}: {source}")]
    Os {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The port of the other process has other queues.
    #[error(
        "{theirs} queue pairs and {their_control} control queues there, {ours} and {our_control} here; give it as many (queues=, ctrl_vq=)"
    )]
    Queues {
        /// Queue pairs there.
        theirs: u16,
        /// Control queues there.
        their_control: u16,
        /// Queue pairs here.
        ours: u16,
        /// Control queues here.
        our_control: u16,
    },
}
