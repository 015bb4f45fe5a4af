//! History, going back, backups and restores: by the real `sallyport`, from a control plane and its files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sallyport_controlplane::{
    config::Config,
    server::{self, Handle},
};
use sallyport_policy::{Epoch, Revision, Window};
use sallyport_proto::wire::{Kind, node_status::State};
use tonic::Code;

use crate::{
    node::FakeNode,
    world::{World, delete, namespace, node, pod, policy, put, url},
};

const CONTROL_PLANE: &str = env!("CARGO_BIN_EXE_sallyport-controlplane");

/// The CLI, beside the control plane's program. It is of another package, which cargo does not build for these tests alone:
/// so it is built first, unless all programs are known to be built (integration/src/binaries.rs).
fn sallyport() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let path = Path::new(CONTROL_PLANE).with_file_name("sallyport");
        let is_built = env::var_os("SALLYPORT_PROGRAMS_BUILT").is_some();
        if let Some(cargo) = env::var_os("CARGO").filter(|_| !is_built) {
            let mut build = Command::new(cargo);
            build.args(["build", "--workspace", "--bins"]);
            if !cfg!(debug_assertions) {
                build.arg("--release");
            }
            let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
            assert!(status.expect("cargo starts").success(), "`cargo build`");
        }
        path
    })
}

/// Runs the CLI. Returns its exit code, what it printed, and what it complained of.
pub(crate) fn cli(line: &str, server: &str) -> (i32, String, String) {
    let mut command = Command::new(sallyport());
    command.env("SALLYPORT_SERVER", server);
    run(command, line)
}

/// Runs the control plane's program, as [`cli`] does the CLI.
fn offline(line: &str) -> (i32, String, String) {
    run(Command::new(CONTROL_PLANE), line)
}

fn run(mut command: Command, line: &str) -> (i32, String, String) {
    command.args(line.split_whitespace());
    let output = command.output().expect("the binary is built and starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("it ends by itself");
    (code, text(&output.stdout), text(&output.stderr))
}

pub(crate) fn ok(line: &str, server: &str) -> String {
    let (code, stdout, stderr) = cli(line, server);
    assert_eq!(code, 0, "{line}: {stderr}");
    stdout
}

fn offline_ok(line: &str) -> String {
    let (code, stdout, stderr) = offline(line);
    assert_eq!(code, 0, "{line}: {stderr}");
    stdout
}

async fn world() -> World {
    let world = World::new().await;
    let text = [
        namespace("a"),
        node("n"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        policy("np", "web", "client"),
    ];
    world.apply(&text.concat()).await;
    world
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

async fn start(path: &Path) -> Handle {
    server::start(Config::local(path)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_restores_what_was_and_can_be_rolled_back() {
    let world = world().await;
    let before = world.get(Kind::NetworkPolicy, "a", "np").await.unwrap();
    world.apply(&policy("np", "web", "other")).await;
    world.apply(&policy("later", "web", "other")).await;
    world.delete(Kind::Pod, "a", "web").await;
    world.apply(&namespace("b")).await;

    let server = world.url();
    let dry = ok("rollback 1 --dry-run", &server);
    assert!(dry.contains("pod/a/web created (dry run)\n"), "{dry}");
    assert!(dry.ends_with("revision 5 (as before)\n"), "{dry}");
    let policies = ok("rollback 1 --only netpol", &server);
    assert_eq!(
        policies,
        "networkpolicy/a/later deleted\nnetworkpolicy/a/np configured\nrevision 6\n"
    );
    let after = world.get(Kind::NetworkPolicy, "a", "np").await.unwrap();
    assert_eq!(
        (after.manifest, after.revision),
        (before.manifest.clone(), 6)
    );
    assert_eq!(world.names(Kind::Namespace).await, ["a", "b"]);

    let all = ok("rollback 1", &server);
    assert_eq!(all, "namespace/b deleted\npod/a/web created\nrevision 7\n");
    let again = ok("rollback 1", &server);
    let nothing = "nothing to do: everything is as it was at revision 1\nrevision 7 (as before)\n";
    assert_eq!(again, nothing);
    ok("rollback 5", &server);
    assert_eq!(world.names(Kind::NetworkPolicy).await, ["later", "np"]);
    assert_eq!(world.names(Kind::Namespace).await, ["a", "b"]);
    assert_eq!(world.names(Kind::Pod).await, [""; 0]);

    let (code, _, stderr) = cli("rollback 1 --expected-revision 3", &server);
    assert_eq!(code, 5, "{stderr}");
    let (code, _, stderr) = cli("rollback 99", &server);
    assert!(
        code == 1 && stderr.contains("lies in the future"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_can_go_back_after_a_restart_but_not_behind_what_is_kept() {
    let mut world = World::with_history(3).await;
    world.apply(&namespace("a")).await;
    for label in ["red", "green", "blue", "gray"] {
        world.apply(&policy("np", label, "client")).await;
    }
    world.restart().await;
    // The configuration of a restarted world keeps more, of what there still is.
    let server = world.url();
    let oldest: u64 = {
        let json = ok("history -o json", &server);
        let at = json.find("\"oldestRevision\": ").expect(&json);
        let digits = json[at + 18..].chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap()
    };
    ok("rollback 3", &server);
    let np = world.get(Kind::NetworkPolicy, "a", "np").await.unwrap();
    assert!(
        np.manifest.contains(r#"{"app":"green"}"#),
        "{}",
        np.manifest
    );
    if oldest > 0 {
        let (code, _, stderr) = cli(&format!("rollback {}", oldest - 1), &server);
        assert!(code == 1 && stderr.contains("are compacted"), "{stderr}");
    }
    let short = World::with_history(1).await;
    short.apply(&namespace("a")).await;
    short.apply(&namespace("b")).await;
    let (code, _, stderr) = cli("rollback 0", &short.url());
    let expected =
        "the transactions after revision 0 are compacted: the oldest revision for a rollback is 1";
    assert!(code == 1 && stderr.contains(expected), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_any_more_is_refused_whole() {
    let world = world().await;
    world.delete(Kind::Pod, "a", "web").await;
    world.apply(&pod("a", "new", "n", "10.0.0.1", "web")).await;
    // Policies alone are no matter; the whole would work, as the new pod goes.
    world
        .apply(&pod("a", "new", "n", "10.0.0.1", "other"))
        .await;
    let (code, _, stderr) = cli("rollback 2 --only ns", &world.url());
    assert_eq!(code, 0, "{stderr}");
    // A pod that moved moves back.
    world.try_apply(vec![put(&node("m"))]).await.unwrap();
    world.apply(&pod("a", "new", "m", "10.0.0.1", "web")).await;
    let (code, _, stderr) = cli("rollback 3 --only pod", &world.url());
    assert_eq!(code, 0, "{stderr}");
    // An address that another has now is both's.
    world
        .try_apply(vec![delete(Kind::Pod, "a", "new")])
        .await
        .unwrap();
    world
        .apply(
            "{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {name: vm, namespace: a}, \
             spec: {node: m, addresses: [10.0.0.1]}}",
        )
        .await;
    let (code, _, stderr) = cli("rollback 3 --only pod", &world.url());
    let expected = "warning: address 10.0.0.1 is claimed by Pod a/new on node \"n\" and Workload a/vm on node \"m\": ";
    assert!(code == 0 && stderr.contains(expected), "{stderr}");
    // What names a node that is gone is refused.
    let edits = vec![delete(Kind::Pod, "a", "new"), delete(Kind::Node, "", "n")];
    world.try_apply(edits).await.unwrap();
    let (code, _, stderr) = cli("rollback 3 --only pod", &world.url());
    let expected = "rollback to revision 3: Pod a/new: nodes \"n\" not found";
    assert!(code == 1 && stderr.contains(expected), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_tells_when_and_what() {
    let mut world = world().await;
    world.delete(Kind::Pod, "a", "web").await;
    world.apply(&policy("np", "web", "other")).await;
    let check = |table: String| {
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(
            lines[1].ends_with("networkpolicy/a/np configured"),
            "{table}"
        );
        assert!(lines[2].ends_with("pod/a/web deleted"), "{table}");
        assert!(
            lines[3].contains("4 created: namespace/a, node/n, pod/a/web, ..."),
            "{table}"
        );
        for line in &lines[1..] {
            let time = line.split_whitespace().nth(1).unwrap();
            let time: jiff::Timestamp = time.parse().expect("a time");
            let age = jiff::Timestamp::now().duration_since(time).as_secs();
            assert!((0..60).contains(&age), "{line}");
        }
    };
    check(ok("history", &world.url()));
    world.restart().await;
    check(ok("history", &world.url()));
    assert_eq!(ok("history -n 1 --before 3 -o name", &world.url()), "2\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_refuse_to_go_back_until_a_backup_is_restored_in_a_later_epoch() {
    let mut world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let scratch = tempfile::tempdir().unwrap();
    let (file, old, new) = (
        scratch.path().join("backup"),
        scratch.path().join("old"),
        scratch.path().join("new"),
    );
    let saved = ok(&format!("journal backup {}", file.display()), &world.url());
    assert!(
        saved.ends_with(": 4 objects, revision 1, epoch 1\n"),
        "{saved}"
    );
    world.server.take().unwrap().stop().await.unwrap();
    copy(world.directory.path(), &old);

    // The node goes on.
    let server = start(world.directory.path()).await;
    let mut n = n.reconnect(url(&server)).await;
    let edit = format!("apply -f {}", scratch.path().join("edit.yaml").display());
    fs::write(
        scratch.path().join("edit.yaml"),
        policy("np", "web", "other"),
    )
    .unwrap();
    ok(&edit, &url(&server));
    while n.newest().revision < Revision(2) || n.window.versions().len() > 1 {
        n.follow().await;
    }
    server.stop().await.unwrap();

    // An old copy of the files is refused by name.
    let server = start(&old).await;
    let status = n.reconnect(url(&server)).await.ends().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(
        status
            .message()
            .contains("node \"n\" enforces epoch 1 revision 2"),
        "{status}"
    );
    assert!(
        status
            .message()
            .contains("`sallyport-controlplane journal restore`"),
        "{status}"
    );
    server.stop().await.unwrap();

    // A backup of the same revision is accepted: it is of a later epoch.
    let restored = offline_ok(&format!(
        "journal restore {} --data-dir {}",
        file.display(),
        new.display()
    ));
    assert!(
        restored.ends_with(": 4 objects, revision 1, epoch 2\n"),
        "{restored}"
    );
    let server = start(&new).await;
    assert_eq!((server.revision, server.epoch), (Revision(1), Epoch(2)));
    let mut n = n.reconnect(url(&server)).await;
    while n.newest().epoch < Epoch(2) || n.window.versions().len() > 1 {
        n.follow().await;
    }
    assert_eq!(
        (n.newest().epoch, n.newest().revision),
        (Epoch(2), Revision(1))
    );
    // Nothing held it up, and edits go on from here.
    ok(
        &format!("{edit} --wait --dry-run").replace(" --wait", ""),
        &url(&server),
    );
    ok(&edit, &url(&server));
    while n.newest().revision < Revision(2) || n.window.versions().len() > 1 {
        n.follow().await;
    }
    server.stop().await.unwrap();
    let again = offline_ok(&format!("journal verify --data-dir {}", new.display()));
    assert!(again.contains("revision 2, epoch 2\n"), "{again}");
    assert!(again.contains("nodes that have joined: 1;"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tools_look_and_never_touch() {
    let mut world = world().await;
    world.delete(Kind::Pod, "a", "web").await;
    let path = world.directory.path().to_owned();
    let at = format!("--data-dir {}", path.display());
    let (code, _, stderr) = offline(&format!("journal verify {at}"));
    assert!(
        code == 1 && stderr.contains("is in use by another process"),
        "{stderr}"
    );
    world.server.take().unwrap().stop().await.unwrap();

    let db = fs::read(path.join("journal/db")).unwrap();
    let verified = offline_ok(&format!("journal verify {at}"));
    assert!(verified.starts_with("the journal is whole"), "{verified}");
    assert!(
        verified.contains("3 objects: 1 Namespace, 1 Node, 1 NetworkPolicy\n"),
        "{verified}"
    );
    let objects = offline_ok(&format!("journal dump {at}"));
    assert!(
        objects.contains("kind: List") && objects.contains("name: np"),
        "{objects}"
    );
    let log = offline_ok(&format!("journal dump --transactions -o json {at}"));
    assert!(log.contains("\"delete\": \"Pod a/web\""), "{log}");
    assert_eq!(fs::read(path.join("journal/db")).unwrap(), db);

    let file = path.join("offline");
    offline_ok(&format!("journal backup {} {at}", file.display()));
    let (code, _, stderr) = offline(&format!("journal restore {} {at}", file.display()));
    assert!(code == 1 && stderr.contains("is not empty"), "{stderr}");
    let empty = path.join("empty");
    let (code, _, stderr) = offline(&format!(
        "journal restore {} --epoch 1 --data-dir {}",
        file.display(),
        empty.display()
    ));
    assert!(
        code == 1 && stderr.contains("must be above the backup's"),
        "{stderr}"
    );

    let mut damaged = db.clone();
    let written = db.iter().rposition(|&byte| byte != 0).unwrap();
    damaged[written / 2] ^= 0x10;
    fs::write(path.join("journal/db"), &damaged).unwrap();
    let (code, stdout, stderr) = offline(&format!("journal verify {at}"));
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(
        stderr.contains(&format!("the journal {}", path.join("journal").display())),
        "{stderr}"
    );
    assert_eq!(fs::read(path.join("journal/db")).unwrap(), damaged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_names_what_it_left_out() {
    let world = world().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("chart.yaml");
    let chart = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: a}}\n---\n\
                 {apiVersion: v1, kind: Namespace, metadata: {name: more}}\n";
    fs::write(&file, chart).expect("a file");
    let file = file.display();
    let (code, stdout, stderr) = cli(&format!("apply -f {file}"), &world.url());
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.contains("Service a/web: no matches for kind"),
        "{stderr}"
    );
    assert!(
        stderr.contains("--ignore-unknown-kinds leaves other kinds out"),
        "{stderr}"
    );
    for (command, word) in [("apply", "created"), ("delete", "deleted")] {
        let line = format!("{command} -f {file} --ignore-unknown-kinds");
        let (code, stdout, stderr) = cli(&line, &world.url());
        assert_eq!(
            (code, stderr),
            (
                0,
                format!("left out: {file}:1:1: document 1: Service a/web (v1)\n")
            )
        );
        assert!(
            stdout.starts_with(&format!("namespace/more {word}\n")),
            "{stdout}"
        );
    }
}
