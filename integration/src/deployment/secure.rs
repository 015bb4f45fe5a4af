//! A deployment by TLS: its cluster of certificates, as `init` and `issue` make them, and channels with one of them.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use sallyport_identity::Credentials;
use sallyport_testbed::Testbed;
use tonic::transport::Channel;

use super::{Deployment, Error, Streams};
use crate::binaries::binaries;

impl Deployment {
    /// Starts a deployment with TLS. The certificates are those of `init` and `issue`, as an operator makes them.
    pub fn start_secure(bed: Testbed, enforcer_arguments: &[&str]) -> Result<Deployment, Error> {
        let mut deployment = Self::prepare(
            binaries()?,
            bed,
            &[],
            enforcer_arguments,
            Streams::default(),
        )?;
        let cluster = deployment.data_dir("cluster");
        deployment.init(&cluster)?;
        for node in 0..deployment.bed.nodes() {
            let name = Self::node_name(node);
            deployment.issue(&cluster, &["node", &name], &cluster.join(&name))?;
        }
        deployment.tls = Some(cluster);
        deployment.start_control_plane_at(0)?;
        for node in 0..deployment.bed.nodes() {
            deployment.start_enforcer(node)?;
        }
        Ok(deployment)
    }

    /// Makes a cluster whose control plane is at the address of this deployment's.
    pub fn init(&self, cluster: &Path) -> Result<(), Error> {
        let address = self.bed.fabric_address().to_string();
        self.certify(&["init", "--server", &address, "--dir"], cluster, &[])
    }

    /// Issues a certificate of a cluster.
    pub fn issue(&self, cluster: &Path, words: &[&str], out: &Path) -> Result<(), Error> {
        let arguments = [&["issue"][..], words, &["--dir"]].concat();
        self.certify(&arguments, cluster, &[Path::new("--out"), out])
    }

    fn certify(&self, words: &[&str], cluster: &Path, rest: &[&Path]) -> Result<(), Error> {
        let mut command = Command::new(&self.binaries.controlplane);
        command
            .args(words)
            .arg(cluster)
            .args(rest)
            .stdin(Stdio::null());
        let output = command.output();
        let output = output.map_err(|error| Error::Io("run sallyport-controlplane", error))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::Certificates(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )),
        }
    }

    /// The directory of the cluster's certificates. Only a secure deployment has one.
    pub fn cluster(&self) -> &Path {
        self.tls.as_deref().expect("the deployment is secure")
    }

    /// A channel by TLS with the certificate of a directory. The error is the refusal of either end.
    pub fn channel_as(&self, directory: &Path, index: usize) -> Result<Channel, Error> {
        let unusable = |error: sallyport_identity::LoadError| {
            Error::Refused(tonic::Status::unauthenticated(error.to_string()))
        };
        let credentials = Credentials::load(directory).map_err(unusable)?;
        let connector = credentials.connector().map_err(unusable)?;
        self.channel_by(index, move |address, stream| {
            let connector = connector.clone();
            async move { connector.secure(&address.ip().to_string(), stream).await }
        })
    }
}
