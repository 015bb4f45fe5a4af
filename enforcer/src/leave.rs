//! A node's leaving: stores the node's name and control plane beside the journal, and notifies that control plane. It
//! touches no table.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use sallyport_policy::NodeName;
use sallyport_proto::wire::{LeaveRequest, node_service_client::NodeServiceClient};
use tokio::time::timeout;
use tonic::Code;

use crate::{control_plane::ControlPlane, journal::MEMBERSHIP};

/// The time that the control plane has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which control plane knows the node, and by what name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The node's name.
    pub node: NodeName,
    /// The control plane's address, as the operator has it.
    pub control_plane: String,
    /// The directory of the node's certificate, where the node has one.
    pub tls: Option<PathBuf>,
}

/// The control plane's reply to a node that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReply {
    /// The control plane has stored durably that the node left.
    Left,
    /// The control plane has no node of that name.
    Unknown,
}

impl Membership {
    /// Stores the membership in a data directory, and replaces an earlier one.
    pub fn store(&self, data_dir: &Path) -> io::Result<()> {
        let Membership {
            node,
            control_plane,
            tls,
        } = self;
        let new = data_dir.join(format!("{MEMBERSHIP}.new"));
        let mut file = File::create(&new)?;
        write!(file, "node {node}\ncontrol-plane {control_plane}\n")?;
        if let Some(tls) = tls {
            writeln!(file, "tls {}", tls.display())?;
        }
        file.sync_all()?;
        fs::rename(new, path(data_dir))
    }

    /// Loads the membership of a data directory; `None` when there is none.
    pub fn load(data_dir: &Path) -> io::Result<Option<Membership>> {
        let text = match fs::read_to_string(path(data_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let after = |word: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(first, _)| *first == word)
        };
        let (Some((_, node)), Some((_, control_plane))) = (after("node"), after("control-plane"))
        else {
            let problem = format!("the content of {} is malformed", path(data_dir).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        };
        Ok(Some(Membership {
            node: node.into(),
            control_plane: control_plane.to_owned(),
            tls: after("tls").map(|(_, tls)| tls.into()),
        }))
    }

    /// Deletes the membership of a data directory.
    pub fn delete(data_dir: &Path) -> io::Result<()> {
        match fs::remove_file(path(data_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(MEMBERSHIP)
}

/// Notifies a control plane that a node leaves. The error is the reason, as text.
pub async fn notify(node: &NodeName, control_plane: &ControlPlane) -> Result<LeaveReply, String> {
    let call = async {
        let channel = control_plane.connect(node).await?;
        let node_name = node.to_string();
        let request = LeaveRequest { node_name };
        NodeServiceClient::new(channel).leave(request).await
    };
    match timeout(PATIENCE, call).await {
        Ok(Ok(_)) => Ok(LeaveReply::Left),
        Ok(Err(status)) if status.code() == Code::NotFound => Ok(LeaveReply::Unknown),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_membership_that_was_stored_last_is_loaded_until_it_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path();
        assert_eq!(Membership::load(data_dir).unwrap(), None);
        for (node, tls) in [("n", None), ("m", Some("/etc/a b/tls".into()))] {
            let membership = Membership {
                node: node.into(),
                control_plane: "unix:///run/a b.sock".to_owned(),
                tls,
            };
            membership.store(data_dir).unwrap();
            assert_eq!(Membership::load(data_dir).unwrap(), Some(membership));
        }
        fs::write(path(data_dir), "node n\n").unwrap();
        assert!(Membership::load(data_dir).is_err());
        Membership::delete(data_dir).unwrap();
        Membership::delete(data_dir).unwrap();
        assert_eq!(Membership::load(data_dir).unwrap(), None);
    }
}
