//! Evaluation of a base, or of a base with an adapter, on a data file.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::answer::{Answering, Expected, Question, answer_ids};
use super::base::OpenBase;
use super::outcome::Validation;
use crate::adapter::host::HostAdapter;
use crate::data::{Format, LongPolicy, Row};
use crate::error::{Error, Result, counted};
use crate::eval::loss::{mean_loss, perplexity};
use crate::eval::text::{exact_match, rouge_l};
use crate::generate::run::check_prompt;
use crate::model::Decoder;
use crate::quant::Quant;
use crate::train::evaluate::evaluate as losses_of;

/// The measures beside the loss.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Answer every example greedily and score the answers.
    pub generate: bool,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// Decides the bootstrap's resamples.
    pub seed: u64,
    /// The quantisation of the base's weights in memory, for the report.
    pub quant: Quant,
}

/// The outcome of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct EvalReport {
    /// Mean over the trained tokens, with the adapter if there is one.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Trained tokens.
    pub tokens: usize,
    /// Examples.
    pub examples: usize,
    /// How the base's weights were kept in memory: `none`, `nf4`, …
    pub quant: &'static str,
    /// The base against base and adapter; none without an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_base: Option<Validation>,
    /// Share of answers that are the expected text, white space at the ends aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<f64>,
    /// Mean ROUGE-L F1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
}

/// Evaluates `rows` of the file `data`; `notice` gets what the user should know of them, a line each.
///
/// # Errors
/// An example that cannot be encoded; no trained token; an adapter that does not fit; no answers to score.
pub fn evaluate(
    base: &OpenBase,
    decoder: &Decoder,
    adapter: Option<&HostAdapter>,
    rows: &[Row],
    data: &Path,
    options: &EvalOptions,
    notice: &mut dyn FnMut(&str),
) -> Result<EvalReport> {
    let limit = decoder.config().max_positions;
    let of_data = |error: Error| error.within(data.display());
    let set = base.encoder.encode_all(rows, limit, LongPolicy::Error)?;
    set.notices.iter().for_each(|text| notice(text));
    if set.sequences.is_empty() {
        return Err(Error::input(data.display(), "no example has a token to evaluate"));
    }
    if let (Some(trained_on), Some(format)) = (adapter.map(HostAdapter::data_format).transpose()?.flatten(), set.format)
        && trained_on.uses_template() != format.uses_template()
    {
        let through = |format: Format| if format.uses_template() { "through the chat template" } else { "bare" };
        notice(&format!(
            "the adapter was trained on `{trained_on}` data, {}; this file is read as `{format}`, {}",
            through(trained_on),
            through(format)
        ));
    }
    let attached = adapter.map(|adapter| adapter.attach(decoder.config(), decoder.device())).transpose()?;
    let progress = &mut |_| Ok(());
    let losses = losses_of(decoder, attached.as_ref(), &set.sequences, progress)?;
    let place = |index: usize| set.positions[index].to_string();
    let loss = mean_loss(&losses, place)?;
    let tokens = losses.iter().map(|loss| loss.tokens).sum();
    let against_base = match &attached {
        Some(_) => {
            let before = losses_of(decoder, None, &set.sequences, progress)?;
            Some(Validation::of("validation", (&before, &losses), options.seed, place)?)
        }
        None => None,
    };
    let mut report = EvalReport {
        loss,
        perplexity: perplexity(loss),
        tokens,
        examples: set.sequences.len(),
        quant: options.quant.name(),
        against_base,
        exact_match: None,
        rouge_l: None,
    };
    if options.generate {
        let asked = rows.iter().map(|row| {
            let asked = Question::of(&base.encoder, &row.example).and_then(|asked| {
                asked.iter().try_for_each(|question| check_prompt(&question.ids, limit))?;
                Ok(asked)
            });
            asked.map_err(|error| error.within(row.position.to_string()))
        });
        let asked = asked.collect::<Result<Vec<_>>>()?;
        let questions: Vec<Question> = asked.into_iter().flatten().collect();
        let questions = questions.into_iter().filter_map(|question| match question.expected {
            Expected::Text(text) => Some((question.ids, text)),
            Expected::Calls(_) => None,
        });
        let (prompts, expected): (Vec<_>, Vec<_>) = questions.unzip();
        if prompts.is_empty() {
            return Err(Error::input(data.display(), "no example has an answer to compare with")
                .hint("--generate needs prompts with completions, Alpaca examples or conversations"));
        }
        let answering = Answering { max_tokens: options.max_tokens, ..Answering::default() };
        let answers = answer_ids(decoder, &base.encoder, attached.as_ref(), &prompts, &answering, |_, _| Ok(()));
        let answers = answers.map_err(of_data)?;
        let pairs = || answers.iter().zip(&expected);
        let count = answers.len() as f64;
        report.exact_match =
            Some(pairs().filter(|(answer, expected)| exact_match(expected, &answer.text)).count() as f64 / count);
        report.rouge_l = Some(pairs().map(|(answer, expected)| rouge_l(expected, &answer.text)).sum::<f64>() / count);
    }
    Ok(report)
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "loss {:.4}, perplexity {:.3} over {} of {}",
            self.loss,
            self.perplexity,
            counted(self.tokens, "token"),
            counted(self.examples, "example")
        )?;
        if self.quant != Quant::None.name() {
            write!(f, ", base held as {}", self.quant)?;
        }
        if let Some(against) = &self.against_base {
            write!(f, "\n{against}")?;
        }
        if let (Some(exact), Some(rouge)) = (self.exact_match, self.rouge_l) {
            write!(f, "\nexact match {:.1}%, ROUGE-L {:.3}", 100.0 * exact, rouge)?;
        }
        Ok(())
    }
}
