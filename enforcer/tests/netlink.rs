//! What the socket's code makes of answers that no kernel gives: over a pair of sockets, in the kernel's place.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair},
};
use sallyport_enforcer::{
    netlink::{Error, Netlink},
    nft::command::Command,
};

/// A socket, and its other end.
fn pair() -> (Netlink, OwnedFd) {
    let (ours, kernel) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK,
    )
    .expect("a pair of sockets");
    (Netlink::over(ours, 1 << 16), kernel)
}

/// What becomes of a batch of one command that is answered with an error message with this body.
fn answered(body: &[u8]) -> Result<(), Error> {
    let (netlink, kernel) = pair();
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
    message.extend([0; 10]);
    message.extend(body);
    send(kernel.as_raw_fd(), &message, MsgFlags::empty()).expect("room for an answer");
    netlink.commit(&[Command::AddTable { owned: false }])
}

#[test]
fn no_answer_and_a_zero_are_consent() {
    let (netlink, _kernel) = pair();
    assert!(netlink.commit(&[]).is_ok());
    assert!(answered(&[0; 4]).is_ok());
}

#[test]
fn an_error_is_an_error_whatever_its_number() {
    for number in [-libc::EPERM, 1, i32::MAX, i32::MIN] {
        assert!(answered(&number.to_ne_bytes()).is_err(), "{number}");
    }
}

#[test]
fn an_error_without_a_number_is_no_consent() {
    for body in [&[][..], &[0; 3]] {
        let error = answered(body).expect_err("nobody knows what happened");
        assert!(
            matches!(error, Error::AnswerLost(Errno::EBADMSG)),
            "{error}"
        );
    }
}
