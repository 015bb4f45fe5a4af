//! Owns a pod that is a container: it serves TCP with its name, and tells over a unix socket what it reaches with real
//! packets; never knows what it ought to reach. The unix socket is out of every policy's way.

use std::{
    fmt, fs,
    io::{self, BufRead as _, BufReader, IoSliceMut, Read as _, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use sallyport_testbed::probe::Outcome;

/// The time that an answer may take. Nobody else uses these links.
const PATIENCE: Duration = Duration::from_secs(1);

/// A question to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The name of the pod.
    Who,
    /// Whom do you reach there, over TCP?
    Reach(SocketAddrV4),
    /// The first hop on the way there.
    FirstHop(Ipv4Addr),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Who => f.write_str("who"),
            Self::Reach(target) => write!(f, "reach {target}"),
            Self::FirstHop(target) => write!(f, "first-hop {target}"),
        }
    }
}

impl FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Question, String> {
        let unknown = || format!("no question: {text:?}");
        match text.split_once(' ') {
            None if text == "who" => Ok(Self::Who),
            Some(("reach", target)) => target.parse().map(Self::Reach).map_err(|_| unknown()),
            Some(("first-hop", target)) => {
                target.parse().map(Self::FirstHop).map_err(|_| unknown())
            }
            _ => Err(unknown()),
        }
    }
}

/// A pod: its name, its address, and its node's address on the link between them.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name: what it answers with.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its node.
    pub node: Ipv4Addr,
}

/// The socket at which the pod of that name answers.
fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Serves TCP on `port`, and answers questions at a socket in `directory`, until the process ends.
pub fn serve(pod: Pod, port: u16, directory: &Path) -> io::Result<()> {
    let listener = TcpListener::bind((pod.address, port))?;
    let name = pod.name.clone();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || send_name(connection, &name));
        }
    });
    let path = socket(directory, &pod.name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // The remains of a container that was killed.
        _ => {}
    }
    let questions = UnixListener::bind(&path)?;
    thread::spawn(move || {
        for asked in questions.incoming().flatten() {
            let pod = pod.clone();
            thread::spawn(move || pod.answer(asked));
        }
    });
    Ok(())
}

fn send_name(mut connection: TcpStream, name: &str) -> io::Result<()> {
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(name.as_bytes())?;
    connection.shutdown(Shutdown::Write)
}

impl Pod {
    fn answer(&self, mut asked: UnixStream) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(&asked).read_line(&mut line)?;
        let answer = match line.trim_end().parse() {
            Ok(Question::Who) => format!("{} {}", self.address, self.node),
            Ok(Question::Reach(target)) => match reach(target) {
                Ok(name) => format!("open {name}"),
                Err(error) if is_silence(&error) => "silence".to_owned(),
                Err(error) => format!("error {error}"),
            },
            Ok(Question::FirstHop(target)) => match first_hop(target) {
                Ok(router) => router.to_string(),
                Err(error) => format!("error {error}"),
            },
            Err(error) => format!("error {error}"),
        };
        asked.write_all(answer.as_bytes())
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// Connects, and returns the name that the server says.
fn reach(target: SocketAddrV4) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut connection = TcpStream::connect_timeout(&SocketAddr::V4(target), PATIENCE)?;
    let left = deadline.saturating_duration_since(Instant::now());
    connection.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    let mut name = String::new();
    connection.read_to_string(&mut name)?;
    Ok(name)
}

/// Sends a datagram that may be forwarded by nobody. Returns the first router on the way, which reports that. A host
/// that is reached without a router reports a closed port, and that is an error.
fn first_hop(target: Ipv4Addr) -> io::Result<Ipv4Addr> {
    const NOBODY_LISTENS: u16 = 33434;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    socket.set_ttl(1)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((target, NOBODY_LISTENS))?;
    socket.send(&[])?;
    match socket.recv(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::HostUnreachable => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(io::Error::other("reached without a router"));
        }
        Err(error) if is_silence(&error) => return Err(io::Error::other("no router answers")),
        Err(error) => return Err(error),
        Ok(_) => return Err(io::Error::other("somebody listens there")),
    }
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let (mut buffer, flags) = ([0; 64], MsgFlags::MSG_ERRQUEUE);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let router = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(_, Some(offender)) => {
            Some(Ipv4Addr::from(u32::from_be(offender.sin_addr.s_addr)))
        }
        _ => None,
    });
    router.ok_or_else(|| io::Error::other("a router that does not say who it is"))
}

/// Asks the pod of that name.
fn ask(directory: &Path, name: &str, question: Question) -> io::Result<String> {
    let mut socket = UnixStream::connect(socket(directory, name))?;
    socket.set_read_timeout(Some(PATIENCE * 5))?;
    writeln!(socket, "{question}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    match answer.strip_prefix("error ") {
        Some(error) => Err(io::Error::other(error.to_owned())),
        None => Ok(answer),
    }
}

/// Asks the pod of that name who it is.
pub(super) fn who(directory: &Path, name: &str) -> io::Result<Pod> {
    let answer = ask(directory, name, Question::Who)?;
    let mut words = answer.split(' ').map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(address)), Some(Ok(node))) => Ok(Pod {
            name: name.to_owned(),
            address,
            node,
        }),
        _ => Err(io::Error::other(format!("{name} says it is {answer:?}"))),
    }
}

/// Asks a pod whether it reaches another.
pub(super) fn reaches(directory: &Path, from: &Pod, to: &Pod, port: u16) -> Outcome {
    let target = SocketAddrV4::new(to.address, port);
    match ask(directory, &from.name, Question::Reach(target)) {
        Err(error) => Outcome::Refused(error.to_string()),
        Ok(answer) => match answer.strip_prefix("open ") {
            None => Outcome::Blocked,
            Some(name) if name == to.name => Outcome::Open,
            Some(other) => Outcome::Wrong(other.to_owned()),
        },
    }
}

/// Asks a pod who is the first on the way to another.
pub(super) fn first_hop_between(directory: &Path, from: &Pod, to: &Pod) -> io::Result<Ipv4Addr> {
    let answer = ask(directory, &from.name, Question::FirstHop(to.address))?;
    answer.parse().map_err(|_| io::Error::other(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, directory: &Path, port: u16) -> Pod {
        let pod = Pod {
            name: name.into(),
            address: Ipv4Addr::LOCALHOST,
            node: Ipv4Addr::new(198, 18, 11, 2),
        };
        serve(pod.clone(), port, directory).unwrap();
        pod
    }

    #[test]
    fn questions_read_as_they_are_written() {
        for text in ["who", "reach 10.9.1.11:80", "first-hop 10.9.1.11"] {
            assert_eq!(text.parse::<Question>().unwrap().to_string(), text);
        }
        assert!("reach nobody".parse::<Question>().is_err());
    }

    #[test]
    fn pods_report_the_pods_that_they_reach() {
        let directory = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let server = pod("server", directory.path(), free);
        let asked = who(directory.path(), "server").unwrap();
        assert_eq!((asked.address, asked.node), (server.address, server.node));
        assert_eq!(
            reaches(directory.path(), &asked, &server, free),
            Outcome::Open
        );
        let other = Pod {
            name: "other".into(),
            ..server.clone()
        };
        assert_eq!(
            reaches(directory.path(), &asked, &other, free),
            Outcome::Wrong("server".into())
        );
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert!(matches!(
            reaches(directory.path(), &asked, &server, closed),
            Outcome::Refused(_)
        ));
        let direct = first_hop_between(directory.path(), &asked, &server).unwrap_err();
        assert_eq!(direct.to_string(), "reached without a router");
    }
}
