//! Conformance: cases whose verdicts somebody else computed, against the real thing. Owns the run of some files; knows
//! nothing of what a verdict ought to be but what they say.

mod case;
mod cells;
mod compiled;
mod judge;
mod manifests;
mod mirror;
mod party;
mod replay;
mod report;
mod world;

use std::{
    collections::BTreeSet,
    io,
    ops::AddAssign,
    path::{Path, PathBuf},
};

use sallyport_testbed::Mode;

use crate::deployment;
use case::Case;
use compiled::Compiled;
pub use replay::{Replayed, replay};
use world::{Shape, World};

#[derive(Clone, Debug)]
pub struct Options {
    /// The number of nodes that pods are spread over, one after the other.
    pub nodes: usize,
    /// The connection of pods to their node.
    pub mode: Mode,
    /// Only cases with this in their id, their description or a tag.
    pub only: Option<String>,
    /// Whether to go on after a wrong case.
    pub keep_going: bool,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The cases that were run.
    pub cases: u64,
    /// Their steps.
    pub steps: u64,
    /// The cells that were compared with packets.
    pub cells: u64,
    /// The verdicts of one direction that were compared with the compiler's.
    pub compiled: u64,
    /// The number of cells and verdicts that were not as expected.
    pub wrong: u64,
    /// The cases that could not be run to their end.
    pub failed: u64,
    /// The cells that had to be asked again, with more patience.
    pub again: u64,
    /// The cells that were left out: of a node and a pod on it, which always reach each other.
    pub local: u64,
}

impl Summary {
    /// Whether everything was as expected, and anything was compared.
    pub fn is_good(&self) -> bool {
        self.wrong == 0 && self.failed == 0 && self.cells > 0
    }
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Summary) {
        self.cases += other.cases;
        self.steps += other.steps;
        self.cells += other.cells;
        self.compiled += other.compiled;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.again += other.again;
        self.local += other.local;
    }
}

/// An event during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file was read.
    Read {
        /// The file.
        path: &'a Path,
        /// The number of cases in the file that will run.
        cases: usize,
    },
    /// A step was judged.
    Step {
        /// The case's id.
        case: &'a str,
        /// The number of the file's cases that are done.
        done: usize,
        /// The file's figures up to now.
        summary: Summary,
    },
    /// A step was not as expected: all about it.
    Wrong(String),
    /// A case could not be run to its end.
    Failed(String),
    /// A file is done.
    Done {
        /// The file.
        path: &'a Path,
        /// Its figures.
        summary: Summary,
    },
}

/// Why files cannot be run, or a case cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// A file is not of the schema.
    #[error("{} is no file of conformance cases: {reason}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: serde_json::Error,
    },
    /// The oracle did not take an object.
    #[error(transparent)]
    Oracle(#[from] sallyport_oracle::Error),
    /// A case is at odds with itself.
    #[error("the case makes no sense: {0}")]
    Case(String),
    /// The deployment failed, or refused an object.
    #[error(transparent)]
    Deployment(#[from] deployment::Error),
    /// The testbed failed.
    #[error(transparent)]
    Testbed(#[from] sallyport_testbed::Error),
    /// A server could not be started.
    #[error("start a server: {0}")]
    Server(io::Error),
}

/// Runs files. One deployment serves all cases of a file: the next case is an edit of the one before.
pub fn run(
    options: &Options,
    files: &[PathBuf],
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Summary, Error> {
    let mut total = Summary::default();
    for path in files {
        let mut cases = case::read(path)?;
        if let Some(only) = &options.only {
            cases.retain(|case| case.matches(only));
        }
        tell(Event::Read {
            path,
            cases: cases.len(),
        });
        let summary = run_cases(options, &cases, tell);
        tell(Event::Done { path, summary });
        total += summary;
        if !options.keep_going && (total.wrong > 0 || total.failed > 0) {
            break;
        }
    }
    Ok(total)
}

fn run_cases(options: &Options, cases: &[Case], tell: &mut dyn FnMut(Event<'_>)) -> Summary {
    let shape = shape(options, cases);
    let mut summary = Summary::default();
    let mut world = None;
    for (done, case) in cases.iter().enumerate() {
        summary.cases += 1;
        let mut told = |event: Event<'_>| match event {
            Event::Step { case, summary, .. } => tell(Event::Step {
                case,
                done,
                summary,
            }),
            event => tell(event),
        };
        if let Err(error) = run_case(&mut world, &shape, case, &mut summary, &mut told) {
            summary.failed += 1;
            tell(Event::Failed(format!(
                "FAILED: case {} ({}): {error}\n",
                case.id, case.description
            )));
            // Nobody knows what it is like now.
            world = None;
        }
        if !options.keep_going && (summary.wrong > 0 || summary.failed > 0) {
            break;
        }
    }
    summary
}

fn run_case(
    world: &mut Option<World>,
    shape: &Shape,
    case: &Case,
    summary: &mut Summary,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<(), Error> {
    let world = match world {
        Some(world) => world,
        none => none.insert(World::start(shape.clone())?),
    };
    world.enter(case)?;
    for (index, step) in case.steps.iter().enumerate() {
        for action in &step.actions {
            world.act(case, action)?;
        }
        world.wait_enforced()?;
        let compiled = Compiled::of(world.cluster());
        let judged = judge::judge(world, &compiled, step)?;
        *summary += Summary {
            steps: 1,
            cells: judged.cells,
            compiled: judged.compiled,
            wrong: judged.wrong.len() as u64,
            again: judged.again,
            local: judged.local,
            ..Summary::default()
        };
        if !judged.wrong.is_empty() {
            let text = report::wrong(world, &compiled, case, index + 1, step, &judged.wrong);
            tell(Event::Wrong(text));
        }
        tell(Event::Step {
            case: &case.id,
            done: 0,
            summary: *summary,
        });
    }
    Ok(())
}

/// A bed on which all cases can be run.
fn shape(options: &Options, cases: &[Case]) -> Shape {
    let sharing = cases
        .iter()
        .filter(|case| case.pods().any(|pod| pod.host_network));
    let mut node_services = BTreeSet::new();
    for case in sharing {
        node_services.extend(case.asked());
        node_services.extend(case.pods().flat_map(case::Pod::serves));
    }
    let most = |count: &dyn Fn(&Case) -> usize| cases.iter().map(count).max().unwrap_or(0);
    Shape {
        nodes: options.nodes.max(1),
        mode: options.mode,
        named: most(&|case| case.nodes().len()),
        pods: most(&|case| case.pods().count()),
        node_services,
    }
}
