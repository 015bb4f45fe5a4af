//! Tests of the enforcer's requirements, and of its messages where it cannot enforce.

use std::{
    process::{ExitCode, Output, Stdio},
    time::Duration,
};

use sallyport_integration::binaries::{Binaries, binaries};
use sallyport_testbed::{
    Host, Mode, Testbed,
    kernel_tests::{self, Failed, Outcome},
};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("cap_net_admin_is_enough", cap_net_admin_is_enough),
        (
            "without_cap_net_admin_the_enforcer_names_the_capability",
            without_cap_net_admin,
        ),
        ("a_bridge_that_bypasses_is_refused", bridge_bypass),
        (
            "a_bridge_is_set_right_where_that_is_allowed",
            managed_bridge,
        ),
        ("a_second_enforcer_is_refused", second_enforcer),
    ])
}

/// Runs the enforcer on a node for a moment, with these capabilities as `setpriv` takes them.
fn run(node: &Host, capabilities: &str, arguments: &[&str]) -> Result<Output, Failed> {
    let Binaries { enforcer, .. } = binaries()?;
    let directory = tempfile::tempdir()?;
    let mut command = node.netns().command("timeout");
    command
        .args([
            "--signal",
            "TERM",
            "1.5",
            "setpriv",
            "--bounding-set",
            capabilities,
        ])
        .arg(enforcer)
        .args(["--node-name", "node-1", "--data-dir"])
        .arg(directory.path())
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(node.netns().spawn(command)?.wait_with_output()?)
}

fn expect(output: &Output, words: &[&str]) -> Outcome {
    let said = String::from_utf8_lossy(&output.stderr);
    match words.iter().find(|word| !said.contains(*word)) {
        Some(word) => Err(format!("it does not say {word:?}: {said}").into()),
        None => Ok(()),
    }
}

fn cap_net_admin_is_enough() -> Outcome {
    let bed = Testbed::builder().nodes(1).build()?;
    let output = run(bed.node(0), "-all,+net_admin", &[])?;
    expect(
        &output,
        &[" enforcing ", "no session", "its tables stay in the kernel"],
    )
}

fn without_cap_net_admin() -> Outcome {
    let bed = Testbed::builder().nodes(1).build()?;
    let output = run(bed.node(0), "-net_admin", &[])?;
    expect(
        &output,
        &["CAP_NET_ADMIN is missing", "cap_add: [NET_ADMIN]"],
    )
}

fn bridge_bypass() -> Outcome {
    let bed = Testbed::builder().nodes(1).mode(Mode::Bridged).build()?;
    bed.add_pod(0, "a", &[[10, 9, 1, 2].into()])?;
    bed.add_pod(0, "b", &[[10, 9, 1, 3].into()])?;
    expect(&run(bed.node(0), "+all", &[])?, &[" enforcing "])?;
    bed.node(0)
        .sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
    let refused = run(bed.node(0), "+all", &[])?;
    expect(
        &refused,
        &[
            "between the ports of a bridge meets no policy: IPv6 of br0 (2 ports)",
            "bridge-nf-call-ip6tables is 0",
            "--ignore-bridge br0",
        ],
    )?;
    expect(
        &run(bed.node(0), "+all", &["--ignore-bridge", "br0"])?,
        &[" enforcing "],
    )
}

/// The enforcer sets the sysctls of a bridge without any other capability. Where it cannot, it names the reason.
fn managed_bridge() -> Outcome {
    let sysctl = "net.bridge.bridge-nf-call-ip6tables";
    let bed = Testbed::builder().nodes(1).mode(Mode::Bridged).build()?;
    bed.add_pod(0, "a", &[[10, 9, 1, 2].into()])?;
    bed.add_pod(0, "b", &[[10, 9, 1, 3].into()])?;
    let node = bed.node(0);
    node.sysctl(sysctl, "0")?;
    let said = run(node, "-all,+net_admin", &["--manage-sysctls"])?;
    expect(
        &said,
        &[
            "set net.bridge.bridge-nf-call-ip6tables to 1",
            " enforcing ",
        ],
    )?;
    match node.netns().read_sysctl(sysctl)?.as_str() {
        "1" => {}
        other => return Err(format!("{sysctl} is {other}").into()),
    }
    node.sysctl(sysctl, "0")?;
    let mut command = node.netns().command("unshare");
    let read_only =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    command
        .args(["--mount", "sh", "-c", read_only, "sh"])
        .arg(binaries()?.enforcer)
        .args(["--node-name", "node-1", "--data-dir", "/nowhere"])
        .env("SALLYPORT_MANAGE_SYSCTLS", "1")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let refused = node.netns().spawn(command)?.wait_with_output()?;
    expect(
        &refused,
        &[
            "and the sysctl cannot be set: ",
            "/proc/sys is read-only for the enforcer",
        ],
    )
}

fn second_enforcer() -> Outcome {
    let bed = Testbed::builder().nodes(1).build()?;
    let Binaries { enforcer, .. } = binaries()?;
    let directory = tempfile::tempdir()?;
    let mut command = bed.node(0).netns().command(enforcer);
    command
        .args(["--node-name", "node-1", "--data-dir"])
        .arg(directory.path());
    command.stderr(Stdio::null());
    let mut first = bed.node(0).netns().spawn(command)?;
    std::thread::sleep(Duration::from_millis(700));
    let output = run(bed.node(0), "+all", &[])?;
    first.kill()?;
    first.wait()?;
    expect(&output, &["EPERM", "Another enforcer may hold the table"])
}
