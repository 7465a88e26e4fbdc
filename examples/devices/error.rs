//! What can go wrong: one line for the user, who is told what to do.

/// Why testpmd ends with exit code 1, or refuses a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or configuration file is wrong.
    #[error("{0}")]
    Usage(String),
    /// A port failed.
    #[error(transparent)]
    Port(#[from] pmd::PortError),
    /// Memory could not be had.
    #[error("buffer pool: {0}")]
    Memory(#[from] hugepages::MapError),
    /// Something could not be given up, or a user is not known.
    #[error(transparent)]
    Confine(#[from] pmd::confine::ConfineError),
    /// The system refused something that is no port's.
    #[error("{what}: {source}")]
    Io {
        /// The step that failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: names the step.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        |source| Error::Io { what: what.into(), source }
    }
}
