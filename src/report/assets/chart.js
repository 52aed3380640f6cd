// Line charts: read off with the pointer or the arrow keys, zoomed by dragging or by + and −. Charts of a group move together.

const MARGIN = { left: 58, right: 14, top: 12, bottom: 28 };

/// What charts share: the shown range of steps, and the step that is read off.
class Group {
  constructor() { this.range = null; this.step = null; this.charts = []; }
  set(changes) {
    Object.assign(this, changes);
    // A page that is made anew keeps the range.
    curves.range = this.range;
    this.charts.forEach((chart) => chart.draw());
  }
}

/// Values for the marks of an axis, about `count` of them.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const marks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) marks.push(Number((index * step).toPrecision(12)));
  return marks;
}

/// The index of the point that is nearest to a step.
function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - points[low - 1][0] <= points[low][0] - step ? low - 1 : low;
}

/// The points of a range, of a crowd only the lowest and the highest of each column.
function thinned(points, [from, to], columns) {
  const shown = points.filter((point) => point[0] >= from && point[0] <= to && isNumber(point[1]));
  if (shown.length <= 2 * columns) return shown;
  const kept = [];
  for (let column = 0, index = 0; column < columns; column += 1) {
    const end = Math.floor(((column + 1) * shown.length) / columns);
    const part = shown.slice(index, end);
    index = end;
    const ends = part.reduce(([low, high], point) => [point[1] < low[1] ? point : low, point[1] > high[1] ? point : high], [part[0], part[0]]);
    kept.push(...(ends[0][0] <= ends[1][0] ? ends : [ends[1], ends[0]]));
  }
  return kept;
}

/// A mean that forgets, for noisy curves.
function smoothed(points) {
  const span = Math.max(1, Math.min(100, points.length / 20));
  const weight = 1 - 2 / (span + 1);
  let [sum, total] = [0, 0];
  return points.filter((point) => isNumber(point[1])).map(([step, value]) => {
    [sum, total] = [weight * sum + value, weight * total + 1];
    return [step, sum / total];
  });
}

/// A chart of `series`: `{ name, points, colour, faint, dots, dashed, noted }`.
class Chart {
  constructor({ title, note, series, format = short, group, fromZero = false }) {
    Object.assign(this, { title, series: series.filter((one) => one.points.some((point) => isNumber(point[1]))), format, group, fromZero });
    this.readout = element("p", { class: "readout" });
    this.live = element("p", { class: "unseen", role: "status" });
    this.reset = element("button", { type: "button", class: "reset", hidden: true, click: () => group.set({ range: null }) }, "Whole run");
    const names = this.series.filter((one) => !one.unnamed).map((one) => one.name).join(", ");
    this.svg = drawn("svg", {
      class: "plot", tabindex: 0, role: "application", "aria-roledescription": "chart",
      "aria-label": `${title}: ${names}. Arrow keys read values off, plus and minus zoom, 0 shows the whole run.`,
      pointermove: (event) => this.point(event), pointerleave: () => this.leave(), pointerdown: (event) => this.press(event),
      pointerup: (event) => this.release(event), dblclick: () => group.set({ range: null }), keydown: (event) => this.key(event),
    });
    const legend = this.series.length > 1 ? element("ul", { class: "legend" }, this.series.filter((one) => !one.unnamed).map((one) =>
      element("li", {}, drawn("svg", { class: "swatch", width: 22, height: 10, "aria-hidden": "true" }, this.stroke(one, "M1 5H21")), one.name))) : "";
    this.node = element("figure", { class: "chart" },
      element("figcaption", {}, element("h3", {}, title), this.reset), note ? element("p", { class: "note" }, note) : "",
      legend, this.readout, this.svg, this.live, folded("Values as a table", () => this.table()));
    group.charts.push(this);
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  stroke(one, path) {
    return drawn("path", { d: path, class: `line c${one.colour}${one.faint ? " faint" : ""}${one.dashed ? " dashed" : ""}` });
  }

  /// The whole range of steps of the group.
  get whole() {
    const all = this.group.charts.flatMap((chart) => chart.series.flatMap((one) => [one.points[0], one.points[one.points.length - 1]]));
    const steps = all.filter(Boolean).map((point) => point[0]);
    const [low, high] = [Math.min(...steps), Math.max(...steps)];
    return low < high ? [low, high] : [low - 1, low + 1];
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !this.series.length) return;
    const range = this.group.range ?? this.whole;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const lines = this.series.map((one) => thinned(one.points, range, Math.max(50, Math.round(inner.width))));
    const values = lines.flat().map((point) => point[1]);
    let low = this.fromZero ? 0 : values.reduce((least, value) => Math.min(least, value), Infinity);
    let high = values.reduce((most, value) => Math.max(most, value), -Infinity);
    if (!Number.isFinite(high)) [low, high] = [0, 1];
    if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    const room = (high - low) * 0.05;
    [low, high] = [this.fromZero ? 0 : low - room, high + room];
    const x = (step) => MARGIN.left + ((step - range[0]) / (range[1] - range[0])) * inner.width;
    const y = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * inner.height;
    Object.assign(this, { x, y, range, inner });
    const axis = drawn("g", { class: "axis", "aria-hidden": "true" });
    // Bytes are counted by powers of 1,024.
    const unit = this.format === bytes && high >= 1024 ? 1024 ** Math.floor(Math.log(high) / Math.log(1024)) : 1;
    for (const mark of ticks(low / unit, high / unit, Math.max(2, Math.round(inner.height / 45)))) {
      const value = mark * unit;
      axis.append(drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        drawn("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.format(value)));
    }
    for (const step of ticks(range[0], range[1], Math.max(2, Math.round(inner.width / 90)))) {
      if (Number.isInteger(step)) axis.append(drawn("text", { x: x(step), y: height - 8, "text-anchor": "middle" }, whole(step)));
    }
    const plotted = drawn("g", {});
    this.series.forEach((one, index) => {
      const points = lines[index];
      plotted.append(this.stroke(one, points.map((point, place) => `${place ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("")));
      if (one.dots && points.length <= 80) points.forEach((point) => plotted.append(drawn("circle", { class: `dot c${one.colour}`, cx: x(point[0]), cy: y(point[1]), r: 3 })));
    });
    this.svg.replaceChildren(axis, plotted);
    if (this.pressed !== undefined && this.dragged !== undefined) {
      const [from, to] = [Math.min(this.pressed, this.dragged), Math.max(this.pressed, this.dragged)];
      this.svg.append(drawn("rect", { class: "selected", x: from, y: MARGIN.top, width: to - from, height: inner.height }));
    }
    this.reset.hidden = !this.group.range;
    this.read();
  }

  /// Shows the values at the step of the group, or the last ones.
  read() {
    const { step } = this.group;
    const found = this.series.map((one) => [one, one.points[step === null ? one.points.length - 1 : nearest(one.points, step)]]);
    const shown = found.filter(([one]) => !one.unnamed);
    const place = step === null ? "last" : "step " + whole(step);
    this.readout.replaceChildren(element("span", { class: "place" }, place), ...shown.map(([one, point]) =>
      element("span", {}, this.series.length > 1 ? one.name + " " : "", element("b", {}, this.format(point[1])))));
    if (step === null) return;
    const [from, to] = this.range;
    if (step >= from && step <= to) {
      this.svg.append(drawn("line", { class: "cursor", x1: this.x(step), x2: this.x(step), y1: MARGIN.top, y2: MARGIN.top + this.inner.height }));
    }
    for (const [one, point] of shown) {
      if (point[0] < from || point[0] > to || !isNumber(point[1])) continue;
      this.svg.append(drawn("circle", { class: `dot read c${one.colour}`, cx: this.x(point[0]), cy: this.y(point[1]), r: 4 }));
    }
  }

  /// The steps that can be read off.
  get steps() {
    const densest = this.series.reduce((most, one) => (one.points.length > most.length ? one.points : most), []);
    return densest.map((point) => point[0]);
  }

  stepAt(place) {
    const [from, to] = this.range;
    const wanted = from + ((place - MARGIN.left) / this.inner.width) * (to - from);
    const points = this.steps.map((step) => [step]);
    return points.length ? points[nearest(points, wanted)][0] : null;
  }

  place(event) { return event.clientX - this.svg.getBoundingClientRect().left; }

  point(event) {
    if (!this.range) return;
    if (this.pressed !== undefined) this.dragged = Math.max(MARGIN.left, Math.min(MARGIN.left + this.inner.width, this.place(event)));
    this.group.set({ step: this.stepAt(this.place(event)) });
  }

  leave() { if (this.pressed === undefined) this.group.set({ step: null }); }

  press(event) {
    if (event.button !== 0 || event.pointerType === "touch") return;
    this.svg.setPointerCapture(event.pointerId);
    this.pressed = this.place(event);
  }

  release(event) {
    if (this.pressed === undefined) return;
    const ends = [this.pressed, this.place(event)].sort((a, b) => a - b);
    this.pressed = this.dragged = undefined;
    if (ends[1] - ends[0] > 8) {
      const [from, to] = ends.map((place) => this.stepAt(place));
      if (to > from) { this.group.set({ range: [from, to] }); return; }
    }
    this.draw();
  }

  key(event) {
    const steps = this.steps;
    if (!steps.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const [from, to] = this.group.range ?? this.whole;
    const shown = steps.filter((step) => step >= from && step <= to);
    const now = this.group.step ?? shown[shown.length - 1];
    const index = nearest(shown.map((step) => [step]), now);
    const move = (by) => this.group.set({ step: shown[Math.max(0, Math.min(shown.length - 1, index + by))] });
    const zoom = (factor) => {
      const half = ((to - from) * factor) / 2;
      const [least, most] = this.whole;
      const next = [Math.max(least, now - half), Math.min(most, now + half)];
      if (next[1] - next[0] >= 2) this.group.set({ range: next[0] <= least && next[1] >= most ? null : next, step: now });
    };
    const jump = Math.max(1, Math.round(shown.length / 20));
    const actions = {
      ArrowLeft: () => move(event.shiftKey ? -jump : -1), ArrowRight: () => move(event.shiftKey ? jump : 1),
      Home: () => move(-shown.length), End: () => move(shown.length), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
      0: () => this.group.set({ range: null }), Escape: () => this.group.set({ range: null, step: null }),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
    this.live.textContent = this.readout.innerText.replace(/\s+/g, " ");
  }

  /// The points of a chart as a table, thinned where they are many.
  table() {
    const MOST_ROWS = 1000;
    const columns = this.series.filter((one) => !one.unnamed);
    const byStep = new Map();
    columns.forEach((one, index) => one.points.forEach(([step, value]) => {
      if (!byStep.has(step)) byStep.set(step, columns.map(() => undefined));
      byStep.get(step)[index] = value;
    }));
    const steps = [...byStep.keys()].sort((a, b) => a - b);
    const every = Math.ceil(steps.length / MOST_ROWS);
    const kept = steps.filter((_, index) => index % every === 0 || index === steps.length - 1);
    const caption = this.title + (every > 1 ? `, every ${every}th of ${whole(steps.length)} steps` : "");
    return table(caption, ["step", ...columns.map((one) => one.name)],
      kept.map((step) => [whole(step), ...byStep.get(step).map((value) => (value === undefined ? "" : this.format(value)))]), "figures");
  }
}
