//! Reads the files, directories and standard input of `-f` into manifests. Never looks inside them: the server does.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sallyport_proto::wire::Manifest;

use crate::failure::Failure;

/// Why manifests could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The operating system refused.
    #[error("cannot read {source_name}: {}", crate::failure::plain(&cause.to_string()))]
    Read {
        /// The file or directory.
        source_name: String,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The bytes are no text.
    #[error("cannot read {0}: it is not UTF-8 text")]
    NotText(String),
    /// The directory holds no manifests.
    #[error("no .yaml, .yml or .json file in {0}")]
    EmptyDirectory(String),
    /// `-f - -f -`.
    #[error("standard input can be read only once: give `-f -` once")]
    StdinTwice,
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// Reads everything that the `-f` arguments name, in their order; a directory's files are taken by name.
pub(crate) fn manifests(
    arguments: &[PathBuf],
    recursive: bool,
    mut stdin: impl io::Read,
) -> Result<Vec<Manifest>, InputError> {
    let mut manifests = Vec::new();
    let mut stdin_taken = false;
    for argument in arguments {
        if argument.as_os_str() == "-" {
            if std::mem::replace(&mut stdin_taken, true) {
                return Err(InputError::StdinTwice);
            }
            let mut bytes = Vec::new();
            let read = stdin.read_to_end(&mut bytes);
            read.map_err(|cause| refused("standard input", cause))?;
            manifests.push(manifest("-", "standard input", bytes)?);
            continue;
        }
        for path in files(argument, recursive)? {
            let name = path.display().to_string();
            let bytes = fs::read(&path).map_err(|cause| refused(&name, cause))?;
            manifests.push(manifest(&name, &name, bytes)?);
        }
    }
    Ok(manifests)
}

fn manifest(source: &str, name: &str, bytes: Vec<u8>) -> Result<Manifest, InputError> {
    let text = String::from_utf8(bytes).map_err(|_| InputError::NotText(name.to_owned()))?;
    Ok(Manifest {
        text,
        source: source.to_owned(),
    })
}

fn refused(name: &str, cause: io::Error) -> InputError {
    InputError::Read {
        source_name: name.to_owned(),
        cause,
    }
}

fn files(argument: &Path, recursive: bool) -> Result<Vec<PathBuf>, InputError> {
    if !argument.is_dir() {
        return Ok(vec![argument.to_owned()]);
    }
    let mut found = Vec::new();
    collect(argument, recursive, &mut found)?;
    if found.is_empty() {
        return Err(InputError::EmptyDirectory(argument.display().to_string()));
    }
    Ok(found)
}

fn collect(directory: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<(), InputError> {
    let entries = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut entries: Vec<PathBuf> =
        entries.map_err(|cause| refused(&directory.display().to_string(), cause))?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            // A symbolic link could lead back up.
            if recursive && !path.is_symlink() {
                collect(&path, recursive, found)?;
            }
        } else if path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        }) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let put = |name: &str, bytes: &[u8]| {
            fs::write(directory.path().join(name), bytes).expect("a file");
        };
        fs::create_dir(directory.path().join("sub")).expect("a directory");
        put("b.yaml", b"b");
        put("a.json", b"a");
        put("README.md", b"no manifest");
        put("sub/c.yml", b"c");
        put("binary", &[0xff]);
        directory
    }

    fn texts(arguments: &[PathBuf], recursive: bool) -> Result<String, InputError> {
        let manifests = manifests(arguments, recursive, &b"from stdin"[..])?;
        let texts = manifests.iter().map(|manifest| manifest.text.as_str());
        Ok(texts.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn directories_are_read_by_name_and_deeper_only_when_asked() {
        let tree = tree();
        let all = [tree.path().to_owned()];
        assert_eq!(texts(&all, false).expect("readable"), "a b");
        assert_eq!(texts(&all, true).expect("readable"), "a b c");
    }

    #[test]
    fn arguments_keep_their_order_and_standard_input_is_one_of_them() {
        let tree = tree();
        let arguments = ["b.yaml", "a.json"].map(|name| tree.path().join(name));
        let arguments = [&[PathBuf::from("-")][..], &arguments].concat();
        assert_eq!(
            texts(&arguments, false).expect("readable"),
            "from stdin b a"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let tree = tree();
        let error = |argument: &str| {
            let path = tree.path().join(argument);
            let error = texts(&[path], false).expect_err(argument).to_string();
            error.replace(&tree.path().display().to_string(), "DIR")
        };
        assert_eq!(
            error("none.yaml"),
            "cannot read DIR/none.yaml: no such file or directory"
        );
        assert_eq!(
            error("binary"),
            "cannot read DIR/binary: it is not UTF-8 text"
        );
        fs::remove_file(tree.path().join("sub/c.yml")).expect("removed");
        assert_eq!(error("sub"), "no .yaml, .yml or .json file in DIR/sub");
        let twice = [PathBuf::from("-"), PathBuf::from("-")];
        let error = texts(&twice, false).expect_err("twice");
        assert!(matches!(error, InputError::StdinTwice));
    }
}
