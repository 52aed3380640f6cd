//! Answers to prompts from the command line, from files, from stdin and from data, and the end of commands on a terminal.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{burnish, json, refused, run, text, tiny_job, tiny_model};

/// `burnish generate` with the tiny model.
fn generate(folder: &TempDir, options: &[&str]) -> Output {
    let base = tiny_model().display().to_string();
    run(folder, &[&["generate", "--base", &base, "--max-tokens", "5", "--compute", "f32"][..], options].concat())
}

/// The objects on the lines of stdout.
fn objects(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_prompt_comes_from_the_command_line_a_file_or_stdin() {
    let folder = tiny_job();
    let typed = generate(&folder, &["--prompt", "2 and 2\nis "]);
    assert!(typed.status.success() && text(&typed.stdout).ends_with('\n'), "{}", text(&typed.stderr));
    fs::write(folder.path().join("prompt.txt"), "2 and 2\nis \n").expect("written");
    assert_eq!(generate(&folder, &["--prompt", "@prompt.txt"]).stdout, typed.stdout);
    let base = tiny_model().display().to_string();
    let mut command = burnish(&folder);
    command.args(["generate", "--base", &base, "--max-tokens", "5", "--compute", "f32", "--prompt", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("stdin").write_all(b"2 and 2\nis \r\n").expect("written");
    assert_eq!(child.wait_with_output().expect("ends").stdout, typed.stdout);

    let missing = refused(&generate(&folder, &["--prompt", "@none.txt"]));
    assert!(missing.contains("none.txt: cannot be read") && missing.contains("begins with @"), "{missing}");
    assert!(refused(&generate(&folder, &["--prompt", "-", "--prompt", "-"])).contains("is `-` twice"));
    assert_eq!(generate(&folder, &[]).status.code(), Some(2), "a prompt or data is needed");
}

#[test]
fn several_prompts_are_answered_by_one_model() {
    let folder = tiny_job();
    let prompts = ["1 and 1 is ", "the river", "another"];
    let alone: Vec<String> =
        prompts.iter().map(|prompt| text(&generate(&folder, &["--prompt", prompt]).stdout)).collect();
    let options: Vec<&str> = prompts.iter().flat_map(|prompt| ["--prompt", prompt]).collect();
    let together = generate(&folder, &options);
    assert_eq!(text(&together.stdout), alone.iter().map(|answer| format!("{answer}\n")).collect::<String>());
    let answers = objects(&generate(&folder, &[&options[..], &["--json"]].concat()));
    for ((line, prompt), alone) in answers.iter().zip(prompts).zip(&alone) {
        assert_eq!((line["prompt"].as_str(), line["answer"].as_str()), (Some(prompt), alone.strip_suffix('\n')));
        assert!(line["finish"] == "length" || line["finish"] == "end_token", "{line}");
    }
    assert_eq!(answers.len(), 3);
}

#[test]
fn every_row_of_a_data_file_is_answered_as_jsonl() {
    let folder = tiny_job();
    let rows = fs::read_to_string(folder.path().join("valid.jsonl")).expect("rows").repeat(2);
    fs::write(folder.path().join("rows.jsonl"), rows).expect("written");
    let answers = objects(&generate(&folder, &["--data", "rows.jsonl"]));
    assert_eq!(answers.len(), 30);
    for (index, line) in answers.iter().enumerate() {
        assert_eq!(line["place"], format!("rows.jsonl:{}", index + 1));
        assert!(line["expected"].as_str().is_some_and(|sum| sum.parse::<u32>().is_ok()), "{line}");
        // The rows come twice, in groups of sixteen: a greedy answer does not depend on its group.
        assert_eq!(line["answer"], answers[(index + 15) % 30]["answer"]);
    }
    let prompt = answers[0]["prompt"].as_str().expect("a prompt");
    let alone = objects(&generate(&folder, &["--raw", "--prompt", prompt, "--json"]));
    assert_eq!(alone[0]["answer"], answers[0]["answer"], "a row's prompt stays as it is");
    fs::write(folder.path().join("text.jsonl"), "{\"text\": \"a\"}\n").expect("written");
    assert!(refused(&generate(&folder, &["--data", "text.jsonl"])).contains("no row asks a question"));
    assert_eq!(generate(&folder, &["--data", "rows.jsonl", "--prompt", "x"]).status.code(), Some(2));
}

#[test]
fn a_system_text_comes_before_the_prompt() {
    let folder = tiny_job();
    fs::write(folder.path().join("system.txt"), "Count in German.\n").expect("written");
    let answer = |system: &[&str]| {
        let answers = objects(&generate(&folder, &[&["--prompt", "one, two", "--json"][..], system].concat()));
        answers[0]["answer"].clone()
    };
    let typed = answer(&["--system", "Count in German."]);
    assert_eq!(typed, answer(&["--system", "@system.txt"]));
    assert_ne!(typed, answer(&[]));
    json(&run(&folder, &["train", "recipe.toml", "--json", "--set", "train.max_steps=1"]));
    let bare = generate(&folder, &["--adapter", "runs/sums", "--prompt", "x", "--system", "y"]);
    assert!(refused(&bare).contains("--system: is given, and the prompt is taken as it is"));
    let chat = generate(&folder, &["--adapter", "runs/sums", "--prompt", "x", "--system", "y", "--chat"]);
    assert!(chat.status.success(), "{}", text(&chat.stderr));
}

/// A terminal: the side of the user, and the side of the program.
#[cfg(unix)]
fn terminal() -> (fs::File, fs::File) {
    use std::os::fd::FromRawFd;
    use std::ptr::null_mut;
    let (mut user, mut program) = (0, 0);
    // SAFETY: fills two descriptors; the other arguments may be null.
    assert_eq!(unsafe { libc::openpty(&mut user, &mut program, null_mut(), null_mut(), null_mut()) }, 0);
    // SAFETY: both were just opened, and nothing else owns them.
    unsafe { (fs::File::from_raw_fd(user), fs::File::from_raw_fd(program)) }
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_an_evaluation_ends_the_line_on_the_terminal() {
    use std::io::Read;
    let folder = tiny_job();
    let rows = fs::read_to_string(folder.path().join("valid.jsonl")).expect("rows").repeat(4000);
    fs::write(folder.path().join("many.jsonl"), rows).expect("written");
    let (mut user, program) = terminal();
    let base = tiny_model().display().to_string();
    let mut command = burnish(&folder);
    command.args(["eval", "--base", &base, "--data", "many.jsonl", "--compute", "f32", "--threads", "1"]);
    let stdout = program.try_clone().expect("a copy");
    let mut child = command.stdout(stdout).stderr(program).spawn().expect("starts");
    drop(command);
    let (mut seen, mut buffer, mut is_interrupted) = (String::new(), [0; 4096], false);
    // A terminal whose program is gone gives an error rather than an end.
    while let Ok(count @ 1..) = user.read(&mut buffer) {
        seen += &String::from_utf8_lossy(&buffer[..count]);
        if !is_interrupted && seen.contains("evaluating") && seen.contains("examples") {
            is_interrupted = true;
            // SAFETY: sends a signal to the child.
            assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        }
    }
    assert_eq!(child.wait().expect("ends").code(), Some(130), "{seen}");
    assert!(is_interrupted && seen.ends_with("\ninterrupted\r\n"), "{seen:?}");
}

#[test]
fn prompts_of_a_file_and_of_stdin_are_answered_as_jsonl_with_their_speeds() {
    let folder = tiny_job();
    let prompts = ["1 and 1 is ", "the river", "another"];
    let alone = |prompt: &str| objects(&generate(&folder, &["--prompt", prompt, "--json"]))[0]["answer"].clone();
    fs::write(folder.path().join("prompts.txt"), format!("{}\r\n\n", prompts.join("\n"))).expect("written");
    let lines = objects(&generate(&folder, &["--prompts", "prompts.txt"]));
    for (line, prompt) in lines.iter().zip(prompts) {
        assert_eq!((line["prompt"].as_str(), &line["answer"]), (Some(prompt), &alone(prompt)));
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        assert!(number("prompt_tokens") >= 1.0 && number("prompt_tokens_per_second") > 0.0);
        assert!(number("seconds_to_first_token") > 0.0 && number("answer_tokens") <= 5.0);
    }
    assert_eq!(lines.len(), 3);

    fs::write(folder.path().join("prompts.jsonl"), "\"the river\"\n{\"prompt\": \"1 and\\n1 is \"}\n")
        .expect("written");
    let lines = objects(&generate(&folder, &["--prompts", "prompts.jsonl"]));
    assert_eq!((lines[0]["answer"].clone(), lines.len()), (alone("the river"), 2));
    assert_eq!(lines[1]["prompt"], "1 and\n1 is ");
    fs::write(folder.path().join("bad.jsonl"), "\"a\"\n{\"text\": 1}\n").expect("written");
    assert!(refused(&generate(&folder, &["--prompts", "bad.jsonl"])).contains("bad.jsonl:2: is neither a JSON string"));
    fs::write(folder.path().join("empty.txt"), "\n").expect("written");
    assert!(refused(&generate(&folder, &["--prompts", "empty.txt"])).contains("empty.txt: has no prompt"));

    let base = tiny_model().display().to_string();
    let mut command = burnish(&folder);
    command.args(["generate", "--base", &base, "--max-tokens", "5", "--compute", "f32", "--prompts", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("stdin").write_all(b"the river\nanother\n").expect("written");
    let lines = objects(&child.wait_with_output().expect("ends"));
    assert_eq!((lines[0]["answer"].clone(), lines[1]["answer"].clone()), (alone("the river"), alone("another")));
}

#[test]
fn stop_strings_and_biases_change_the_answer() {
    let folder = tiny_job();
    let answer = |options: &[&str]| {
        let options = [&["--prompt", "the river", "--json"][..], options].concat();
        let line = objects(&generate(&folder, &options)).remove(0);
        (line["answer"].as_str().expect("text").to_owned(), line["finish"].as_str().expect("a reason").to_owned())
    };
    let (whole, _) = answer(&[]);
    let stop: String = whole.chars().skip(1).take(1).collect();
    let (stopped, finish) = answer(&["--stop", &stop]);
    assert_eq!((Some(stopped.as_str()), finish.as_str()), (whole.split(&stop).next(), "stop"));
    let biased = answer(&["--logit-bias", "70=100"]);
    assert_ne!(biased.0, whole);
    assert_eq!(biased, answer(&["--logit-bias", "70=100", "--logit-bias", "71=-100"]));
    assert_eq!(generate(&folder, &["--prompt", "x", "--logit-bias", "70"]).status.code(), Some(2));
    assert!(refused(&generate(&folder, &["--prompt", "x", "--presence-penalty", "3"])).contains("presence_penalty"));
}
