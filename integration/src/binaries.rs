//! The programs that users run, as this checkout builds them. Tests and proofs drive these, never a library call.

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
    /// They are not where they should be.
    #[error("{} is not there: run `cargo build --workspace` (with `--release` for a release build)", .0.display())]
    Missing(PathBuf),
}

/// Finds the programs beside this one. Under cargo they are built first, so that they are those of this checkout.
///
/// Call it before entering other namespaces.
pub fn binaries() -> Result<Binaries, Error> {
    static FOUND: OnceLock<Result<Binaries, Error>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Result<Binaries, Error> {
    let own = env::current_exe().expect("a running program has a path");
    let mut directory = own.parent().expect("a program is in a directory");
    if directory.ends_with("deps") {
        directory = directory
            .parent()
            .expect("`deps` is in a profile's directory");
    }
    if let Some(cargo) = env::var_os("CARGO").filter(|_| env::var_os(BUILT).is_none()) {
        // All of the workspace: with a part of it dependencies would have other features, and be built again.
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
    let binaries = in_directory(directory)?;
    match binaries.sallyport.exists() {
        true => Ok(binaries),
        false => Err(Error::Missing(binaries.sallyport)),
    }
}

/// The control plane and the enforcer in a directory: of another version, say. The CLI may be missing there.
pub fn in_directory(directory: &Path) -> Result<Binaries, Error> {
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
        sallyport: directory.join("sallyport"),
    })
}
