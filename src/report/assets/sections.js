// The sections of one run. Each function returns elements, or nothing where the run has nothing of the kind.

const column = (lines, key) => lines.filter((line) => key in line).map((line) => [line.step, line[key]]);
const stepsOf = (run) => run.metrics.filter((line) => "learning_rate" in line);
const evaluationsOf = (run) => run.metrics.filter((line) => "valid_loss" in line);
/// The timing of each step, the last one where a step was made again.
const timingsOf = (run) => [...new Map(run.timings.map((line) => [line.step, line])).values()].sort((a, b) => a.step - b.step);
const outcomeOf = (run) => run.record?.outcome ?? {};
const VERDICTS = { improved: "good", worse: "bad", "no evidence": "open" };
const MARKS = { improved: "↓ improved", worse: "↑ worse", "no evidence": "≈ no evidence" };

/// A line that says why a part is not there.
const leftOut = (run, key, otherwise) => element("p", { class: "absent" }, "Not in this report: " + (run.details?.left_out?.[key] ?? otherwise) + ".");
const IS_LATER = "it is measured at the end of a run";

function hero(run) {
  const { plan, base, started } = run.record ?? {};
  const facts = [
    // Of a path the last part: the whole one stands below.
    base?.name && String(base.name).split(/[\\/]/).pop(), plan && `rank ${plan.adapter?.rank}, alpha ${plan.adapter?.alpha}`, plan?.train?.objective && plan.train.objective !== "sft" ? plan.train.objective : "",
    plan?.base?.quant && plan.base.quant !== "none" ? plan.base.quant : plan?.base?.compute, started && moment(started),
  ].filter(Boolean);
  const kind = VERDICTS[run.sentence.verdict] ?? "";
  const states = { failed: "bad", "broken off": "bad", training: "busy", measuring: "busy" };
  return element("header", { class: "hero " + kind },
    element("p", { class: "kicker" }, "burnish · report of a run"),
    element("h1", {}, run.name, " ", element("span", { class: "pill " + (states[run.state] ?? "") }, run.state)),
    element("p", { class: "sentence" }, run.sentence.text),
    intervals(run), element("p", { class: "facts" }, facts.map((fact) => element("span", {}, String(fact)))));
}

/// The differences of the losses with their intervals, beside zero.
function intervals(run) {
  const outcome = outcomeOf(run);
  const sets = ["test", "validation", "guard"].filter((name) => outcome[name]).map((name) => [name, outcome[name]]);
  if (!sets.length) return "";
  const ends = sets.flatMap(([, set]) => [set.low, set.high, 0]);
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  const room = (high - low || 1) * 0.12;
  [low, high] = [low - room, high + room];
  const x = (value) => `${(100 * (value - low)) / (high - low)}%`;
  return element("div", { class: "intervals" }, sets.map(([name, set]) => {
    const said = `${name}: ${signed(set.difference)}, 95% interval ${signed(set.low)} to ${signed(set.high)}, ${set.verdict}`;
    return element("div", { class: "interval" }, element("span", { class: "name" }, name),
      drawn("svg", { role: "img", "aria-label": said, height: 34 },
        drawn("line", { class: "zero", x1: x(0), x2: x(0), y1: 2, y2: 32 }),
        drawn("line", { class: "span " + VERDICTS[set.verdict], x1: x(set.low), x2: x(set.high), y1: 17, y2: 17 }),
        drawn("circle", { class: "mean " + VERDICTS[set.verdict], cx: x(set.difference), cy: 17, r: 6 })),
      element("span", { class: "value" }, element("b", {}, signed(set.difference)), ` (${signed(set.low)} to ${signed(set.high)})`,
        element("span", { class: "pill " + VERDICTS[set.verdict] }, MARKS[set.verdict] ?? set.verdict)));
  }), element("p", { class: "note" }, "Difference of the mean loss, adapter less base; the line is no difference, further left is better."));
}

function tiles(run) {
  const outcome = outcomeOf(run);
  const validation = outcome.validation;
  const timings = timingsOf(run);
  const evaluations = evaluationsOf(run);
  const tile = (name, value, note) => element("div", { class: "tile" }, element("dt", {}, name), element("dd", {}, value, note ? element("small", {}, note) : ""));
  const all = [];
  if (validation) {
    all.push(tile("Validation loss", `${fixed(validation.loss_before, 3)} → ${fixed(validation.loss_after, 3)}`, `${signed((100 * validation.difference) / validation.loss_before, 1)}%`));
    if (isNumber(validation.token_accuracy_after)) all.push(tile("Token accuracy", `${percent(validation.token_accuracy_before)} → ${percent(validation.token_accuracy_after)}`, counted(validation.tokens, "token")));
    const labelled = validation.classes?.accuracy;
    if (labelled) all.push(tile("Accuracy", `${percent(labelled.before)} → ${percent(labelled.after)}`, `95% interval ${signed(100 * labelled.low, 1)}% to ${signed(100 * labelled.high, 1)}%`));
    if (isNumber(validation.perplexity_after)) all.push(tile("Perplexity", `${short(validation.perplexity_before)} → ${short(validation.perplexity_after)}`, counted(validation.examples, "example")));
    if (validation.preferences) Object.entries(validation.preferences).filter(([, value]) => isNumber(value)).slice(0, 3).forEach(([name, value]) => all.push(tile(name.replaceAll("_", " "), short(value))));
  } else if (evaluations.length) {
    all.push(tile("Validation loss", `${fixed(evaluations[0].valid_loss, 3)} → ${fixed(Math.min(...evaluations.map((one) => one.valid_loss).filter(isNumber)), 3)}`, "so far"));
  }
  const steps = stepsOf(run);
  const last = steps.length ? steps[steps.length - 1].step : 0;
  all.push(tile("Steps", whole(outcome.steps ?? last), isNumber(outcome.best_step) ? "best at " + whole(outcome.best_step) : ""));
  const seconds = timings.reduce((sum, line) => sum + line.seconds, 0);
  const tokens = timings.reduce((sum, line) => sum + line.tokens, 0);
  if (seconds) all.push(tile("Training", duration(seconds), short(tokens / seconds) + " tokens/s"));
  const peak = outcome.peak_bytes ?? timings.reduce((most, line) => Math.max(most, line.peak_bytes ?? 0), 0);
  const planned = outcome.planned_bytes ?? run.record?.planned_bytes;
  if (peak) all.push(tile("Peak memory", bytes(peak), planned ? "planned " + bytes(planned) : ""));
  return element("dl", { class: "tiles" }, all);
}

/// The charts of runs; several lie over one another.
function curves(runs) {
  const group = new Group();
  group.range = curves.range ?? null;
  const isOne = runs.length === 1;
  const each = (make) => runs.flatMap((run, index) => make(run, isOne ? undefined : index));
  const named = (run, name) => (isOne ? name : run.name);
  const colour = (index, otherwise) => (index === undefined ? otherwise : index % 8);
  const training = each((run, index) => {
    const points = column(stepsOf(run), "loss");
    return [
      { name: named(run, "training"), points, colour: colour(index, 1), faint: true, unnamed: !isOne },
      { name: named(run, "training, smoothed"), points: smoothed(points), colour: colour(index, 1) },
    ];
  });
  const validation = each((run, index) => [{ name: named(run, "validation"), points: column(evaluationsOf(run), "valid_loss"), colour: colour(index, 0), dots: true }]);
  const of = (lines, key) => each((run, index) => [{ name: named(run, key), points: column(lines(run), key), colour: colour(index, 0) }]);
  const evaluated = (key, name) => each((run, index) => [{ name: named(run, name), points: column(evaluationsOf(run), key), colour: colour(index, 2), dots: true }]);
  const rewards = each((run, index) => [{ name: named(run, "reward accuracy"), points: column(stepsOf(run), "reward_accuracy"), colour: colour(index, 2) }]);
  const memory = each((run, index) => {
    const timings = timingsOf(run);
    const planned = outcomeOf(run).planned_bytes ?? run.record?.planned_bytes;
    const ends = timings.length ? [timings[0].step, timings[timings.length - 1].step] : [];
    return [
      { name: named(run, "measured"), points: column(timings, "peak_bytes"), colour: colour(index, 0) },
      { name: named(run, "planned"), points: planned ? ends.map((step) => [step, planned]) : [], colour: colour(index, 4), dashed: true, unnamed: !isOne },
    ];
  });
  const charts = isOne
    ? [new Chart({ title: "Loss", note: "Mean loss over the trained tokens, in nats.", series: [...training, ...validation], group })]
    : [new Chart({ title: "Validation loss", series: validation, group }), new Chart({ title: "Training loss", note: "Smoothed; the faint lines are the steps.", series: training, group })];
  charts.push(
    new Chart({ title: "Token accuracy", note: "Share of the validation tokens that the model finds likeliest.", series: evaluated("valid_token_accuracy", "accuracy"), group, format: (value) => percent(value) }),
    new Chart({ title: "Accuracy", note: "Share of the validation examples that get their label.", series: evaluated("valid_accuracy", "accuracy"), group, format: (value) => percent(value) }),
    new Chart({ title: "Macro F1", note: "Mean over the labels.", series: evaluated("valid_macro_f1", "macro F1"), group, format: (value) => percent(value) }),
    new Chart({ title: "Exact match", note: "Share of the answered validation prompts.", series: evaluated("valid_exact_match", "exact match"), group, format: (value) => percent(value) }),
    new Chart({ title: "Reward accuracy", series: rewards, group, format: (value) => percent(value) }),
    new Chart({ title: "Learning rate", series: of(stepsOf, "learning_rate"), group, fromZero: true }),
    new Chart({ title: "Norm of the gradient", series: of(stepsOf, "grad_norm"), group, fromZero: true }),
    new Chart({ title: "Tokens a second", series: of(timingsOf, "tokens_per_second"), group, fromZero: true }),
    new Chart({ title: "Memory", note: "Peak of resident memory so far.", series: memory, group, fromZero: true, format: bytes }),
  );
  const shown = charts.filter((chart) => chart.series.length);
  group.charts = shown;
  if (!shown.length) return [element("p", { class: "absent" }, "Not in this report: there is no line of metrics yet.")];
  const skipped = runs.flatMap((run) => stepsOf(run).filter((line) => line.skipped));
  return [
    element("p", { class: "note" }, "Point at a chart to read it off, drag to zoom, double-click for the whole run. With the keyboard: arrows, + and −, 0."),
    skipped.length ? element("p", { class: "warning" }, `${counted(skipped.length, "step")} changed nothing: loss or gradient was not finite.`) : "",
    element("div", { class: "charts" }, shown.map((chart) => chart.node)),
  ];
}

const answerText = (parts, name) => element("p", { class: "text" }, marked(parts, name));

/// The pictures of an example or a sample, as far as the report has them.
function thumbnails(run, keys) {
  if (!Array.isArray(keys) || !keys.length) return "";
  const known = keys.map((key) => run.details?.pictures?.[key]);
  if (known.every((picture) => !picture)) return element("p", { class: "note" }, counted(keys.length, "picture") + ", not in this report.");
  return element("p", { class: "pictures" }, known.filter(Boolean).map(({ name, png }) => typeof png === "string"
    ? element("img", { src: "data:image/png;base64," + png, alt: "Picture " + name, title: name })
    : element("span", { class: "note" }, "Picture " + name)));
}

function samples(run) {
  const byPrompt = new Map();
  run.samples.forEach((line) => {
    const key = JSON.stringify([line.prompt, line.expected, line.pictures]);
    if (!byPrompt.has(key)) byPrompt.set(key, []);
    byPrompt.get(key).push(line);
  });
  const best = outcomeOf(run).best_step;
  const cards = [...byPrompt.values()].map((lines) => {
    const [first, last] = [lines[0], lines.find((line) => line.step === best) ?? lines[lines.length - 1]];
    const [before, after] = difference(first.answer, last.answer);
    return element("article", { class: "card sample" }, element("h3", {}, "Prompt"), thumbnails(run, first.pictures), element("p", { class: "text prompt" }, first.prompt),
      first.expected ? [element("h3", {}, "Expected"), element("p", { class: "text" }, first.expected)] : "",
      element("div", { class: "pair" },
        element("section", {}, element("h3", {}, "Step " + first.step), answerText(before, "del")),
        first === last ? "" : element("section", {}, element("h3", {}, "Step " + last.step + (last.step === best ? ", the best" : "")), answerText(after, "ins"))),
      lines.length > 2 ? folded(`All ${lines.length} evaluations`, () => element("ol", { class: "steps" }, lines.map((line, index) => element("li", {},
        element("span", { class: "step" }, "Step " + line.step + (line.finish === "time" ? ", cut for time" : "")),
        answerText(index ? difference(lines[index - 1].answer, line.answer)[1] : [[false, line.answer]], "ins"))))) : "");
  });
  const own = (outcomeOf(run).samples ?? []).map((sample) => {
    const [before, after] = difference(sample.before, sample.after);
    return element("article", { class: "card sample" }, element("h3", {}, "Your prompt"), element("p", { class: "text prompt" }, sample.prompt),
      element("div", { class: "pair" }, element("section", {}, element("h3", {}, "Before"), answerText(before, "del")), element("section", {}, element("h3", {}, "After"), answerText(after, "ins"))));
  });
  if (!cards.length && !own.length) return [element("p", { class: "absent" }, "Not in this report: no prompt was answered (`sample.valid_prompts`, `sample.time_share`).")];
  return [element("p", { class: "note" }, "Greedy answers. ", element("del", {}, "Marked so"), " are words that are gone, ", element("ins", {}, "marked so"), " words that came."), ...own, ...cards];
}


function data(run) {
  const lengths = run.details?.lengths ?? [];
  const names = { train: "Training examples", valid: "Validation examples" };
  const histograms = lengths.map((set) => {
    const most = Math.max(...set.bars);
    const [width, height, left] = [100, 120, 0];
    const bar = width / set.bars.length;
    const range = (index) => `${index * set.bar_tokens + 1} to ${(index + 1) * set.bar_tokens}`;
    const said = `${names[set.set]}: ${set.examples}, the middle one has ${set.median} tokens, the longest ${set.longest}`;
    return element("figure", { class: "chart" }, element("figcaption", {}, element("h3", {}, names[set.set])),
      element("p", { class: "readout" }, element("span", {}, counted(set.examples, "example")), element("span", {}, "median ", element("b", {}, whole(set.median))), element("span", {}, "longest ", element("b", {}, whole(set.longest))), element("span", {}, "limit ", element("b", {}, whole(set.max_seq_tokens)))),
      drawn("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
        set.bars.map((count, index) => drawn("rect", { x: left + index * bar + bar * 0.08, width: bar * 0.84, y: height - (count / most) * (height - 4), height: (count / most) * (height - 4) }, drawn("title", {}, `${range(index)} tokens: ${counted(count, "example")}`)))),
      element("p", { class: "ends", "aria-hidden": "true" }, element("span", {}, "1 token"), element("span", {}, whole(set.longest) + " tokens")),
      set.dropped_long || set.truncated ? element("p", { class: "note" }, `${whole(set.dropped_long)} left out as too long, ${whole(set.truncated)} cut.`) : "",
      folded("Values as a table", () => table(names[set.set] + " by length", ["tokens", "examples"], set.bars.map((count, index) => [range(index), whole(count)]), "figures")));
  });
  const examples = (run.details?.rendered ?? []).map((example, index) => {
    const show = () => [
      thumbnails(run, example.pictures),
      element("p", { class: "tokens text", tabindex: 0, role: "region", "aria-label": "Tokens of " + example.place }, example.tokens.map((token, place) => element(example.trained[place] ? "mark" : "span", {}, visible(token)))),
      example.cut ? element("p", { class: "note" }, counted(example.cut, "more token")) : ""];
    const trained = example.trained.filter(Boolean).length;
    const tokens = example.count ?? example.tokens.length + example.cut;
    const title = `${example.place}: ${counted(tokens, "token")}, ${whole(trained)}${example.cut ? " of the first " + whole(tokens - example.cut) : ""} trained`;
    return index === 0 ? element("div", { class: "card" }, element("h3", {}, title), show()) : folded(title, show);
  });
  if (!histograms.length && !examples.length) return [leftOut(run, "lengths", "report.json has no lengths")];
  return [element("div", { class: "charts" }, histograms), examples.length ? element("h3", { class: "group" }, "Examples as the model sees them") : "",
    examples.length ? element("p", { class: "note" }, "Loss is taken on ", element("mark", {}, "marked tokens"), " and on no others.") : "", ...examples];
}
