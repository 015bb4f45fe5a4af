//! A node's leaving: which control plane knows it, and under which name, is kept beside the journal, and that control
//! plane is told. It touches no table.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use sallyport_proto::wire::{LeaveRequest, node_service_client::NodeServiceClient};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Endpoint};

use crate::{journal::MEMBERSHIP, session::source_of};

/// How long the control plane has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which control plane knows the node, and by what name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The node's name.
    pub node: String,
    /// The control plane's address, as the operator has it.
    pub control_plane: String,
}

/// What the control plane answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// That the node left is durable.
    Left,
    /// It has no node of that name.
    Unknown,
}

impl Membership {
    /// Keeps it in a data directory, in the place of what was there.
    pub fn remember(&self, data_dir: &Path) -> io::Result<()> {
        let Membership {
            node,
            control_plane,
        } = self;
        let new = data_dir.join(format!("{MEMBERSHIP}.new"));
        let mut file = File::create(&new)?;
        write!(file, "node {node}\ncontrol-plane {control_plane}\n")?;
        file.sync_all()?;
        fs::rename(new, path(data_dir))
    }

    /// What a data directory holds; `None` when it holds none.
    pub fn recall(data_dir: &Path) -> io::Result<Option<Membership>> {
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
            node: node.to_owned(),
            control_plane: control_plane.to_owned(),
        }))
    }

    /// Takes it out of a data directory.
    pub fn forget(data_dir: &Path) -> io::Result<()> {
        match fs::remove_file(path(data_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(MEMBERSHIP)
}

/// Tells a control plane that a node leaves. An error says why it does not know, in words.
pub async fn tell(node: &str, control_plane: Endpoint) -> Result<Told, String> {
    let call = async {
        let channel = control_plane
            .connect()
            .await
            .map_err(|error| Status::unavailable(source_of(&error)))?;
        let node_name = node.to_owned();
        let request = LeaveRequest { node_name };
        NodeServiceClient::new(channel).leave(request).await
    };
    match timeout(PATIENCE, call).await {
        Ok(Ok(_)) => Ok(Told::Left),
        Ok(Err(status)) if status.code() == Code::NotFound => Ok(Told::Unknown),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_last_is_recalled_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path();
        assert_eq!(Membership::recall(data_dir).unwrap(), None);
        for node in ["n", "m"] {
            let membership = Membership {
                node: node.to_owned(),
                control_plane: "unix:///run/a b.sock".to_owned(),
            };
            membership.remember(data_dir).unwrap();
            assert_eq!(Membership::recall(data_dir).unwrap(), Some(membership));
        }
        fs::write(path(data_dir), "node n\n").unwrap();
        assert!(Membership::recall(data_dir).is_err());
        Membership::forget(data_dir).unwrap();
        Membership::forget(data_dir).unwrap();
        assert_eq!(Membership::recall(data_dir).unwrap(), None);
    }
}
