// The live page: the list of runs, those that are chosen, and what is new in them.

function live() {
  const list = element("ul", {});
  const state = element("p", { class: "note", role: "status" }, "connecting");
  at("live").append(element("h3", {}, "Runs"), state, list);
  const chosen = () => new URLSearchParams(location.search).getAll("run");
  let stream = null, drawn = "", waiting = null;

  const get = async (path) => {
    const response = await fetch(path);
    if (!response.ok) throw new Error("the server answered " + response.status);
    return response.json();
  };

  /// Shows the chosen runs by their files as they are now. Where people are, stays.
  async function load() {
    waiting = null;
    const names = chosen();
    const all = await get("/api/data?" + new URLSearchParams(names.map((name) => ["run", name])));
    const [left, top] = [scrollX, scrollY];
    if (all.runs.length) show(all, true);
    else {
      at("links").replaceChildren();
      at("main").replaceChildren(element("header", { class: "hero" }, element("p", { class: "kicker" }, "burnish"), element("h1", {}, "No run yet"), element("p", { class: "sentence" }, "A run appears here once it begins.")));
    }
    scrollTo({ left, top, behavior: "instant" });
    drawn = names.join("\n");
  }

  const later = () => { waiting ??= setTimeout(() => load().catch(failed), drawn === chosen().join("\n") ? 1000 : 0); };
  const failed = (error) => { state.textContent = error.message; };

  function choose() {
    const names = [...list.querySelectorAll("input:checked")].map((box) => box.value);
    history.replaceState(null, "", "?" + new URLSearchParams(names.map((name) => ["run", name])));
    later();
  }

  function listed(runs) {
    const names = new Set(chosen());
    const kept = document.activeElement?.value;
    list.replaceChildren(...runs.map((run) => element("li", {}, element("label", {},
      element("input", { type: "checkbox", value: run.name, checked: names.has(run.name), change: choose }),
      element("span", {}, run.name, element("br"), element("small", { class: "note" }, run.state + (isNumber(run.loss) ? ", loss " + fixed(run.loss) : "")))))));
    if (kept) list.querySelector(`input[value="${CSS.escape(kept)}"]`)?.focus();
    state.textContent = counted(runs.length, "run") + ", the best first";
  }

  function listen() {
    stream = new EventSource("/api/events");
    stream.addEventListener("runs", (event) => {
      const runs = JSON.parse(event.data);
      if (!chosen().length && runs.length) {
        const newest = runs.reduce((best, run) => ((run.started ?? "") > (best.started ?? "") ? run : best));
        history.replaceState(null, "", "?" + new URLSearchParams([["run", newest.name]]));
      }
      listed(runs);
      const key = JSON.stringify(runs.filter((run) => chosen().includes(run.name)).map((run) => [run.name, run.stamp]));
      if (key !== listen.key) later();
      listen.key = key;
    });
    stream.addEventListener("error", () => { state.textContent = "the server does not answer"; });
  }
  listen();
}
