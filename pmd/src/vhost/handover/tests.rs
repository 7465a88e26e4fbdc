use std::io::Write;
use std::os::unix::net::UnixStream;

use super::super::backend::Ask;
use super::super::legacy::Talk;
use super::super::wire::Half;
use super::*;

fn socket() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

fn half(received: &[u8], unsent: &[u8]) -> Half {
    let fds = || Fds::from_iter([socket(), socket()]);
    Half {
        socket: socket(),
        received: received.to_vec(),
        fds: fds(),
        unsent: unsent.to_vec(),
        unsent_fds: fds(),
    }
}

/// A port with something of every kind.
fn port() -> Legacy {
    let said = vec![format::bare(8, &[0; 8]), Frame::of(12, &[0; 8], Fds::from_iter([socket()]))];
    let talk = Talk {
        wire: half(&[7; 4100], &[8; 20]),
        channel: Some(half(&[9; 3], &[10; 9000])),
        asked: vec![Ask::Call { ring: 3 }, Ask::Miss { iova: 4096, perm: 1 }],
        said,
        device: vec![11; 5000],
    };
    let socket_path = Socket::Listen("/run/vm0.sock".into());
    Legacy { socket: socket_path, pairs: 2, control: 1, listener: Some(socket()), talk: Some(talk) }
}

fn read_all(frames: Vec<Frame>) -> Result<Vec<Legacy>, HandoverError> {
    let mut reader = Reader::default();
    frames.into_iter().try_for_each(|frame| reader.take(frame))?;
    Ok(reader.ports)
}

#[test]
fn a_port_is_put_together_as_it_was() {
    let caller = Legacy {
        socket: Socket::Connect("/run/vm1.sock".into()),
        pairs: 1,
        control: 0,
        listener: None,
        talk: None,
    };
    let frames: Vec<Frame> = [port(), caller].into_iter().flat_map(format::port).collect();
    let [first, second] = &read_all(frames).unwrap()[..] else { panic!("two ports") };
    assert_eq!(second.socket(), &Socket::Connect("/run/vm1.sock".into()));
    assert!(!second.connected() && second.listener.is_none());
    assert_eq!((first.pairs, first.control, first.listener.is_some()), (2, 1, true));
    let (got, want) = (first.talk.as_ref().unwrap(), port().talk.unwrap());
    assert_eq!((&got.device, &got.asked), (&want.device, &want.asked));
    assert_eq!(
        got.said.iter().map(|f| (f.header.request, f.fds.len())).collect::<Vec<_>>(),
        [(8, 0), (12, 1)]
    );
    for (got, want) in
        [(&got.wire, &want.wire), (got.channel.as_ref().unwrap(), want.channel.as_ref().unwrap())]
    {
        assert_eq!((&got.received, &got.unsent), (&want.received, &want.unsent));
        assert_eq!((got.fds.len(), got.unsent_fds.len()), (2, 2));
    }
}

#[test]
fn the_first_messages_are_these_bytes() {
    assert_eq!(format::hello((1, 3)), [1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(format::versions(&[1, 0, 0, 0, 3, 0, 0, 0]).unwrap(), (1, 3));
    let port = format::of_socket(&Socket::Listen("/a".into()));
    assert_eq!(port, [1, 0, 0, 0, 0, 0, 0, 0, b'/', b'a']);
    assert_eq!(format::socket(&port).unwrap(), Socket::Listen("/a".into()));
    for wrong in [&port[..8], &port[..3], &[2, 0, 0, 0, 0, 0, 0, 0, b'/'], &[1, 0, 0, 0, 0, 0, 0, 0, b'/', 0]]
    {
        assert!(format::socket(wrong).is_err(), "{wrong:?}");
    }
}

/// Messages left out, doubled, exchanged, cut: refused, or ports all the same, and never a panic.
#[test]
fn nothing_that_is_left_out_or_doubled_goes_far() {
    let frames = || format::port(port());
    let n = frames().len();
    for at in 0..n {
        let mut all = frames();
        all.remove(at);
        assert!(at > 1 || read_all(all).is_err(), "without message {at}");
        let mut all = frames();
        let Frame { header, payload, .. } = &all[at];
        let twice = Frame::of(header.request, payload, Fds::from_iter([socket()]));
        let single = [format::id::PORT, format::id::WIRE].contains(&header.request);
        all.insert(at, twice);
        assert!(!single || read_all(all).is_err(), "message {at} twice");
        let mut all = frames();
        all[at].fds = Fds::default();
        let needs = [format::id::PORT, format::id::WIRE, format::id::CHANNEL];
        assert!(!needs.contains(&all[at].header.request) || read_all(all).is_err(), "message {at} without");
    }
    let device = || format::bare(format::id::DEVICE, &[0; 4096]);
    let many = frames().into_iter().chain((0..256).map(|_| device())).collect();
    assert!(matches!(read_all(many), Err(HandoverError::Nonsense(what)) if what.contains("1048576")));
    let many = frames().into_iter().chain((0..8200).map(|_| format::bare(8, &[0; 8]))).collect();
    assert!(read_all(many).is_err(), "messages without end");
    for unknown in [format::id::HELLO, format::id::YOURS, 0x200, u32::MAX] {
        assert!(read_all(frames().into_iter().chain([format::bare(unknown, &[])]).collect()).is_err());
    }
}

/// A connection that was left in the middle of a message, at any byte, goes on there.
#[test]
fn a_message_in_two_halves() {
    let bytes = [8u32, 1, 8, 0, 256].map(u32::to_ne_bytes).concat();
    for cut in 0..=bytes.len() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes[..cut]).unwrap();
        let mut first = Wire::new(ours.into());
        let early = matches!(first.receive(), Ok(Received::Frame(_)));
        assert_eq!(early, cut == bytes.len());
        let mut second = first.leave().unwrap().conversation().unwrap();
        drop(first);
        theirs.write_all(&bytes[cut..]).unwrap();
        match second.receive() {
            Ok(Received::Frame(frame)) => assert_eq!(frame.payload, bytes[12..]),
            other => assert!(early && matches!(other, Ok(Received::Nothing)), "{other:?}"),
        }
    }
    for wrong in [&[8u32, 2, 8][..], &[8, 1, 1 << 20], &[8, 1, 4, 0, 0]] {
        let received: Vec<u8> = wrong.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let left = Half { fds: Fds::default(), unsent_fds: Fds::default(), ..half(&received, &[]) };
        assert!(left.conversation().is_err(), "{wrong:?}");
    }
}
