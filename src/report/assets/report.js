// The rest of the sections, the comparison, and the page itself.

/// Tokens over a colour that says how large their losses are.
function tokens(run) {
  const measured = run.details?.tokens;
  if (!measured || run.details?.left_out?.tokens || !measured.examples[0]?.before.length) return [leftOut(run, "tokens", IS_LATER)];
  const cells = measured.examples.flatMap((example) => example.before.map((before, index) => [before, example.after[index]])).filter(([before]) => isNumber(before));
  const mean = (index) => cells.reduce((sum, cell) => sum + cell[index], 0) / cells.length;
  const better = cells.filter(([before, after]) => after < before).length;
  const sizes = cells.flatMap(([before, after]) => [before, after]).sort((a, b) => a - b);
  const most = Math.max(1, sizes[Math.floor(sizes.length * 0.97)] ?? 1);
  const spans = [];
  const paint = (view) => spans.forEach(([span, before, after]) => {
    const change = after - before;
    const [kind, size] = view === "change" ? [change < 0 ? "less" : "more", Math.abs(change)] : ["loss", view === "before" ? before : after];
    span.className = "token " + kind;
    span.style.setProperty("--share", `${Math.round(62 * Math.min(1, size / (view === "change" ? most / 2 : most)))}%`);
  });
  const cards = measured.examples.map((example) => {
    const text = example.tokens.map((token, index) => {
      const [before, after] = [example.before[index], example.after[index]];
      if (!isNumber(before)) return element("span", { class: "plain" }, visible(token));
      const span = element("span", { title: `loss ${fixed(before, 3)} → ${fixed(after, 3)}` }, visible(token));
      spans.push([span, before, after]);
      return span;
    });
    return element("article", { class: "card" }, element("h3", {}, example.place),
      element("p", { class: "tokens text", tabindex: 0, role: "region", "aria-label": "Tokens of " + example.place }, text),
      folded("Values as a table", () => table("Loss by token, " + example.place, ["token", "before", "after", "change"],
        example.tokens.map((token, index) => [token, example.before[index], example.after[index]]).filter((row) => isNumber(row[1]))
          .map(([token, before, after]) => [element("code", {}, visible(token)), fixed(before, 3), fixed(after, 3), signed(after - before, 3)]), "figures")));
  });
  paint("change");
  const words = `${counted(cells.length, "token")} of ${counted(measured.examples.length, "validation example")}, the mean loss from ${fixed(mean(0), 3)} to ${fixed(mean(1), 3)} with the adapter of step ${measured.after_step}: ${whole(better)} became likelier, ${whole(cells.length - better)} did not.`;
  return [element("p", {}, words),
    element("div", { class: "bar" }, choice("Colour", [["change", "Change"], ["before", "Before"], ["after", "After"]], "change", paint),
      element("p", { class: "key" }, element("span", { class: "token less full" }, "likelier"), element("span", { class: "token more full" }, "less likely"), element("span", { class: "token loss full" }, "high loss"))),
    ...cards];
}

/// A table of layers and modules, its cells over colours. `value(item)` is the number of an item of `items`.
function layerTable(caption, items, value, show, isSigned) {
  const names = [...new Set(items.filter((item) => item.layer !== null).map((item) => item.name))];
  const layers = [...new Set(items.filter((item) => item.layer !== null).map((item) => item.layer))].sort((a, b) => a - b);
  const most = Math.max(...items.map((item) => Math.abs(value(item) ?? 0)), 1e-300);
  const cell = (item) => {
    const span = element("span", { class: "heat" + (isSigned && value(item) > 0 ? " helps" : "") }, item ? show(value(item)) : "");
    if (item) span.style.setProperty("--share", `${Math.round((58 * Math.abs(value(item) ?? 0)) / most)}%`);
    return span;
  };
  const rows = layers.map((layer) => ["layer " + layer, ...names.map((name) => cell(items.find((item) => item.layer === layer && item.name === name)))]);
  items.filter((item) => item.layer === null).forEach((item) => rows.push([item.name, cell(item), ...names.slice(1).map(() => "")]));
  return table(caption, ["", ...names], rows, "heats");
}

function adapterMap(run) {
  const updates = run.details?.adapter;
  if (!updates) return [leftOut(run, "adapter", IS_LATER)];
  const views = {
    share: ["against the weight", (one) => (isNumber(one.weight_norm) && one.weight_norm > 0 ? one.update_norm / one.weight_norm : null), (value) => percent(value, 2)],
    norm: ["norm", (one) => one.update_norm, short], spectral: ["largest direction", (one) => one.spectral_norm, short],
    rank: ["effective rank", (one) => one.effective_rank, (value) => fixed(value, 2)],
  };
  const holder = element("div", {});
  const paint = (view) => {
    const [name, value, show] = views[view];
    holder.replaceChildren(layerTable(`Size of the update, ${name}`, updates, value, show));
  };
  const first = updates.some((one) => isNumber(one.weight_norm)) ? "share" : "norm";
  paint(first);
  const ranked = updates.map((one) => [one, views[first][1](one) ?? 0]).sort((a, b) => b[1] - a[1]);
  const isDora = run.record?.plan?.adapter?.dora;
  return [element("p", {}, `The update ΔW = scale · B · A at ${counted(updates.length, "module")}. It is largest at `, element("code", {}, ranked[0][0].module), ` (${views[first][2](ranked[0][1])}).`),
    element("p", { class: "note" }, "Against the weight: the Frobenius norm of ΔW by that of W. Effective rank: the number of directions that the update uses, from the entropy of its singular values." + (isDora ? " Of DoRA this is the low-rank part, without the magnitudes." : "")),
    choice("Measure", Object.entries(views).map(([key, [name]]) => [key, name]), first, paint), holder];
}

function contributions(run) {
  const measured = run.details?.modules;
  if (!measured) return [leftOut(run, "modules", IS_LATER)];
  const rows = (parts, name) => {
    const most = Math.max(...parts.map((part) => Math.abs(part.loss - measured.loss)), 1e-300);
    return parts.map((part) => {
      const change = part.loss - measured.loss;
      const bar = element("span", { class: "amount" + (change < 0 ? " harms" : "") });
      bar.style.setProperty("--share", `${(100 * Math.abs(change)) / most}%`);
      return [name(part.part), fixed(part.loss), signed(change), bar];
    });
  };
  const names = ["part", "loss without it", "change", ""];
  const made = [element("p", {}, `The mean loss over ${counted(measured.tokens, "token")} of ${counted(measured.examples, "validation example")} is ${fixed(measured.loss)} with the whole adapter. Without the adapter at a part it would be:`),
    element("p", { class: "note" }, "A rise says that the part helps, a fall that the rest does better alone. The examples are few: small changes say nothing."),
    table("Loss without a kind of module", names, rows([...measured.by_name].sort((a, b) => b.loss - a.loss), (part) => part), "figures bars-in")];
  if (measured.by_layer.length) made.push(table("Loss without a layer", names, rows(measured.by_layer, (part) => "layer " + part), "figures bars-in"));
  else made.push(element("p", { class: "absent" }, "By layer: left out, `sample.time_share` left no time for it."));
  if (measured.by_module.length) {
    const items = measured.by_module.map(({ part, loss }) => {
      // The layers of a tower are others than those of the language model.
      const isOfTower = part.includes(".encoder.");
      const layer = isOfTower ? null : part.match(/\.(\d+)\./);
      return { name: isOfTower ? part : part.split(".").pop(), layer: layer ? Number(layer[1]) : null, change: loss - measured.loss };
    });
    made.push(folded("Every module by itself", () => layerTable("Change of the loss without a module", items, (item) => item?.change, (value) => signed(value), true)));
  } else made.push(element("p", { class: "absent" }, "Module by module: left out, `sample.time_share` left no time for it."));
  return made;
}

/// The memory of the training examples, once it was measured.
function memory(run) {
  const measured = run.memorisation;
  if (!measured) return [element("p", { class: "absent" }, "Not measured: `burnish check --memorisation` measures it once a run has ended.")];
  const ends = (one, digits) => `95% interval ${fixed(one.low, digits)} to ${fixed(one.high, digits)}`;
  const made = [];
  const { canaries, membership } = measured;
  if (canaries) {
    const verdict = { true: "They are remembered.", false: "There is no evidence that they are remembered." }[canaries.is_remembered] ?? "They are too few for a verdict.";
    made.push(element("p", {}, `${counted(canaries.inserted.length, "made-up secret")}, ${counted(canaries.repeats, "time")} among the training examples each, have an exposure of ${fixed(canaries.inserted_mean, 2)} bits on average; ${whole(canaries.held_out.length)} that were not among them have ${fixed(canaries.held_out_mean, 2)}. The difference has a ${ends(canaries.difference, 2)}. ${verdict}`),
      element("p", { class: "note" }, `Exposure: how far up the secret stands among ${whole(canaries.alternatives)} others of its form, by its loss. By chance it is ${fixed(canaries.chance, 2)} bits on average, ${fixed(canaries.most, 2)} at most.`),
      folded("Every secret", () => table("Exposure of each secret", ["prompt", "among the examples", "bits"], [...canaries.inserted.map((one) => [one.prompt, "yes", fixed(one.exposure, 2)]), ...canaries.held_out.map((one) => [one.prompt, "no", fixed(one.exposure, 2)])], "figures")));
  }
  if (membership) {
    const verdict = { true: "Losses tell training examples.", false: "There is no evidence that losses tell training examples." }[membership.is_told] ?? "They are too few for a verdict.";
    made.push(element("p", {}, `Losses of ${whole(membership.train_examples)} training and ${whole(membership.valid_examples)} validation examples: the share of pairs in which the training example has the higher score (AUC), 50% by chance. ${verdict}`),
      table("Membership by losses", ["score", "AUC", "95% interval"], [["the loss that the training took away", membership.auc], ["the low loss with the adapter", membership.auc_of_adapter], ["the low loss of the base", membership.auc_of_base]]
        .map(([name, one]) => [name, fixed(one.value, 3), `${fixed(one.low, 3)} to ${fixed(one.high, 3)}`]), "figures"),
      element("p", { class: "note" }, "The base has seen neither: by its loss, the files differ that much in themselves."));
  }
  return made;
}

/// A recipe with its keys and comments told apart.
function recipe(run) {
  if (!run.recipe) return [element("p", { class: "absent" }, "Not in this report: recipe.toml is not there.")];
  const lines = run.recipe.trimEnd().split("\n").flatMap((line) => {
    const key = line.match(/^(\s*[\w."-]+)(\s*=.*)$/);
    const made = /^\s*\[/.test(line) ? element("b", {}, line) : /^\s*#/.test(line) ? element("i", {}, line) : key ? [element("span", { class: "name" }, key[1]), key[2]] : line;
    return [made, "\n"];
  });
  const overrides = run.record?.overrides ?? [];
  return [overrides.length ? element("p", {}, "Set on the command line: ", overrides.map((one) => [element("code", {}, one), " "])) : "", element("pre", { class: "recipe", tabindex: 0, "aria-label": "Recipe" }, lines)];
}

function provenance(run) {
  const record = run.record;
  if (!record) return [element("p", { class: "absent" }, "Not in this report: run.json is not there.")];
  const examples = (set) => set && `${counted(set.examples, "example")}, ${whole(set.tokens)} tokens, ${whole(set.trained_tokens)} trained`;
  const taken = run.details?.seconds;
  const named = (key) => {
    const words = key.replace("burnish.", "").replaceAll("_", " ").replace(" sha256", ", SHA-256");
    return words.charAt(0).toUpperCase() + words.slice(1);
  };
  const rows = [
    ["Started", moment(record.started)], ["Finished", record.finished && moment(record.finished)], ["Resumed", (record.resumed ?? []).map(moment).join(", ")],
    ["Base", record.base?.name], ["Base, SHA-256", record.base?.sha256], ["Training data", examples(record.data?.train)], ["Training data, SHA-256", record.data?.train_sha256],
    ["Validation data", examples(record.data?.valid)], ["Validation data, SHA-256", record.data?.valid_sha256], ["Device", record.device], ["Processor", record.processor],
    ["Instruction set", record.instruction_set], ["Threads", record.threads], ["burnish", record.burnish], ["Program, hash", record.build],
    ...Object.entries(record.provenance ?? {}).filter(([key]) => !["base_sha256", "data_sha256", "valid_sha256", "version", "build", "verdict"].includes(key.replace("burnish.", ""))).map(([key, value]) => [named(key), value]),
    ["Samples and report", taken && `${percent((taken.samples + taken.report) / taken.run)} of the time (${duration(taken.samples)} and ${duration(taken.report)} of ${duration(taken.run)})`],
    ["Command to go on", record.outcome?.resume], ["Error", record.error],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  return [element("dl", { class: "facts-list" }, rows.map(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))])),
    record.memory_plan ? folded("Memory, planned", () => table("Memory by purpose", ["purpose", "bytes"], Object.entries(record.memory_plan).filter(([, value]) => isNumber(value)).map(([name, value]) => [name, bytes(value)]), "figures")) : ""];
}

const usage = (run) => (run.use ? markdown(run.use, 3) : [element("p", { class: "absent" }, "Not in this report: the model card, README.md, is written when a run ends.")]);

const curvesKey = (runs) => runs.map((run) => [run.name, run.state, run.metrics.length, run.timings.length]);

/// The sections of one run: `[id, title, function that makes the elements, data that they depend on]`.
function sectionsOf(run) {
  const { details } = run;
  return [
    ["curves", "Curves", () => curves([run]), curvesKey([run])], ["samples", "Samples", () => samples(run), [run.samples.length, outcomeOf(run).best_step, outcomeOf(run).samples]],
    ...(labelsOf(run) ? [["labels", "Labels", () => labels(run), [labelsOf(run)]]] : []),
    ["tokens", "Tokens", () => tokens(run), [details?.tokens, details?.left_out]], ["adapter", "Adapter", () => adapterMap(run), [details?.adapter, details?.left_out]],
    ["contributions", "What each part contributes", () => contributions(run), [details?.modules, details?.left_out]],
    ["memory", "What it remembers", () => memory(run), [run.memorisation]],
    ["data", "Data", () => data(run), [details?.lengths, details?.rendered]], ["recipe", "Recipe", () => recipe(run), [run.recipe]],
    ["provenance", "Provenance", () => provenance(run), [run.record]], ["use", "Use", () => usage(run), [run.use]],
  ];
}

/// The comparison of several runs.
function comparisonOf(all, live) {
  const { comparison, runs } = all;
  const ordered = comparison.runs.map((row) => runs[row.index]);
  const rows = comparison.runs.map((row) => {
    const paired = row.against.paired;
    const against = paired ? element("span", {}, signed(paired.difference), element("small", {}, `${signed(paired.low)} to ${signed(paired.high)}: ${paired.verdict}`)) : element("small", {}, row.against.not);
    const under = (text, more) => element("span", {}, text, more ? element("small", {}, more) : "");
    const name = live ? element("a", { href: "?" + new URLSearchParams([["run", row.name]]) }, row.name) : row.name;
    return [under(name, row.state), row.verdict ? element("span", { class: "pill " + VERDICTS[row.verdict] }, MARKS[row.verdict]) : "–", under(fixed(row.loss), isNumber(row.loss_before) ? "from " + fixed(row.loss_before) : ""), against,
      under(whole(row.steps), row.best_step === null ? "" : "best at " + whole(row.best_step)), under(short(row.tokens_per_second), duration(row.seconds)), bytes(row.peak_bytes)];
  });
  const first = comparison.runs[0];
  const text = isNumber(first.loss) ? `${first.name} has the lowest validation loss, ${fixed(first.loss)}.` : "No run has a validation loss.";
  const settings = comparison.settings.map((setting) => [element("code", {}, setting.key), ...setting.values.map((value) => (value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value)))]);
  return {
    head: element("header", { class: "hero" }, element("p", { class: "kicker" }, "burnish · comparison"), element("h1", {}, counted(runs.length, "run")), element("p", { class: "sentence" }, text)),
    sections: [
      ["runs", "Runs", () => [element("p", { class: "note" }, "The best first. The interval is that of the difference to the best run of which single examples are known, by a paired bootstrap over the examples that both were measured on."),
        table("Runs", ["run", "verdict", "loss", "against " + (comparison.reference ?? "another"), "steps", "tokens/s", "peak"], rows, "figures wide")], comparison.runs],
      ["curves", "Curves", () => curves(ordered), curvesKey(ordered)],
      ["settings", "Settings that differ", () => (settings.length ? [table("Settings", ["setting", ...ordered.map((run) => run.name)], settings, "wide")] : [element("p", {}, "None.")]), comparison.settings],
    ],
  };
}

/// Puts a page together. Sections whose data is as before stay as they are, and curves that somebody reads off.
function show(all, isLive) {
  const isOne = !all.sweep && all.runs.length === 1;
  const { head, sections } = all.sweep ? sweepOf(all) : isOne ? { head: hero(all.runs[0]), sections: sectionsOf(all.runs[0]) } : comparisonOf(all, isLive);
  const missing = isOne ? all.runs[0].missing : all.runs.flatMap((run) => run.missing.map((text) => run.name + ": " + text));
  const names = JSON.stringify(all.runs.map((run) => run.name));
  const before = new Map([...document.querySelectorAll("main > section")].map((section) => [section.id, section]));
  if (show.names !== names) { before.clear(); curves.range = null; }
  show.names = names;
  const made = sections.map(([id, title, make, on]) => {
    const key = JSON.stringify(on);
    const old = before.get(id);
    if (old && (old.key === key || old.querySelector(".plot:hover, .plot:focus"))) return old;
    const section = element("section", { id, "aria-labelledby": id + "-title" }, element("h2", { id: id + "-title" }, title), make());
    section.key = key;
    return section;
  });
  at("main").replaceChildren(head, ...(isOne ? [tiles(all.runs[0])] : []),
    missing.length ? element("p", { class: "warning" }, "Of this " + (isOne ? "run" : "comparison") + ", files are missing or broken: " + missing.join("; ") + ".") : "",
    ...made, element("footer", {}, all.program));
  at("links").replaceChildren(...sections.map(([id, title]) => element("li", {}, element("a", { href: "#" + id }, title))));
}

function begin() {
  at("side").append(element("p", { class: "brand" }, "burnish"), element("ul", { id: "links" }), element("div", { id: "live" }), themes());
  const all = JSON.parse(at("island").textContent);
  if (all.live) live(); else show(all, false);
}

window.addEventListener("beforeprint", () => document.querySelectorAll("#use details, #recipe details").forEach((one) => { one.open = true; }));
begin();
