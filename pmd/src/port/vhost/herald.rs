//! Says on the network where a guest is that has just moved here: a RARP packet in its name, received
//! like one of its own (spec "SEND_RARP").

use hugepages::map::{Backing, MapError, PageSize};
use hugepages::{Buf, Loan, Pool};

use crate::batch::Batch;

/// Bytes of an Ethernet frame without its checksum, at the least.
const FRAME: usize = 60;

/// Packets that wait to be received, and what they are made of.
pub(crate) struct Herald {
    pool: Pool,
    mac: [u8; 6],
    due: bool,
}

impl Herald {
    /// One packet for this address.
    pub(super) fn new(mac: [u8; 6]) -> Result<Herald, MapError> {
        let (pool, _) = Pool::new(1, FRAME as u32, Backing { page: PageSize::Base, node: None })?;
        Ok(Herald { pool, mac, due: true })
    }

    /// Lends the packet, once; how many bytes it has.
    pub(super) fn rx(&mut self, out: &mut Batch<Buf>) -> Option<u64> {
        if !self.due || out.room() == 0 {
            return None;
        }
        let mut buf = self.pool.take()?;
        let written = buf.write(0, &frame(self.mac));
        buf.truncate(written as u32);
        out.push(buf);
        self.due = false;
        Some(written as u64)
    }

    /// Whether the packet has not been lent yet.
    pub(super) fn due(&self) -> bool {
        self.due
    }

    /// Takes its own receipts from the front.
    pub(super) fn settle(&mut self, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == self.pool.owner()) {
            self.pool.settle(loans.pop_front().expect("not empty"));
        }
    }

    /// Packets that are out.
    pub(super) fn lent(&self) -> u32 {
        self.pool.out()
    }
}

/// RFC 903: a request by the station for its own address, sent to all.
fn frame(mac: [u8; 6]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType RARP; Ethernet, IPv4, their lengths, operation 3.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_packet_byte_for_byte() {
        let mut herald = Herald::new([2, 3, 4, 5, 6, 7]).unwrap();
        let mut out = Batch::default();
        assert_eq!((herald.rx(&mut out), herald.rx(&mut out), herald.lent()), (Some(60), None, 1));
        let buf = out.pop_front().unwrap();
        let mut bytes = [0xa5; 60];
        assert_eq!(buf.read(0, &mut bytes), 60);
        #[rustfmt::skip]
        assert_eq!(bytes[..42], [
            255, 255, 255, 255, 255, 255, 2, 3, 4, 5, 6, 7, 0x80, 0x35,
            0, 1, 8, 0, 6, 4, 0, 3, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0,
        ]);
        assert_eq!(bytes[42..], [0; 18]);
        let mut loans = Batch::default();
        loans.push(buf.finish(0));
        herald.settle(&mut loans);
        assert!(loans.is_empty() && herald.lent() == 0);
    }
}
