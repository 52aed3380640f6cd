// The page of a sweep: its trials, the best first, each setting against the objective, and the curves of the best.

const STATES = { finished: "good", stopped: "", failed: "bad", paused: "busy", waiting: "busy" };
const written = (value) => (value === undefined || value === null ? "–" : typeof value === "string" ? value : JSON.stringify(value));

/// The place of the values of a setting on an axis from 0 to 1, and the marks of that axis.
function axisOf(values) {
  const numbers = values.every(isNumber);
  const distinct = [...new Map(values.map((value) => [written(value), value])).values()];
  if (numbers) distinct.sort((a, b) => a - b);
  const [low, high] = [distinct[0], distinct[distinct.length - 1]];
  if (!numbers || distinct.length < 2) {
    const place = (value) => (distinct.findIndex((one) => written(one) === written(value)) + 0.5) / distinct.length;
    return { place, marks: distinct };
  }
  // Values that lie orders of magnitude apart stand by their logarithms.
  const scale = low > 0 && high / low >= 20 ? Math.log : (value) => value;
  const place = (value) => 0.04 + (0.92 * (scale(value) - scale(low))) / (scale(high) - scale(low));
  return { place, marks: distinct.length <= 6 ? distinct : [low, distinct[Math.floor(distinct.length / 2)], high] };
}

/// A setting against the objective, a dot for each trial.
function scatter(key, sweep, show) {
  const trials = sweep.trials.filter((trial) => isNumber(trial.score));
  const [width, height, left, right, top, bottom] = [460, 230, 64, 14, 12, 34];
  const scores = trials.map((trial) => trial.score);
  let [low, high] = [Math.min(...scores), Math.max(...scores)];
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  const room = (high - low) * 0.06;
  [low, high] = [low - room, high + room];
  const axis = axisOf(trials.map((trial) => trial.values[key]));
  const x = (value) => left + axis.place(value) * (width - left - right);
  const y = (score) => top + (1 - (score - low) / (high - low)) * (height - top - bottom);
  const lines = ticks(low, high, 4).map((mark) => [
    drawn("line", { x1: left, x2: width - right, y1: y(mark), y2: y(mark) }),
    drawn("text", { x: left - 8, y: y(mark) + 4, "text-anchor": "end" }, show(mark))]);
  const marks = axis.marks.map((value) => drawn("text", { x: x(value), y: height - 10, "text-anchor": "middle" }, isNumber(value) ? short(value) : written(value).slice(0, 18)));
  // The best lies above the others.
  const dots = trials.map((trial, index) => drawn("circle", {
    class: `dot ${index === 0 ? "c2" : trial.state === "finished" ? "c0" : "open c4"}`, cx: x(trial.values[key]), cy: y(trial.score), r: index === 0 ? 7 : 5,
  }, drawn("title", {}, `${trial.name}, ${trial.state}: ${written(trial.values[key])}, ${show(trial.score)}`))).reverse();
  const said = `${key} against ${sweep.objective}, ${counted(trials.length, "trial")}; the best has ${written(trials[0]?.values[key])}. The table of trials has the values.`;
  return element("figure", { class: "chart" }, element("figcaption", {}, element("h3", {}, key)),
    drawn("svg", { class: "scatter", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said }, drawn("g", { class: "axis" }, lines, marks), dots));
}

function sweepOf(all) {
  const { sweep, runs } = all;
  const show = (value) => (sweep.is_share ? percent(value) : sweep.objective === "loss" ? fixed(value) : short(value));
  const under = (text, more) => element("span", {}, text, more ? element("small", {}, more) : "");
  const isLoss = sweep.objective === "loss";
  const rows = sweep.trials.map((trial) => {
    const name = trial.steps ? element("a", { href: encodeURIComponent(trial.name) + "/report.html" }, trial.name) : trial.name;
    const state = element("span", {}, element("span", { class: "pill " + (STATES[trial.state] ?? "") }, trial.state), trial.error ? element("small", {}, trial.error) : "");
    const loss = under(fixed(trial.loss), isNumber(trial.loss_before) ? "from " + fixed(trial.loss_before) : "");
    return [name, state, ...(isLoss ? [] : [show(trial.score)]), loss, ...sweep.keys.map((key) => written(trial.values[key])),
      under(`${whole(trial.steps)} of ${whole(trial.total_steps)}`, trial.best_step === null ? "" : "best at " + whole(trial.best_step)), duration(trial.seconds)];
  });
  const names = ["trial", "state", ...(isLoss ? [] : [sweep.objective]), "loss", ...sweep.keys, "steps", "training"];
  const measured = sweep.trials.some((trial) => isNumber(trial.score));
  const settings = () => (measured ? [
    element("p", { class: "note" }, `A dot is a trial: green the best, full at its end, empty where it stopped or goes on. ${sweep.higher_is_better ? "Higher" : "Lower"} is better.`),
    element("div", { class: "charts" }, sweep.keys.map((key) => scatter(key, sweep, show)))] : [element("p", { class: "absent" }, "No trial was measured yet.")]);
  return {
    head: element("header", { class: "hero" }, element("p", { class: "kicker" }, "burnish · sweep"), element("h1", {}, sweep.name), element("p", { class: "sentence" }, sweep.sentence)),
    sections: [
      ["trials", "Trials", () => [element("p", { class: "note" }, "The best first: those at their end, then those that came furthest. Figures are those of the best evaluation of each."), table("Trials", names, rows, "figures wide")], sweep.trials],
      ["settings", "Settings against the objective", settings, sweep.trials],
      ["curves", "Curves", () => [sweep.trials.length > runs.length ? element("p", { class: "note" }, `Those of the ${whole(runs.length)} best trials that have begun.`) : "", ...curves(runs)].filter((one) => one !== ""), curvesKey(runs)],
    ],
  };
}
