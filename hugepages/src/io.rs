//! Whole packets between buffers and file descriptors, straight from or to the shared memory: one `readv(2)` or
//! `writev(2)` each, or one `sendmmsg(2)` for many.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::buf::Buf;

/// Most buffers of one packet.
pub const MAX_PIECES: usize = 256;

/// The pieces of one call: a header of our own, then buffers.
struct Pieces {
    list: [MaybeUninit<libc::iovec>; MAX_PIECES + 1],
    n: usize,
}

impl Pieces {
    fn new(header: *mut u8, len: usize) -> Pieces {
        let mut pieces = Pieces { list: [const { MaybeUninit::uninit() }; MAX_PIECES + 1], n: 0 };
        pieces.push(header, len);
        pieces
    }

    fn push(&mut self, at: *mut u8, len: usize) -> bool {
        let Some(slot) = self.list.get_mut(self.n) else { return false };
        slot.write(libc::iovec { iov_base: at.cast(), iov_len: len });
        self.n += 1;
        true
    }
}

/// Reads one packet: its first bytes fill `header`, the next fill `bufs` in order. How many bytes
/// there were in all; what does not fit is lost if `fd` gives datagrams.
///
/// # Errors
/// The kernel's; [`Errno::MSGSIZE`] for more than [`MAX_PIECES`] buffers.
///
/// # Panics
/// When a buffer may not be written.
pub fn read<'a>(
    fd: BorrowedFd<'_>,
    header: &mut [u8],
    bufs: impl Iterator<Item = &'a mut Buf>,
) -> Result<usize, Errno> {
    let mut pieces = Pieces::new(header.as_mut_ptr(), header.len());
    for buf in bufs {
        assert!(buf.writable(), "a packet cannot be read into a read-only buffer");
        if !pieces.push(buf.iova() as *mut u8, buf.len() as usize) {
            return Err(Errno::MSGSIZE);
        }
    }
    // SAFETY: n entries are initialised; each is the header, borrowed for the call, or a range on
    // loan that may be written, which the exclusive borrow of its Buf keeps mapped.
    let n = unsafe { libc::readv(fd.as_raw_fd(), pieces.list.as_ptr().cast(), pieces.n as libc::c_int) };
    result(n)
}

/// Writes one packet: `header`, then `bufs` in order. How many bytes were taken.
///
/// # Errors
/// The kernel's; [`Errno::MSGSIZE`] for more than [`MAX_PIECES`] buffers.
pub fn write<'a>(
    fd: BorrowedFd<'_>,
    header: &[u8],
    bufs: impl Iterator<Item = &'a Buf>,
) -> Result<usize, Errno> {
    let mut pieces = Pieces::new(header.as_ptr().cast_mut(), header.len());
    for buf in bufs {
        if !pieces.push(buf.iova() as *mut u8, buf.len() as usize) {
            return Err(Errno::MSGSIZE);
        }
    }
    // SAFETY: n entries are initialised; each is the header or a range on loan, borrowed for the
    // call; writev only reads them.
    let n = unsafe { libc::writev(fd.as_raw_fd(), pieces.list.as_ptr().cast(), pieces.n as libc::c_int) };
    result(n)
}

/// Most packets of one [`send`].
pub const MAX_PACKETS: usize = 32;

/// Sends packets by a socket without waiting: as many as there are `headers`, at most [`MAX_PACKETS`], each with
/// its header in front of buffers from `bufs`, up to one that has no [`Buf::more`]. How many were sent.
///
/// # Errors
/// The kernel's, about the first packet; [`Errno::MSGSIZE`] when it has more than [`MAX_PIECES`] buffers.
pub fn send<'a, const HEADER: usize>(
    fd: BorrowedFd<'_>,
    headers: &[[u8; HEADER]],
    mut bufs: impl Iterator<Item = &'a Buf>,
) -> Result<usize, Errno> {
    let mut list = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES + MAX_PACKETS];
    let mut lengths = [0usize; MAX_PACKETS];
    let (mut used, mut packets) = (0, 0);
    'packets: for header in headers.iter().take(MAX_PACKETS) {
        let mut pieces = 0;
        let mut push = |at: *mut u8, len: usize| {
            let slot = list.get_mut(used + pieces)?;
            slot.write(libc::iovec { iov_base: at.cast(), iov_len: len });
            pieces += 1;
            Some(())
        };
        let mut more = push(header.as_ptr().cast_mut(), HEADER).is_some();
        while more {
            let Some(buf) = bufs.next() else { break };
            if push(buf.iova() as *mut u8, buf.len() as usize).is_none() {
                break 'packets;
            }
            more = buf.more();
        }
        if pieces == 0 {
            break;
        }
        lengths[packets] = pieces;
        used += pieces;
        packets += 1;
    }
    if packets == 0 {
        return if headers.is_empty() { Ok(0) } else { Err(Errno::MSGSIZE) };
    }
    // SAFETY: a mmsghdr of zeros is a valid one, of nothing.
    let mut messages: [libc::mmsghdr; MAX_PACKETS] = unsafe { std::mem::zeroed() };
    let mut at = list.as_mut_ptr().cast::<libc::iovec>();
    for (message, pieces) in messages.iter_mut().zip(lengths).take(packets) {
        message.msg_hdr.msg_iov = at;
        message.msg_hdr.msg_iovlen = pieces as _;
        // SAFETY: the lengths add up to the entries that were written.
        at = unsafe { at.add(pieces) };
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `packets` messages, whose entries are initialised; each is a header or a range on loan, borrowed for
    // the call, and only read.
    let n =
        unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), packets as libc::c_uint, flags as _) };
    result(n as isize)
}

fn result(n: isize) -> Result<usize, Errno> {
    usize::try_from(n)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, PageSize, Pool};
    use std::os::fd::AsFd;

    #[test]
    #[cfg_attr(miri, ignore = "system calls")]
    fn a_packet_crosses_a_socket_in_pieces() {
        let (mut pool, _) = Pool::new(300, 64, Backing { page: PageSize::Base, node: None }).unwrap();
        let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut from: Vec<Buf> = (0..3).map(|_| pool.take().unwrap()).collect();
        let mut to: Vec<Buf> = (0..3).map(|_| pool.take().unwrap()).collect();
        from[2].truncate(10);
        for (i, buf) in from.iter_mut().enumerate() {
            assert!(buf.poke(0, i as u64 + 7));
        }
        assert_eq!(write(a.as_fd(), &[1, 2, 3], from.iter()), Ok(3 + 64 + 64 + 10));
        let mut header = [0; 3];
        assert_eq!(read(b.as_fd(), &mut header, to.iter_mut()), Ok(3 + 64 + 64 + 10));
        assert_eq!(header, [1, 2, 3]);
        for (i, buf) in to.iter().enumerate() {
            assert_eq!(buf.peek::<u64>(0), Some(i as u64 + 7));
        }
        b.set_nonblocking(true).unwrap();
        assert_eq!(read(b.as_fd(), &mut header, to.iter_mut()), Err(Errno::AGAIN));
        let many: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(write(a.as_fd(), &[], many.iter()), Err(Errno::MSGSIZE));
        for buf in from.into_iter().chain(to).chain(many) {
            pool.settle(buf.finish(0));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "system calls")]
    fn packets_leave_together_each_whole() {
        use std::os::unix::net::UnixDatagram;
        let (mut pool, _) = Pool::new(300, 64, Backing { page: PageSize::Base, node: None }).unwrap();
        let (from, to) = UnixDatagram::pair().unwrap();
        let mut bufs = Vec::new();
        for (text, more) in [("one", false), ("t", true), ("wo", false), ("three", false)] {
            let mut buf = pool.take().unwrap();
            buf.truncate(text.len() as u32);
            buf.write(0, text.as_bytes());
            buf.set_more(more);
            bufs.push(buf);
        }
        assert_eq!(send(from.as_fd(), &[[1], [2], [3]], bufs.iter()), Ok(3));
        assert_eq!(send::<1>(from.as_fd(), &[], bufs.iter()), Ok(0));
        let next = || {
            let mut bytes = [0; 64];
            let n = to.recv(&mut bytes).unwrap();
            bytes[..n].to_vec()
        };
        assert_eq!(
            [next(), next(), next()],
            [b"\x01one".to_vec(), b"\x02two".to_vec(), b"\x03three".to_vec()]
        );
        // One that has too many pieces is left out, or is an error when it is the first.
        let mut many: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
        many.iter_mut().for_each(|buf| buf.set_more(true));
        assert_eq!(send(from.as_fd(), &[[1], [2]], bufs[..1].iter().chain(&many)), Ok(1));
        assert_eq!(next(), b"\x01one");
        assert_eq!(send(from.as_fd(), &[[1]], many.iter()), Err(Errno::MSGSIZE));
        for buf in bufs.into_iter().chain(many) {
            pool.settle(buf.finish(0));
        }
    }
}
