//! One message: parsed or refused; what is parsed knows its own number.

use std::os::fd::OwnedFd;

use pmd::spec::vhost_user::{FLAG_VERSION, Header};
use pmd::vhost::message::{Fds, Frame, Request, check_header};

pub(crate) fn run(data: &[u8]) {
    let Some((&[request, flags, fds, ..], payload)) = data.split_first_chunk::<4>() else { return };
    let header = Header {
        request: request.into(),
        flags: FLAG_VERSION | u32::from(flags),
        size: payload.len() as u32,
    };
    if check_header(&header).is_err() {
        return;
    }
    let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let fds: Fds = (0..fds % 10).map(|_| event()).collect::<Vec<OwnedFd>>().into_iter().collect();
    let parsed = Request::parse(Frame { header, payload: payload.to_vec(), fds });
    if let Ok(Request::Unknown(id)) = parsed {
        assert_eq!(id, header.request);
    }
}
