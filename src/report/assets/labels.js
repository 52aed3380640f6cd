// The labels of a classifier: how often each is right, and the label that its texts were given instead.

/// The measures of the labels of a run, on the test examples or else on the validation examples.
function labelsOf(run) {
  const name = ["test", "validation"].find((one) => outcomeOf(run)[one]?.classes?.after);
  return name && { name, ...outcomeOf(run)[name].classes.after };
}

function labels(run) {
  const measured = labelsOf(run);
  const names = measured.labels.map((one) => one.label);
  const spread = (value) => (value ? element("span", {}, percent(value.value), element("small", {}, `${percent(value.low)} to ${percent(value.high)}`)) : "–");
  const rows = measured.labels.map((one) => [one.label, whole(one.examples), spread(one.precision), spread(one.recall), spread(one.f1)]);
  const cells = measured.confusion.map((row, right) => {
    const examples = Math.max(1, row.reduce((sum, count) => sum + count, 0));
    return [names[right], ...row.map((count, given) => {
      const ends = measured.confusion_intervals?.[right]?.[given];
      const cell = element("span", { class: "heat" + (right === given ? " helps" : ""), title: ends && `95% interval ${fixed(ends[0], 0)} to ${fixed(ends[1], 0)}` }, count ? whole(count) : "·");
      cell.style.setProperty("--share", `${Math.round((58 * count) / examples)}%`);
      return cell;
    })];
  });
  return [
    element("p", { class: "note" }, `Over ${counted(measured.examples, measured.name + " example")}, with 95% intervals. Always giving the most frequent label would be right in ${percent(measured.majority_accuracy)}.`),
    table("Each label", ["label", "examples", "precision", "recall", "F1"], rows, "figures"),
    table("Right label (rows) and given label (columns)", ["", ...names], cells, "heats"),
  ];
}
