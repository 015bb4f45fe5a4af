//! What the socket's code makes of answers that no kernel gives: over a pair of sockets, in the kernel's place.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
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

/// What becomes of a batch of one command, number 1, that is answered with an error message to a number, with this body.
fn answered(number: u32, body: &[u8]) -> Result<(), Error> {
    let (netlink, kernel) = pair();
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
    message.extend([0; 2]);
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    send(kernel.as_raw_fd(), &message, MsgFlags::empty()).expect("room for an answer");
    netlink.commit(&[Command::AddTable { owned: false }])
}

#[test]
fn only_the_last_commands_zero_is_consent() {
    let (netlink, _kernel) = pair();
    assert!(netlink.commit(&[]).is_ok(), "there was nothing to answer");
    assert!(answered(1, &[0; 4]).is_ok());
    let silent = netlink.commit(&[Command::AddTable { owned: false }]);
    for unknown in [answered(0, &[0; 4]), answered(2, &[0; 4]), silent] {
        let error = unknown.expect_err("nobody knows what happened");
        assert!(matches!(error, Error::AnswerLost(_)), "{error}");
    }
}

#[test]
fn an_error_is_an_error_whatever_its_number() {
    for number in [-libc::EPERM, 1, i32::MAX, i32::MIN] {
        assert!(answered(1, &number.to_ne_bytes()).is_err(), "{number}");
    }
}

#[test]
fn an_error_without_a_number_is_no_consent() {
    for body in [&[][..], &[0; 3]] {
        let error = answered(1, body).expect_err("nobody knows what happened");
        assert!(matches!(error, Error::AnswerLost(_)), "{error}");
    }
}
