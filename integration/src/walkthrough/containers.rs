//! Owns the walk-through across containers, as docker-compose.yml arranges them: the CLI against their control plane,
//! and the pods' own word for what they reach; never starts or stops a container.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sallyport_testbed::probe::Matrix;

use super::{
    DemoCluster, PODS, PORT,
    pod::{self, Pod},
};

/// The time that the containers may take to be up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Containers that have been started, as seen from one of them.
#[derive(Debug)]
pub struct Containers {
    /// The CLI.
    pub sallyport: PathBuf,
    /// The manifests.
    pub manifests: PathBuf,
    /// The folder of the pods' sockets.
    pub sockets: PathBuf,
    /// The pods.
    pub pods: Vec<Pod>,
}

impl Containers {
    /// Waits until the pods answer, and the control plane does.
    pub fn find(
        sallyport: PathBuf,
        manifests: PathBuf,
        sockets: PathBuf,
    ) -> Result<Containers, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut containers = Containers {
            sallyport,
            manifests,
            sockets,
            pods: Vec::new(),
        };
        for name in PODS {
            let who = || {
                pod::who(&containers.sockets, name).map_err(|error| format!("pod {name}: {error}"))
            };
            let found = until(deadline, who)?;
            containers.pods.push(found);
        }
        until(deadline, || containers.sallyport(&["status"]))?;
        Ok(containers)
    }

    /// Asks every pod who is the first on the way to every other. It must be its node, of the same node's pods too:
    /// were there a way around, nothing that is seen afterwards would mean anything. Returns how many pairs were asked.
    pub fn require_nodes_on_every_way(&self) -> Result<usize, String> {
        let hops = self.of_all_pairs(|from, to| pod::first_hop_between(&self.sockets, from, to));
        let around = hops.iter().filter_map(|(from, to, hop)| {
            let (from, to) = (&self.pods[*from], &self.pods[*to]);
            match hop {
                Ok(router) if *router == from.node => None,
                Ok(router) => Some(format!(
                    "{} -> {}: by {router}, not {}",
                    from.name, to.name, from.node
                )),
                Err(error) => Some(format!("{} -> {}: {error}", from.name, to.name)),
            }
        });
        let around: Vec<String> = around.collect();
        if around.is_empty() {
            Ok(hops.len())
        } else {
            Err(format!(
                "not every packet crosses the node of its pod:\n  {}",
                around.join("\n  ")
            ))
        }
    }

    /// The addresses of the pods' nodes, as their pods see them.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, Ipv4Addr, Ipv4Addr)> {
        self.pods
            .iter()
            .map(|pod| (pod.name.as_str(), pod.address, pod.node))
    }

    /// Asks about every two pods, all at once.
    fn of_all_pairs<T: Send>(
        &self,
        ask: impl Fn(&Pod, &Pod) -> T + Sync,
    ) -> Vec<(usize, usize, T)> {
        let count = self.pods.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from != to);
        let (ask, pods) = (&ask, &self.pods);
        thread::scope(|scope| {
            let asked: Vec<_> = pairs
                .map(|(from, to)| (from, to, scope.spawn(move || ask(&pods[from], &pods[to]))))
                .collect();
            asked
                .into_iter()
                .map(|(from, to, answer)| (from, to, answer.join().expect("asking does not panic")))
                .collect()
        })
    }
}

impl DemoCluster for Containers {
    fn sallyport(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.sallyport)
            .args(arguments)
            .current_dir(&self.manifests)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("run {}: {error}", self.sallyport.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!(
                "sallyport {}: {}",
                arguments.join(" "),
                text(&output.stderr)
            ))
        }
    }

    fn matrix(&self) -> Result<Matrix, String> {
        let mut matrix = Matrix::new(&format!("TCP {PORT} over IPv4"), PODS);
        for (from, to, outcome) in
            self.of_all_pairs(|from, to| pod::reaches(&self.sockets, from, to, PORT))
        {
            matrix.set(from, to, Some(outcome));
        }
        Ok(matrix)
    }
}

/// Tries again until it succeeds or the time is over.
fn until<T, E>(deadline: Instant, attempt: impl Fn() -> Result<T, E>) -> Result<T, E> {
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}
