//! The real `sallyport` binary where no control plane is needed: help, usage errors, completion, a closed port.

use std::{
    fs::File,
    net::TcpListener,
    process::{Command, Output, Stdio},
};

fn sallyport(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sallyport"));
    command
        .args(arguments)
        .env_remove("SALLYPORT_SERVER")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let output = sallyport(arguments).output();
    output.expect("the binary is built and starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An address where nobody listens.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    format!("http://{address}")
}

const COMMANDS: [&str; 12] = [
    "apply",
    "get",
    "delete",
    "label",
    "status",
    "node",
    "wait",
    "history",
    "rollback",
    "journal",
    "version",
    "completion",
];

#[test]
fn every_command_has_help() {
    let root = run(&["--help"]);
    assert_eq!(root.status.code(), Some(0));
    for command in COMMANDS {
        assert!(
            stdout(&root).contains(&format!("\n  {command} ")),
            "{command}"
        );
        let help = run(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(stdout(&help).contains("Usage: sallyport"), "{command}");
        assert!(
            !stdout(&help).contains('\u{1b}'),
            "colours only on a terminal"
        );
        if command != "version" {
            assert!(stdout(&help).contains("\nExamples:\n"), "{command}");
        }
    }
}

#[test]
fn help_of_the_journal_names_the_program_with_the_other_commands() {
    let help = stdout(&run(&["journal", "--help"])).replace('\n', " ");
    for word in [
        "`sallyport-controlplane journal`",
        "verify, dump and restore",
    ] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let help = stdout(&run(&["--help"]));
    let (_, codes) = help.split_once("\nExit codes:\n").expect("a section");
    let codes: Vec<_> = codes
        .lines()
        .filter_map(|line| line.trim().chars().next())
        .collect();
    assert_eq!(codes, ['0', '1', '2', '3', '4', '5', '6']);
}

#[test]
fn no_command_shows_the_help_whatever_the_environment() {
    let output = sallyport(&[]).env("SALLYPORT_SERVER", closed()).output();
    let output = output.expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), stdout(&run(&["--help"])));
}

#[test]
fn usage_errors_exit_with_2() {
    for line in [
        "",
        "frobnicate",
        "apply",
        "apply -f /nonexistent/policy.yaml",
        "apply -f x --dry-run --wait",
        "get",
        "get deployments",
        "get pods,nodes web",
        "get all --watch",
        "delete pod",
        "label pod web",
        "label pod web db a=b",
        "wait --timeout 30",
        "status --server https://localhost:7443",
        "status --server http://localhost",
        "status --server http://localhost:99999",
        "status --server http://localhost:7443/api",
        "status --request-timeout 0s",
        "get pods Web_1",
        "get pods -n No_Namespace",
        "get netpol/Shop/web",
        "delete ns a.b",
        "label pod web a=b/c",
        "label pod web a/b/c=d",
        "journal verify",
        "journal dump",
        "journal restore /backup",
        "journal backup --data-dir /data /backup",
        "completion tcsh",
    ] {
        let output = run(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{line}");
        assert_eq!(stdout(&output), "", "{line}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let output = run(&["apply", "-f", "/nonexistent/policy.yaml"]);
    assert_eq!(
        stderr(&output),
        "error: cannot read /nonexistent/policy.yaml: no such file or directory\n"
    );
}

#[test]
fn nobody_listening_exits_with_3_and_names_the_remedy() {
    let server = closed();
    for line in [
        "status",
        "wait",
        "get all -A",
        "get netpol x",
        "get netpol -w",
        "delete netpol x",
        "label pod web a=b",
        "apply -f -",
    ] {
        let mut command = sallyport(&line.split(' ').collect::<Vec<_>>());
        let output = command.env("SALLYPORT_SERVER", &server).output();
        let output = output.expect("the binary starts");
        assert_eq!(output.status.code(), Some(3), "{line}");
        assert_eq!(
            stderr(&output),
            format!(
                "error: cannot reach the control plane at {server}: connection refused. \
                 Is sallyport-controlplane running? Use --server or SALLYPORT_SERVER\n"
            ),
            "{line}"
        );
    }
}

#[test]
fn a_socket_that_is_not_there_exits_with_3() {
    let output = run(&["status", "--server", "unix:///nonexistent/api.sock"]);
    assert_eq!(output.status.code(), Some(3));
    let expected = "error: cannot reach the control plane at unix:///nonexistent/api.sock: \
                    no such file or directory. Is";
    assert!(stderr(&output).starts_with(expected), "{}", stderr(&output));
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for command in COMMANDS {
            assert!(stdout(&output).contains(command), "{shell} {command}");
        }
    }
}

#[test]
fn version_needs_no_server() {
    let output = run(&["version", "--server", &closed()]);
    assert_eq!(output.status.code(), Some(0));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&output), format!("sallyport {version}\n"));
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = sallyport(&["completion", "bash"]).stdout(writer).output();
    let output = output.expect("the binary starts");
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), "")
    );
}

#[test]
fn a_full_disk_below_the_output_is_an_exit_code_of_its_own() {
    for arguments in [&["version"][..], &["--help"], &["completion", "bash"]] {
        let full = File::options().write(true).open("/dev/full");
        let output = sallyport(arguments)
            .stdout(full.expect("the device is there"))
            .stderr(Stdio::piped())
            .output()
            .expect("the binary starts");
        assert_eq!(output.status.code(), Some(6), "{arguments:?}");
        let said = stderr(&output);
        assert!(
            said.starts_with("error: cannot write the output: "),
            "{said}"
        );
    }
}

#[test]
fn messages_that_nobody_can_read_are_no_panic() {
    let full = File::options().write(true).open("/dev/full");
    let status = sallyport(&["get", "ns", "--server", &closed()])
        .stderr(full.expect("the device is there"))
        .status();
    assert_eq!(status.expect("the binary starts").code(), Some(3));
}
