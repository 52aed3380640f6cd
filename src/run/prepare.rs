//! The preparation of a training run: everything short of the weights.

use burn::tensor::Device;

use super::answer::PromptForm;
use super::base::OpenBase;
use super::classes;
use super::exact_match;
use super::held_out::HeldOut;
use super::memory::{Demand, MemoryPlan, Planner, described, fit_memory, moments};
use super::notices::notices;
use super::preferences;
use super::privacy;
use super::watch::{Stage, Watch};
use crate::adapter::host::{HostAdapter, provenance};
use crate::bytes::Size;
use crate::data::kept::KeptSets;
use crate::data::{Augmenter, Canaries, DataSet, Encoded, EncodedSet, Example, Paths, Row, split};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Place, Result, counted};
use crate::files::hex;
use crate::generate::run::check_prompt;
use crate::model::Decoder;
use crate::model::base::quantiser_sha256;
use crate::model::load::LoadOptions;
use crate::model::vision::features::is_feature;
use crate::pull;
use crate::recipe::{Base, Plan, Recipe};
use crate::train::{Batching, Guarantee, Layout, TrainSettings, preference};

/// All that a run needs, short of the weights.
pub struct Prepared {
    /// The recipe's settings, a warm-up longer than the run shortened.
    pub plan: Plan,
    /// Where to compute.
    pub device: Device,
    /// The base, its weights still in their files.
    pub base: OpenBase,
    /// The fingerprint of the base's files.
    pub base_sha256: String,
    /// The SHA-256 of the training files as they were read ([`DataSet::sha256`]).
    pub train_sha256: String,
    /// The same of the validation files; none without any.
    pub valid_sha256: Option<String>,
    /// The training examples.
    pub train: EncodedSet,
    /// The examples of the training sequences, where they change from epoch to epoch; empty otherwise.
    pub changing: Vec<Example>,
    /// The validation examples; empty without.
    pub valid: EncodedSet,
    /// The examples that are measured beside the whole validation set.
    pub held_out: HeldOut,
    /// Validation sequences that are training sequences too.
    pub seen_in_training: usize,
    /// The adapter before the first step.
    pub start: HostAdapter,
    /// How sequences become steps.
    pub batching: Batching,
    /// How a step goes through the model.
    pub layout: Layout,
    /// Steps of the run, unless it stops early.
    pub total_steps: u64,
    /// The promise to the training examples, where the run is private.
    pub privacy: Option<Guarantee>,
    /// The memory that the run will take.
    pub memory: MemoryPlan,
    /// The form of the sample prompts: that of the prompts in the training data.
    pub form: PromptForm,
    /// The sample prompts, encoded.
    pub prompts: Vec<Vec<u32>>,
    /// Files that are not read, examples of several shapes and settings that were adjusted, in words.
    pub(super) adjustments: Vec<String>,
}

/// Prepares what `recipe` asks for, and loads no weight.
///
/// # Errors
/// All that is wrong with the recipe and the files it names; then all that is wrong with the data, the base and what
/// they make of each other, at the line of the recipe where a setting is to blame.
pub fn prepare(
    recipe: &Recipe,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<Prepared> {
    let plan = recipe.plan()?;
    let prepared = prepare_plan(plan, choice, max_memory, watch).map_err(|error| recipe.locate(error))?;
    notices(&prepared).iter().for_each(|notice| watch.notice(notice));
    if recipe.has_sweep() {
        watch.notice("[sweep] is left out: `burnish sweep` tries its values");
    }
    Ok(prepared)
}

fn prepare_plan(
    mut plan: Plan,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<Prepared> {
    let device = device::open(choice)?;
    watch.stage(Stage::OpenBase);
    let base = OpenBase::open(&plan.base.model, &mut |event| watch.pull(event))
        .and_then(|base| base.with_tokens(&plan.adapter.new_tokens))
        .and_then(|(base, tokens)| Ok((base.for_data(&plan.data)?, tokens)));
    watch.stage(Stage::ReadData);
    let ((mut base, tokens), Examples { train, own, valid, train_sha256, valid_sha256 }) =
        Error::both(base, read_examples(&plan))?;
    let labels = classes::labels(&plan, train.iter().chain(&valid));
    base.encoder.set_labels(labels.clone());
    let format = train.first().map(|row| row.example.plain().format());
    let form = format.map_or(PromptForm::Conversation, PromptForm::of);
    let mixed = mixed_shapes(&train);
    let canaries = plan.data.canaries.as_ref().map(Canaries::notice);
    let load = LoadOptions { device: device.clone(), compute: plan.base.compute, quant: plan.base.quant };
    let precise = Error::both(base.check_quant(Place::setting("base.quant"), load.quant), load.check());
    let begun = plan.adapter.begin(&base.files, plan.base.quant, &tokens, &labels, plan.train.seed);
    let start = Error::both(precise, begun);
    watch.stage(Stage::Encode);
    let sets = encode(&plan, &base, &train, &valid, &mut |done, total| watch.encoding(done, total));
    let encoded = Error::both(sets, encode_prompts(&plan, &base, form));
    let encoded = Error::both(encoded, HeldOut::read(&plan, &base));
    let (mut train_rows, valid_rows) = (train, valid);
    train_rows.truncate(own);
    let ((_, mut start), (((train, valid), prompts), mut held_out)) = Error::both(start, encoded)?;
    held_out.choose(&plan, &base, &valid_rows, &valid)?;
    plan.train.label_weights.of(&labels, &train.sequences)?;
    let objective = plan.train.objective();
    for examples in [&train, &valid].into_iter().chain(held_out.test.as_ref().map(|test| &test.set)) {
        preference::evaluated(&*objective, &examples.sequences)?;
    }
    let changing = if plan.data.augment.is_some() { changing(train_rows, &train)? } else { Vec::new() };

    let questions = held_out.questions.iter().chain(&held_out.scored).map(|question| &question.ids);
    let answered: Vec<Vec<u32>> = prompts.iter().chain(questions).cloned().collect();
    let longest = exact_match::max_tokens(&base.encoder, &held_out.scored);
    let sample = (&answered[..], plan.sample.max_tokens.max(longest));
    privacy::by_example(&mut plan);
    let demand = Demand::of(&plan.train, &plan.data, &train, &valid, sample);
    let features = |sequence: &Encoded| sequence.ids.iter().filter(|id| is_feature(**id)).count();
    let most_features = train.sequences.iter().map(features).max().unwrap_or(0) * plan.train.micro_batch_seqs;
    let (of_pictures, of_vision) = (base.picture_bytes(load.compute), base.vision_bytes(&load));
    let planner = Planner::new(&base.files, &load, &start);
    let (layout, memory) = fit_memory(&demand, max_memory, (planner.layers(), planner.can_stream()), |work| {
        let plan = planner.plan(work);
        let plan = MemoryPlan { data: plan.data + of_pictures, loading: plan.loading.max(of_vision), ..plan };
        if !start.changes_vision(base.files.config()) {
            return plan;
        }
        // Of the tokens of a part, all may be those of pictures.
        let (tiles, tape) = base.trained_vision_bytes(most_features.min(work.tokens), load.compute);
        let (weights, activations) = (plan.weights + of_vision, plan.activations + tape);
        MemoryPlan { weights, activations, data: plan.data + tiles, ..plan }
    })?;
    let of_data = plan.data.passed_over().into_iter().chain(mixed).chain(canaries);
    let mut adjustments: Vec<String> = of_data.chain(described(layout, &memory, &plan.train, &base.files)?).collect();
    let batching = Batching::of(&plan.train, &plan.data);
    let total_steps = batching.total_steps(&plan.train, &train.sequences)?;
    adjustments.extend(shorten_warmup(&mut plan, total_steps));
    let privacy = privacy::guarantee(&mut plan, &train, &mut start, total_steps)?;
    adjustments.extend(privacy.iter().flat_map(|guarantee| privacy::notices(&plan, guarantee)));

    if let Some(format) = format {
        start.record_data_format(format);
    }
    let base_sha256 = base.files.content_hash()?;
    let tokenizer = base.encoder.tokenizer();
    let quantiser_sha256 = quantiser_sha256(plan.base.quant)?;
    let facts = [
        (provenance::BASE_SHA256, Some(base_sha256.clone())),
        (provenance::QUANT, Some(plan.base.quant.to_string())),
        (provenance::QUANTISER_SHA256, quantiser_sha256.clone()),
        (provenance::COMPUTE, Some(plan.base.compute.to_string())),
        (provenance::TOKENIZER_SHA256, Some(tokenizer.sha256())),
        (provenance::TEMPLATE_SHA256, tokenizer.chat_template().map(|text| hex::sha256_of(text.as_bytes()))),
        // A hash would tell whether a guess of the private data is right.
        (provenance::DATA_SHA256, privacy.is_none().then(|| train_sha256.clone())),
        (provenance::VALID_SHA256, valid_sha256.clone()),
        (provenance::CONTROL_TOKENS, Some(plan.data.control_tokens.to_string())),
        (provenance::SEED, Some(plan.train.seed.to_string())),
        (provenance::VERSION, Some(env!("CARGO_PKG_VERSION").to_owned())),
        (provenance::BUILD, Some(env!("BURNISH_BUILD").to_owned())),
    ];
    start.metadata.extend(facts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let seen_in_training = split::seen_in_training(&train.sequences, &valid.sequences);
    Ok(Prepared {
        plan,
        device,
        base,
        base_sha256,
        train_sha256,
        valid_sha256,
        train,
        changing,
        valid,
        held_out,
        seen_in_training,
        start,
        batching,
        layout,
        total_steps,
        privacy,
        memory,
        form,
        prompts,
        adjustments,
    })
}

impl Prepared {
    /// Loads the weights of the base as the run holds them.
    ///
    /// # Errors
    /// Those of [`OpenBase::load_streamed`] and [`OpenBase::keep_vision`].
    pub(super) fn load(&self, watch: &mut dyn Watch) -> Result<Decoder> {
        watch.stage(Stage::LoadWeights);
        let Base { compute, quant, .. } = self.plan.base;
        let options = LoadOptions { device: self.device.clone(), compute, quant };
        let progress = |done, total| watch.loading(done, total);
        let decoder = match self.layout.parts_a_pass {
            None => self.base.load(&options, progress)?,
            Some(_) => self.base.load_streamed(&options, progress)?,
        };
        self.base.keep_vision(&decoder, &options, &self.start)?;
        Ok(decoder)
    }

    /// The changes of the training sequences, if the recipe asks for any.
    pub fn augmenter(&self) -> Option<Augmenter<'_>> {
        let Self { plan, base, changing, .. } = self;
        plan.data.augment.as_ref().map(|settings| Augmenter {
            encoder: &base.encoder,
            settings,
            seed: plan.train.seed,
            max_seq_tokens: plan.data.max_seq_tokens.min(base.files.config().max_positions),
            examples: changing,
        })
    }

    /// Room on the disk that the run takes at most: the best adapter twice, since it is replaced, and the checkpoints, of which
    /// each holds two adapters and the moments, beside the one that is being written and the one that was resumed from.
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.start, &self.plan.train)
    }
}

/// Room on the disk that a run takes at most, see [`Prepared::disk_bytes`].
pub(super) fn disk_bytes(adapter: &HostAdapter, train: &TrainSettings) -> u64 {
    let parameters = adapter.parameters() as u64;
    let checkpoint = 2 * parameters + moments(adapter, train.optimiser);
    4 * (2 * parameters + checkpoint * (train.keep_checkpoints as u64 + 2))
}

/// The examples of the sequences of `set`, which come in the order of the rows.
fn changing(rows: Vec<Row>, set: &EncodedSet) -> Result<Vec<Example>> {
    let mut positions = set.positions.iter().peekable();
    let kept = rows.into_iter().filter(|row| positions.next_if(|position| **position == row.position).is_some());
    let examples: Vec<Example> = kept.map(|row| row.example).collect();
    if examples.iter().all(|example| matches!(example, Example::Text { .. })) {
        let message = "changes prompts, and no training example has one: they are plain texts";
        return Err(Error::input(Place::setting("data.augment"), message));
    }
    Ok(examples)
}

/// The examples of both splits, as they were read.
pub struct Examples {
    /// Training examples, those of rehearsal and canaries at the end.
    pub train: Vec<Row>,
    /// Training examples that are neither those of rehearsal nor canaries.
    pub own: usize,
    /// Validation examples; empty without.
    pub valid: Vec<Row>,
    /// The SHA-256 of the training files ([`DataSet::sha256`]).
    pub train_sha256: String,
    /// The SHA-256 of the validation files; none without any.
    pub valid_sha256: Option<String>,
}

/// Reads the examples of both splits.
///
/// # Errors
/// Input: every bad row, as far as there are not too many.
pub fn read_examples(plan: &Plan) -> Result<Examples> {
    let (mut files, valid) = Error::both(plan.data.read_train(), plan.data.read_valid())?;
    let rows = std::mem::take(&mut files.rows);
    let valid_sha256 = valid.as_ref().map(DataSet::sha256);
    let (mut train, valid) = match (valid, plan.data.valid_fraction) {
        (Some(valid), _) => (rows, valid.rows),
        (None, Some(fraction)) => split::split_valid(rows, fraction, plan.train.seed)?,
        (None, None) => (rows, Vec::new()),
    };
    let fits = |rows: &[Row]| preferences::check_shapes(plan.train.objective, rows);
    Error::both(fits(&train), fits(&valid))?;
    let own = train.len();
    if let Some(rehearsal) = plan.data.read_rehearsal(&train)? {
        train.extend(rehearsal.rows);
        files.file_sha256.extend(rehearsal.file_sha256);
    }
    if let Some(canaries) = &plan.data.canaries {
        let rows = canaries.rows(plan.train.seed, train.first().map(|row| &row.example));
        train.extend(rows);
    }
    Ok(Examples { train, own, valid, train_sha256: files.sha256(), valid_sha256 })
}

/// Encodes the examples of both splits, of which neither may come out empty.
/// `progress(done, total)` is called with numbers of examples.
fn encode(
    plan: &Plan,
    base: &OpenBase,
    train: &[Row],
    valid: &[Row],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(EncodedSet, EncodedSet)> {
    let limit = plan.data.max_seq_tokens.min(base.files.config().max_positions);
    // Without a cache, a set is encoded every time.
    let kept = pull::cache_folder().ok().map(|cache| KeptSets::new(cache.join("encoded")));
    let (kept, limits) = (kept.as_ref(), (limit, plan.data.overlong));
    let mut encode = |rows: &[Row]| base.encoder.encode_kept(kept, rows, limits, progress);
    let (train, valid) = Error::both(encode(train), encode(valid))?;
    let may_lack_valid = plan.data.valid.is_none() && plan.data.valid_fraction.is_none();
    let train_names = plan.data.train_names();
    let valid_names = plan.data.valid.as_ref().map_or_else(|| train_names.clone(), Paths::to_string);
    let splits = [(train_names, &train, false), (valid_names, &valid, may_lack_valid)];
    let empty = splits.into_iter().filter(|(_, set, may_be)| set.sequences.is_empty() && !may_be);
    let errors = empty.map(|(names, set, _)| nothing_trained(names, set, limit)).collect();
    Error::none_of(errors, (train, valid))
}

/// Encodes the sample prompts, each of which the model must have room for.
fn encode_prompts(plan: &Plan, base: &OpenBase, form: PromptForm) -> Result<Vec<Vec<u32>>> {
    let positions = base.files.config().max_positions;
    let encoded = plan.sample.prompts.iter().enumerate().map(|(index, prompt)| {
        let ids = form.encode(&base.encoder, prompt);
        let checked = ids.and_then(|ids| check_prompt(&ids, positions).map(|()| ids));
        checked.map_err(|error| error.within(format_args!("sample.prompts: prompt {}", index + 1)))
    });
    encoded.collect()
}

/// Files of which not one example is left.
fn nothing_trained(names: String, set: &EncodedSet, limit: usize) -> Error {
    let (long, untrained) = (set.dropped_long, set.dropped_untrained);
    let message =
        format!("no example is left: {long} have more than {limit} tokens, in {untrained} nothing is trained");
    let error = Error::input(names, message);
    match long {
        0 => error.hint("loss is taken on completions, answers and the turns of the role `assistant`: are there any?"),
        _ => error.hint("raise `data.max_seq_tokens`, up to the positions of the model, or cut with `data.overlong`"),
    }
}

/// The examples that do not go the way of the first, through the chat template or bare, in words.
fn mixed_shapes(rows: &[Row]) -> Option<String> {
    let first = rows.first()?.example.plain().format();
    let is_other = |row: &&Row| row.example.plain().format().uses_template() != first.uses_template();
    let others = rows.iter().filter(is_other).count();
    let are = if others == 1 { "is" } else { "are" };
    (others > 0).then(|| {
        let others = counted(others, "example");
        format!("train: {others} {are} not read as `{first}`, as the first is, whose form the prompts of samples get")
    })
}

/// Shortens a warm-up that is longer than the run, so that the rate reaches its peak at the last step; says so.
fn shorten_warmup(plan: &mut Plan, total_steps: u64) -> Option<String> {
    let asked = plan.train.warmup_steps;
    if asked <= total_steps {
        return None;
    }
    plan.train.warmup_steps = total_steps - 1;
    Some(format!(
        "train.warmup_steps is {asked}, and the run has {}: shortened to {}",
        counted(total_steps, "step"),
        plan.train.warmup_steps
    ))
}
