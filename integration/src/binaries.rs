//! The programs that users run, as this checkout builds them, or as an earlier revision did. Tests and proofs drive
//! these, never a library call.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Set where the programs are known to be built: `cargo test --workspace` builds them with the tests.
const BUILT: &str = "SALLYPORT_PROGRAMS_BUILT";

/// The programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `sallyport-controlplane`.
    pub controlplane: PathBuf,
    /// `sallyport-enforcer`.
    pub enforcer: PathBuf,
    /// `sallyport`, the CLI.
    pub sallyport: PathBuf,
}

/// Why the programs are not there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Cargo could not build them.
    #[error("`cargo build` of Sallyport's programs failed")]
    Build,
    /// The programs are not where they should be.
    #[error("{} is not there: run `cargo build --workspace` (with `--release` for a release build)", .0.display())]
    Missing(PathBuf),
    /// The programs of another revision could not be built.
    #[error(
        "the programs of revision {revision} could not be built by deploy/build-revision: {reason}"
    )]
    Revision {
        /// The revision.
        revision: String,
        /// The end of what was said.
        reason: String,
    },
}

impl Binaries {
    /// The programs in a directory.
    pub fn within(directory: &Path) -> Result<Binaries, Error> {
        let program = |name: &str| {
            let path = directory.join(name);
            if path.exists() {
                Ok(path)
            } else {
                Err(Error::Missing(path))
            }
        };
        Ok(Binaries {
            controlplane: program("sallyport-controlplane")?,
            enforcer: program("sallyport-enforcer")?,
            sallyport: program("sallyport")?,
        })
    }
}

/// Finds the programs beside this one. Under cargo they are built first, so that they are those of this checkout.
///
/// Call it before entering other namespaces.
pub fn binaries() -> Result<Binaries, Error> {
    static FOUND: OnceLock<Result<Binaries, Error>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

/// Finds the programs of another revision, in a folder beside this program. Missing programs are built first, by
/// `deploy/build-revision`: stderr says so, as it takes minutes.
///
/// Call it before entering other namespaces.
pub fn binaries_of(revision: &str) -> Result<Binaries, Error> {
    let directory = beside().join("revisions").join(revision);
    if let Ok(found) = Binaries::within(&directory) {
        return Ok(found);
    }
    eprintln!("Building the programs of revision {revision}: that takes minutes, once.");
    let failed = |reason: String| Error::Revision {
        revision: revision.to_owned(),
        reason,
    };
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/build-revision");
    let mut build = Command::new(&recipe);
    build.arg(revision).arg(&directory).stdin(Stdio::null());
    // As this program was built: most of what they need is built already, then.
    if cfg!(target_feature = "crt-static") {
        build.env("STATIC", "1");
    }
    let output = build
        .output()
        .map_err(|error| failed(format!("{}: {error}", recipe.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().collect();
        return Err(failed(lines[lines.len().saturating_sub(20)..].join("\n")));
    }
    Binaries::within(&directory)
}

/// The folder of this program, and of others of the same build.
fn beside() -> PathBuf {
    let own = env::current_exe().expect("a running program has a path");
    let directory = own.parent().expect("a program is in a directory");
    match directory.ends_with("deps") {
        true => directory.parent().expect("`deps` is in a profile's folder"),
        false => directory,
    }
    .to_owned()
}

fn find() -> Result<Binaries, Error> {
    let directory = beside();
    if let Some(cargo) = env::var_os("CARGO").filter(|_| env::var_os(BUILT).is_none()) {
        // The whole workspace: with a part of it dependencies would have other features, and be built again.
        let mut build = Command::new(cargo);
        build.args(["build", "--workspace", "--bins"]);
        if directory.ends_with("release") {
            build.arg("--release");
        }
        build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null());
        match build.status() {
            Ok(status) if status.success() => {}
            _ => return Err(Error::Build),
        }
    }
    Binaries::within(&directory)
}
