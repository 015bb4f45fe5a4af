//! Tests the socket's code with answers that no kernel gives. The other end of a pair of sockets stands in for the
//! kernel.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use sallyport_nft::{
    command::{Command, TableFamily, TableName},
    encode::attributes::Attributes,
    netlink::{Error, Netlink},
};

const TABLE: TableName = TableName::new(TableFamily::Inet, "example");

/// A socket, and its other end.
fn pair() -> (Netlink, OwnedFd) {
    let (own, kernel) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK,
    )
    .expect("a pair of sockets");
    (Netlink::over(own, TABLE, 1 << 16), kernel)
}

/// Sends a message in the kernel's place, as the answer to a request with a number.
fn say(kernel: &OwnedFd, kind: u16, number: u32, body: &[u8]) {
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    send(kernel.as_raw_fd(), &message, MsgFlags::empty()).expect("room for an answer");
}

const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;

/// The sequence number of the next request that the kernel gets.
fn next_number(kernel: &OwnedFd) -> u32 {
    let mut request = [0; 1 << 12];
    let length = recv(kernel.as_raw_fd(), &mut request, MsgFlags::empty()).expect("a request");
    assert!(length >= 16);
    u32::from_ne_bytes(request[8..12].try_into().expect("four bytes"))
}

/// The outcome of a socket's first batch, of one command, when the answer is an error message with this number and
/// body. The batch's begin has number 1, the command 2 and the end 3.
fn answered(number: u32, body: &[u8]) -> Result<(), Error> {
    let (netlink, kernel) = pair();
    say(&kernel, ERROR, number, body);
    netlink.commit(&[Command::AddTable { owned: false }])
}

#[test]
fn only_the_last_commands_zero_is_consent() {
    let (netlink, _kernel) = pair();
    assert!(netlink.commit(&[]).is_ok(), "there was nothing to answer");
    assert!(answered(2, &[0; 4]).is_ok());
    let silent = netlink.commit(&[Command::AddTable { owned: false }]);
    for unknown in [answered(1, &[0; 4]), answered(3, &[0; 4]), silent] {
        let error = unknown.expect_err("nobody knows what happened");
        assert!(matches!(error, Error::AnswerLost(_)), "{error}");
    }
}

#[test]
fn an_error_is_an_error_whatever_its_number() {
    for number in [-libc::EPERM, 1, i32::MAX, i32::MIN] {
        assert!(answered(2, &number.to_ne_bytes()).is_err(), "{number}");
    }
}

#[test]
fn an_error_without_a_number_is_no_consent() {
    for body in [&[][..], &[0; 3]] {
        let error = answered(2, body).expect_err("nobody knows what happened");
        assert!(matches!(error, Error::AnswerLost(_)), "{error}");
    }
}

/// An answer that comes after its request was given up belongs to no request. The kernel answers a request with its
/// number.
#[test]
fn a_late_answer_is_not_that_of_the_next_request() {
    let refused = (-libc::EPERM).to_ne_bytes();
    let batch = [Command::AddTable { owned: false }];

    // A late error and a late acknowledgement do not decide a batch.
    for (late, own, is_done) in [(refused, [0; 4], true), ([0; 4], refused, false)] {
        let (netlink, kernel) = pair();
        assert!(netlink.commit(&batch).is_err(), "nobody answers");
        let first = next_number(&kernel);
        say(&kernel, ERROR, first + 1, &late);
        say(&kernel, ERROR, first + 4, &own);
        assert_eq!(netlink.commit(&batch).is_ok(), is_done);
        assert_eq!(next_number(&kernel), first + 3);
    }

    // A late part and a late end do not belong to a dump.
    let (netlink, kernel) = pair();
    assert!(netlink.is_there().is_err(), "nobody answers");
    let first = next_number(&kernel);
    say(&kernel, NEWTABLE, first, &table("example"));
    say(&kernel, DONE, first, &[0; 4]);
    say(&kernel, DONE, first + 1, &[0; 4]);
    assert!(!netlink.is_there().expect("it was answered"));
    say(&kernel, DONE, first, &[0; 4]);
    say(&kernel, NEWTABLE, first + 2, &table("example"));
    say(&kernel, DONE, first + 2, &[0; 4]);
    assert!(netlink.is_there().expect("it was answered"));

    // A late generation is not the present one.
    let (netlink, kernel) = pair();
    assert!(netlink.generation().is_err(), "nobody answers");
    let first = next_number(&kernel);
    say(&kernel, GENERATION, first, &generation(4));
    say(&kernel, GENERATION, first + 1, &generation(5));
    assert_eq!(netlink.generation().expect("it was answered"), 5);
}

/// The kernel refuses a dump while an earlier one of the same socket is not read to its end. So the earlier one is read
/// then.
#[test]
fn a_dump_that_was_given_up_is_not_in_the_way() {
    let (netlink, kernel) = pair();
    assert!(netlink.is_there().is_err(), "nobody answers");
    let first = next_number(&kernel);
    say(&kernel, NEWTABLE, first, &table("example"));
    say(&kernel, ERROR, first + 1, &(-libc::EBUSY).to_ne_bytes());
    say(&kernel, DONE, first, &[0; 4]);
    let error = netlink
        .is_there()
        .expect_err("nobody answers the second try");
    assert!(
        matches!(
            error,
            Error::Socket {
                errno: Errno::EAGAIN,
                ..
            }
        ),
        "{error}"
    );
    let numbers = [(); 2].map(|()| next_number(&kernel));
    assert_eq!(numbers, [first + 1, first + 2], "it was asked again");
}

/// The kinds of messages that describe a table and the generation (`linux/netfilter/nf_tables.h`).
const NEWTABLE: u16 = 10 << 8;
const GENERATION: u16 = 10 << 8 | 15;

/// A table as the kernel describes it: `struct nfgenmsg`, and `NFTA_TABLE_NAME`.
fn table(name: &str) -> Vec<u8> {
    let mut body = Attributes::default();
    body.text(1, name);
    [&[1, 0, 0, 0][..], &body.bytes].concat()
}

/// A generation as the kernel describes it: `struct nfgenmsg`, and `NFTA_GEN_ID`.
fn generation(id: u32) -> Vec<u8> {
    let mut body = Attributes::default();
    body.u32(1, id);
    [&[0; 4][..], &body.bytes].concat()
}
