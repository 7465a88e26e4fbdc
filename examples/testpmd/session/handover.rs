//! The next process: waited for, and given the ports.

use std::os::fd::AsFd;
use std::time::Instant;

use crossbeam_channel::Sender;
use pmd::vhost::handover::Will;

use super::{Flow, Session};
use crate::Error;
use crate::app::say;
use crate::prompt::complain;

/// Where the next process will come.
pub(super) struct Heir {
    will: Will,
    /// Looks for the next one.
    again: Sender<()>,
}

impl Session {
    /// Waits for the next process from now on. `true`: the ports were taken over from one before.
    pub(super) fn await_heir(&mut self) -> Result<bool, Error> {
        let Some((will, before)) = self.app.settle()? else { return Ok(false) };
        if before {
            say("The ports of the testpmd before were taken over\n");
        }
        let socket = will.as_fd().try_clone_to_owned().map_err(Error::io("socket of --takeover"))?;
        let again = self.events.await_successor(socket)?;
        let _ = again.send(());
        self.heir = Some(Heir { will, again });
        Ok(before)
    }

    /// Somebody has come: gives him the ports, or says why not.
    pub(super) fn hand_over(&mut self) -> Flow {
        let Some(Heir { will, again }) = self.heir.take() else { return Flow::On };
        let since = Instant::now();
        let handed = match will.successor(&self.app.served()) {
            Ok(None) => Ok(false),
            Ok(Some(successor)) => self.app.hand_over(successor, &will).map(|()| true),
            Err(why) => Err(why.to_string()),
        };
        match handed {
            Ok(true) => {
                will.leave();
                let ms = since.elapsed().as_secs_f64() * 1e3;
                say(&format!("\nAnother testpmd has taken over within {ms:.1} ms\n"));
                return Flow::Quit;
            }
            Ok(false) => {}
            Err(why) => complain(&format!("not handed over: {why}; going on")),
        }
        let _ = again.send(());
        self.heir = Some(Heir { will, again });
        Flow::On
    }
}
