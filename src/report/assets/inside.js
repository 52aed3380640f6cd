// The page of a look inside a model: the maps of a layer by head, and the likeliest tokens after every layer, base against adapter.

const ORANGE = [208, 92, 48];
const TEAL = [38, 146, 130];

const state = { head: 0, query: 0, key: 0, view: "base" };

/// The weight with which `query` mixes `key` in a head, in the view that is chosen; 0 for keys that it does not see.
function weight(data, head, query, key, view = state.view) {
  const of = (index) => data.systems[index].maps[head][query][key] ?? 0;
  if (view === "change") return of(1) - of(0);
  return of(view === "base" ? 0 : 1);
}

/// The largest weight of a head in the view, to which its colours are scaled; changes are often small.
function most(data, head) {
  if (state.view !== "change") return 1;
  let found = 1e-9;
  data.tokens.forEach((_, query) => { for (let key = 0; key <= query; key += 1) found = Math.max(found, Math.abs(weight(data, head, query, key))); });
  return found;
}

/// Draws the map of a head: a row for each query, a pixel for each key. The colour is the same in light and dark, its strength is the weight.
function draw(canvas, data, head) {
  const size = data.tokens.length;
  [canvas.width, canvas.height] = [size, size];
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const scale = most(data, head);
  for (let query = 0; query < size; query += 1) {
    for (let key = 0; key <= query; key += 1) {
      const value = weight(data, head, query, key) / scale;
      const [red, green, blue] = value < 0 ? TEAL : ORANGE;
      image.data.set([red, green, blue, Math.round(255 * Math.sqrt(Math.min(1, Math.abs(value))))], 4 * (query * size + key));
    }
  }
  context.putImageData(image, 0, 0);
}

const named = (data, index) => `${index} “${visible(data.tokens[index])}”`;
const shownWeight = (value, view) => (view === "change" ? signed(100 * value, 2) + "%" : percent(value, 2));

/// The tokens as buttons that choose the query, over colours that say how strongly it looks at each of them.
function tokenButtons(data, label, change) {
  // The name has the token's place too: a blank alone is no name.
  const buttons = data.tokens.map((token, index) => element("button", { type: "button", class: "token", "aria-label": named(data, index), click: () => change(index) }, visible(token)));
  const node = element("p", { class: "tokens text", role: "group", "aria-label": label }, buttons);
  return { node, buttons };
}

function begin() {
  at("side").append(element("p", { class: "brand" }, "burnish"), element("ul", { id: "links" }), themes());
  const data = JSON.parse(at("island").textContent);
  const size = data.tokens.length;
  const both = data.systems.length > 1;
  state.query = size - 1;
  const parts = [];
  const paint = () => parts.forEach((part) => part());

  const facts = [`layer ${data.layer} of ${data.layers}`, counted(data.heads, "head"), data.kv_heads === data.heads ? "" : `${data.kv_heads} key and value heads`,
    data.window ? `a window of ${whole(data.window)} positions` : "", counted(size, "token"), both ? "base and adapter" : "base"].filter(Boolean);
  const hero = element("header", { class: "hero" }, element("p", { class: "kicker" }, "burnish · inside a model"), element("h1", {}, String(data.base).split(/[\\/]/).pop()),
    element("p", { class: "sentence" }, data.prompt), element("p", { class: "facts" }, facts.map((fact) => element("span", {}, fact))));

  const views = [["base", "Base"], ...(both ? [["adapter", "With the adapter"], ["change", "Change"]] : [])];
  const switcher = () => (both ? choice("What the colours show", views, state.view, (view) => { state.view = view; paint(); }) : "");
  const heads = Array.from({ length: data.heads }, (_, head) => {
    const canvas = element("canvas", { class: "map", "aria-hidden": "true" });
    const button = element("button", { type: "button", click: () => { state.head = head; paint(); } }, canvas, "Head " + head);
    parts.push(() => { button.setAttribute("aria-pressed", String(state.head === head)); draw(canvas, data, head); });
    return button;
  });

  const large = element("canvas", { class: "map large", tabindex: 0, role: "img", "aria-describedby": "readout" });
  const readout = element("p", { id: "readout", class: "readout", "aria-live": "polite" });
  const move = (query, key) => {
    state.query = Math.max(0, Math.min(size - 1, query));
    state.key = Math.max(0, Math.min(state.query, key));
    paint();
  };
  const placeOf = (event) => {
    const box = large.getBoundingClientRect();
    const index = (value, begin, length) => Math.floor((size * (value - begin)) / length);
    return [index(event.clientY, box.top, box.height), index(event.clientX, box.left, box.width)];
  };
  large.addEventListener("click", (event) => move(...placeOf(event)));
  large.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(state.query + by[0], state.key + by[1]);
  });
  parts.push(() => {
    draw(large, data, state.head);
    large.setAttribute("aria-label", `Map of head ${state.head}: rows are queries, columns are keys`);
    const values = views.map(([view, name]) => element("span", {}, name + " ", element("b", {}, shownWeight(weight(data, state.head, state.query, state.key, view), view))));
    readout.replaceChildren(element("span", {}, `Token ${named(data, state.query)} looks at ${named(data, state.key)}:`), ...values);
  });

  const chosen = tokenButtons(data, "The token that looks", (index) => move(index, state.key));
  parts.push(() => {
    const scale = most(data, state.head);
    chosen.buttons.forEach((button, key) => {
      const value = weight(data, state.head, state.query, key);
      button.className = "token " + (state.view !== "change" ? "loss" : value < 0 ? "less" : "more");
      button.style.setProperty("--share", `${Math.round(75 * Math.sqrt(Math.min(1, Math.abs(value) / scale)))}%`);
      button.setAttribute("aria-pressed", String(key === state.query));
    });
  });
  const values = element("div", {});
  parts.push(() => {
    const rows = Array.from({ length: state.query + 1 }, (_, key) => [named(data, key), ...views.map(([view]) => shownWeight(weight(data, state.head, state.query, key, view), view))]);
    const isOpen = values.firstChild?.open;
    values.replaceChildren(folded(`Where token ${named(data, state.query)} looks in head ${state.head}, as a table`, () => table("Weights", ["token", ...views.map(([, name]) => name)], rows, "figures")));
    if (isOpen) values.firstChild.open = true;
  });

  const sections = [
    ["attention", "Attention", [element("p", { class: "note" }, "Each row of a map is a token that looks, each column a token that it looks at; a row adds up to 100%. The colours of a change are scaled to the largest of its head. Attention says what is mixed, not why: whether a part matters, the loss without it says (“What each part contributes” in the report of a run)."),
      switcher(), element("div", { class: "heads", role: "group", "aria-label": "Heads" }, heads)]],
    ["head", "One head", [element("p", { class: "note" }, "Choose a token: the others are coloured by the weight with which it looks at them. In the map, click or use the arrow keys."), chosen.node, readout, large, values]],
  ];
  if (data.systems[0].lens) {
    const asked = tokenButtons(data, "The token after which the next one is predicted", (index) => move(index, state.key));
    const holder = element("div", {});
    const likely = (list) => element("span", {}, list.map((one) => element("span", { class: "likely" }, element("code", {}, one.token.trim() ? visible(one.token) : visible(one.token).replaceAll(" ", "␣")), ` ${percent(one.probability)}`)));
    parts.push(() => {
      asked.buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === state.query)));
      const rows = data.systems[0].lens.map((layer, index) => [index === 0 ? "embedding" : "layer " + (index - 1), ...data.systems.map((system) => likely(system.lens[index][state.query]))]);
      holder.replaceChildren(table(`The likeliest tokens after token ${named(data, state.query)}`, ["after", "base", ...(both ? ["with the adapter"] : [])], rows));
    });
    sections.push(["lens", "Logit lens", [element("p", { class: "note" }, "The tokens that would follow if the model ended after a layer: its final norm and head over the hidden state. The last row is the model itself."), asked.node, holder]]);
  }
  at("main").append(hero, ...sections.map(([id, title, made]) => element("section", { id, "aria-labelledby": id + "-title" }, element("h2", { id: id + "-title" }, title), made)), element("footer", {}, data.program));
  at("links").append(...sections.map(([id, title]) => element("li", {}, element("a", { href: "#" + id }, title))));
  paint();
}

begin();
