//! The walk-through of the AKS documentation, with its `demo-policy.yaml`: what is typed, and which pods then reach
//! which. Where it is carried out, on a testbed or across containers, is a [`DemoCluster`]'s business.

pub mod containers;
pub mod network;
pub mod pod;

use std::time::Instant;

use sallyport_testbed::probe::Matrix;

/// The pods, in the order of the tables.
pub const PODS: [&str; 4] = ["client", "bystander", "server", "neighbour"];

/// The port that every pod serves, and the policy speaks of.
pub const PORT: u16 = 80;

/// Somewhere with a control plane, two nodes with enforcers, and the pods.
pub trait DemoCluster {
    /// Runs the CLI with these arguments, in the directory of the manifests. Returns what it printed, or why not.
    fn sallyport(&self, arguments: &[&str]) -> Result<String, String>;

    /// Asks every pod for every other, over TCP.
    fn matrix(&self) -> Result<Matrix, String>;
}

struct Step {
    title: &'static str,
    command: &'static [&'static str],
    /// One row a pod: `.` reaches, `X` does not, `-` is not asked.
    expected: [&'static str; 4],
}

const OPEN: [&str; 4] = ["-...", ".-..", "..-.", "...-"];

const STEPS: [Step; 5] = [
    Step {
        title: "The pods are there. No policy yet: everybody reaches everybody",
        command: &["apply", "-f", "cluster.yaml", "--wait"],
        expected: OPEN,
    },
    Step {
        title: "demo-policy: to app=server only from app=client, only TCP 80. The client has no such label: blocked",
        command: &["apply", "-f", "demo-policy.yaml", "--wait"],
        expected: ["-.X.", ".-X.", "..-.", "..X-"],
    },
    Step {
        title: "The client gets the label: it, and only it, gets through",
        command: &[
            "label",
            "-n",
            "demo",
            "workload",
            "client",
            "app=client",
            "--wait",
        ],
        expected: ["-...", ".-X.", "..-.", "..X-"],
    },
    Step {
        title: "Without the label it is blocked again",
        command: &[
            "label", "-n", "demo", "workload", "client", "app-", "--wait",
        ],
        expected: ["-.X.", ".-X.", "..-.", "..X-"],
    },
    Step {
        title: "The policy is deleted: everybody reaches everybody",
        command: &["delete", "-n", "demo", "netpol", "demo-policy", "--wait"],
        expected: OPEN,
    },
];

/// The result of a walk-through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Cells that were as they should be.
    pub expected: usize,
    /// Cells that were asked.
    pub asked: usize,
}

impl Score {
    /// Whether every cell was as it should be.
    pub fn is_perfect(self) -> bool {
        self.asked > 0 && self.expected == self.asked
    }
}

/// Carries the walk-through out and prints each step. `between` is called after each step, with its number from 1.
pub fn run(cluster: &dyn DemoCluster, mut between: impl FnMut(usize)) -> Result<Score, String> {
    let mut score = Score::default();
    for (number, step) in (1..).zip(&STEPS) {
        println!("\n[{number}/{}] {}", STEPS.len(), step.title);
        println!("  $ sallyport {}", step.command.join(" "));
        let printed = cluster.sallyport(step.command)?;
        for line in printed.lines() {
            println!("  {line}");
        }
        let started = Instant::now();
        let seen = cluster.matrix()?;
        let expected = Matrix::expected(PODS, &step.expected).expect("four rows of four");
        let (asked, wrong) = (PODS.len() * (PODS.len() - 1), seen.differences(&expected));
        println!();
        for line in seen.to_string().lines() {
            println!("    {line}");
        }
        println!(
            "    {} of {asked} as expected, seen in {} ms",
            asked - wrong.len(),
            started.elapsed().as_millis()
        );
        for difference in &wrong {
            println!("    WRONG  {difference}");
        }
        score.asked += asked;
        score.expected += asked - wrong.len();
        between(number);
    }
    Ok(score)
}
