//! Samples of a run: answers to a few validation prompts at each evaluation, within a share of the training's time, of which the
//! report takes its part.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::answer::{Answering, Question, answer_ids};
use super::base::OpenBase;
use super::folder::RunFolder;
use super::prepare::Prepared;
use super::watch::Watch;
use crate::data::{Row, batch};
use crate::error::{Error, Result};
use crate::files::open;
use crate::generate::run::{Finish, check_prompt};
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::recipe::Plan;

/// The file of the run folder: a line for each answer.
const FILE: &str = "samples.jsonl";
/// The largest such file that a run goes on with.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The stream of the seed that chooses the prompts: neither that of an epoch nor that of the validation split.
const CHOICE_STREAM: u64 = u64::MAX - 1;
/// A training step takes about three times as long by token as an evaluation: forward, backward, and the update.
const STEP_COST: f64 = 3.0;
/// The part of the share of time that answers may take; the rest is left for the report.
const ANSWERS_PART: f64 = 2.0 / 3.0;

/// A validation prompt answered by the adapter of a step.
#[derive(Debug, Clone, Serialize)]
pub struct StepSample {
    /// Steps done.
    pub step: u64,
    /// The prompt for people, without the markup around it.
    pub prompt: String,
    /// The SHA-256 of the pictures that it shows, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pictures: Vec<String>,
    /// The answer in the validation data.
    pub expected: String,
    /// The greedy answer of the adapter.
    pub answer: String,
    /// Its tokens.
    pub tokens: usize,
    /// The reason why it ends; `time` where the share of time was used up.
    pub finish: Finish,
}

/// Times of a run, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Taken {
    /// The answers at evaluations.
    pub samples: f64,
    /// The measures and pages of the report.
    pub report: f64,
    /// The run from its first evaluation on.
    pub run: f64,
}

/// The questions of at most `most` validation examples, chosen by the seed among those that `is_wanted`.
///
/// # Errors
/// Input: what template and tokenizer say.
pub fn questions(
    plan: &Plan,
    base: &OpenBase,
    valid: &[Row],
    most: usize,
    is_wanted: impl Fn(&Question) -> bool,
) -> Result<Vec<Question>> {
    let positions = base.files.config().max_positions;
    let mut questions = Vec::new();
    for index in batch::order(valid.len(), plan.train.seed, CHOICE_STREAM) {
        if questions.len() == most {
            break;
        }
        let question = Question::of(&base.encoder, &valid[index].example)?;
        questions
            .extend(question.filter(|question| check_prompt(&question.ids, positions).is_ok() && is_wanted(question)));
    }
    Ok(questions)
}

/// The answers at the evaluations of a run.
pub struct Samples<'p> {
    prepared: &'p Prepared,
    prompts: Vec<Vec<u32>>,
    began: Instant,
    /// The time that the answers took so far.
    spent: Duration,
    /// The time that the report took so far, from the same share.
    charged: Duration,
    /// The time that reading the prompts takes: that of the last answers before their first token, or else an estimate.
    reading: Duration,
    /// Lines of the file; `None` before the first evaluation.
    lines: Option<String>,
}

impl<'p> Samples<'p> {
    /// No answers yet; the time of the training begins.
    pub fn begin(prepared: &'p Prepared) -> Self {
        let prompts = prepared.held_out.questions.iter().map(|question| question.ids.clone()).collect();
        let (spent, charged, reading) = Default::default();
        Self { prepared, prompts, began: Instant::now(), spent, charged, reading, lines: None }
    }

    /// Answers the prompts with the adapter of `step`, as far as time is left, and writes the answers to the run folder.
    ///
    /// # Errors
    /// Failed: logits that are not numbers; the file cannot be written.
    pub fn answer(
        &mut self,
        step: u64,
        decoder: &Decoder,
        adapter: &Adapter,
        folder: &RunFolder,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let Some(until) = self.time_left(step).map(|left| Instant::now().checked_add(left)) else { return Ok(()) };
        let began = Instant::now();
        let max_tokens = self.prepared.plan.sample.max_tokens;
        let answering = Answering { max_tokens, until, ..Answering::default() };
        let encoder = &self.prepared.base.encoder;
        let answers = answer_ids(decoder, encoder, Some(adapter), &self.prompts, &answering)?;
        self.spent += began.elapsed();
        let first_tokens = answers.iter().filter(|answer| answer.tokens > 0);
        let reading = first_tokens.map(|answer| answer.usage.seconds_to_first_token).min_by(f64::total_cmp);
        self.reading = reading.map_or_else(|| began.elapsed(), Duration::from_secs_f64);
        let shown = |ids: &[u32]| {
            let pictures = encoder.pictures().map(|pictures| pictures.shown_in(ids)).unwrap_or_default();
            pictures.into_iter().map(|picture| picture.sha256).collect()
        };
        let pairs = self.prepared.held_out.questions.iter().zip(answers);
        let samples: Vec<StepSample> = pairs
            .map(|(question, answer)| StepSample {
                step,
                prompt: question.prompt.clone(),
                pictures: shown(&question.ids),
                expected: question.expected.to_string(),
                answer: answer.text,
                tokens: answer.tokens,
                finish: answer.finish,
            })
            .collect();
        watch.samples(step, &samples);
        self.write(step, &samples, folder)
    }

    /// The time that the next answers may take; `None` where it is too short for the prompts alone.
    fn time_left(&mut self, step: u64) -> Option<Duration> {
        let share = self.prepared.plan.sample.time_share;
        if self.prompts.is_empty() || share == 0.0 {
            return None;
        }
        if share == 1.0 {
            return Some(Duration::MAX);
        }
        if step == 0 {
            // Nothing but an evaluation has been done: its time tells that of reading prompts.
            self.reading = self.evaluating(self.prompts.iter().map(Vec::len).sum());
        }
        let allowed = self.budget(step).mul_f64(ANSWERS_PART).saturating_sub(self.spent).min(self.left(step));
        (allowed > self.reading).then_some(allowed)
    }

    /// The time that answers and report may take in all up to the evaluation of `step`.
    fn budget(&self, step: u64) -> Duration {
        let worth = match step {
            // The time of the first evaluation tells that of the run.
            0 => self.evaluations_worth(self.evaluated_tokens()),
            _ => 1.0,
        };
        self.began.elapsed().mul_f64(self.prepared.plan.sample.time_share * worth)
    }

    /// The time that is left for the report at the evaluation of `step`.
    pub fn left(&self, step: u64) -> Duration {
        match self.prepared.plan.sample.time_share {
            1.0 => Duration::MAX,
            _ => self.budget(step).saturating_sub(self.spent + self.charged),
        }
    }

    /// The time that answers and report took so far, and that of the run, in seconds.
    pub fn taken(&self) -> Taken {
        Taken {
            samples: self.spent.as_secs_f64(),
            report: self.charged.as_secs_f64(),
            run: self.began.elapsed().as_secs_f64(),
        }
    }

    /// Takes the time that the report took from the share.
    pub fn charge(&mut self, time: Duration) {
        self.charged += time;
    }

    /// The time of a pass over so many tokens, where nothing but the first evaluation has been done so far.
    pub fn evaluating(&self, tokens: usize) -> Duration {
        self.began.elapsed().mul_f64(tokens as f64 / self.evaluated_tokens())
    }

    /// The tokens of an evaluation.
    fn evaluated_tokens(&self) -> f64 {
        let Prepared { valid, held_out, .. } = self.prepared;
        held_out.valid_at_steps(valid).iter().map(|sequence| sequence.ids.len()).sum::<usize>().max(1) as f64
    }

    /// The expected time of the run for each of its evaluations, in times of one evaluation.
    fn evaluations_worth(&self, evaluated_tokens: f64) -> f64 {
        let Prepared { plan, train, batching, total_steps, .. } = self.prepared;
        let steps_per_epoch = batching.steps(&train.sequences, 0).len() as f64;
        let trained = train.tokens as f64 * *total_steps as f64 / steps_per_epoch.max(1.0);
        let evaluations = (total_steps / plan.train.eval_steps + 2) as f64;
        1.0 + STEP_COST * trained / evaluated_tokens / evaluations
    }

    /// Writes the answers. Where the run was resumed, the file keeps the answers of the steps before.
    fn write(&mut self, step: u64, samples: &[StepSample], folder: &RunFolder) -> Result<()> {
        let lines = self.lines.get_or_insert_with(|| lines_before(step, folder));
        for sample in samples {
            let line = serde_json::to_string(sample).map_err(|error| Error::failed(FILE, error.to_string()))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        folder.write(FILE, lines)
    }
}

/// The lines of the file in `folder` that belong to steps before `step`; none where there is no such file.
fn lines_before(step: u64, folder: &RunFolder) -> String {
    #[derive(Deserialize)]
    struct Of {
        step: u64,
    }
    let bytes = open::read(&folder.path().join(FILE), MAX_FILE_BYTES).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap_or_default();
    let is_before = |line: &&str| serde_json::from_str::<Of>(line).is_ok_and(|line| line.step < step);
    text.lines().filter(is_before).flat_map(|line| [line, "\n"]).collect()
}
