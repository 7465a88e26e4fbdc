//! `port start|stop|close|attach|detach`.

use super::{App, Outcome, say};
use crate::forward::queue_id;
use crate::ports;
use crate::text::mac;
use crate::vdev::Vdev;

impl App {
    /// Starts ports that are not started.
    ///
    /// # Errors
    /// What the first one that cannot be started says.
    pub(crate) fn start_ports(&mut self, which: &[usize]) -> Outcome {
        for &port in which {
            if self.slot(port).started.is_some() {
                continue;
            }
            let (rxq, txq) = (self.options.rxq, self.options.txq);
            let most = self.slot(port).port.caps().queues;
            let offered = ports::queues(&self.slot(port).vdev).unwrap_or(most).min(most);
            for (word, n) in [("rxq", rxq), ("txq", txq)] {
                if n > offered {
                    return Err(format!(
                        "Fail: input {word} ({n}) can't be greater than max_{word}s ({offered}) of port {port}; \
                         give it queues={n}"
                    ));
                }
            }
            let slot = self.slot_mut(port);
            let queues = slot.port.start(rxq.max(txq)).map_err(|e| e.to_string())?;
            slot.started = Some(queues.len() as u16);
            (slot.shown, slot.told) = (None, None);
            self.attach(port, queues)?;
            say(&format!("Port {port}: {}\n", mac(self.slot(port).port.mac())));
        }
        Ok(())
    }

    /// Takes a port's queues home and stops it; nothing, if it is stopped.
    ///
    /// # Errors
    /// When a queue does not come home or the port does not stop.
    pub(super) fn stop_port(&mut self, port: usize) -> Outcome {
        let Some(queues) = self.slot(port).started else { return Ok(()) };
        let ids: Vec<_> = (0..queues).map(|q| queue_id(port, q)).collect();
        let home = self.recall(&ids)?;
        let slot = self.slot_mut(port);
        slot.started = None;
        slot.port.stop(home).map_err(|e| e.to_string())
    }

    /// `port start`.
    pub(crate) fn port_start(&mut self, word: &str) -> Outcome {
        let which = self.choose(word)?;
        self.start_ports(&which)?;
        say("Checking link statuses...\nDone\n");
        Ok(())
    }

    /// `port stop`.
    pub(crate) fn port_stop(&mut self, word: &str) -> Outcome {
        let which = self.choose(word)?;
        say("Stopping ports...\n");
        for port in which {
            if self.is_forwarding() && self.forwarding().contains(&port) {
                say(&format!("Please remove port {port} from forwarding configuration.\n"));
            } else {
                self.stop_port(port)?;
            }
        }
        say("Checking link statuses...\nDone\n");
        Ok(())
    }

    /// `port close`, and `port detach`, which asks for a stopped port.
    pub(crate) fn port_close(&mut self, word: &str) -> Outcome {
        let which = self.choose(word)?;
        say("Closing ports...\n");
        for port in which {
            if self.slot(port).started.is_some() {
                say(&format!("Cannot close started device (port {port})\n"));
            } else {
                self.ports[port] = None;
                say(&format!("Port {port} is closed\n"));
            }
        }
        say("Done\n");
        Ok(())
    }

    /// `port detach`.
    pub(crate) fn port_detach(&mut self, word: &str) -> Outcome {
        let which = self.choose(word)?;
        say("Removing a device...\n");
        for port in which {
            if self.slot(port).started.is_some() {
                return Err("Port not stopped".into());
            }
            self.ports[port] = None;
            say(&format!("Device of port {port} is detached\nNow total ports is {}\n", self.all().len()));
        }
        say("Done\n");
        Ok(())
    }

    /// `port attach`. The port is stopped, as in DPDK.
    pub(crate) fn port_attach(&mut self, text: &str) -> Outcome {
        say("Attaching a new port...\n");
        let vdev = Vdev::parse(text).map_err(|e| e.to_string())?;
        let port = self.add(vdev).map_err(|e| e.to_string())?;
        say(&format!("Port {port} is attached. Now total ports is {}\nDone\n", self.all().len()));
        Ok(())
    }
}
