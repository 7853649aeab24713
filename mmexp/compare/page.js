"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const PER_PAGE = 12;
  const SHOWN_RUNS = 6;
  const state = { page: 0, focus: null };

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // One group in front of the others, in every chart and table.
  function focus(group) {
    state.focus = state.focus === group ? null : group;
    for (const node of document.querySelectorAll("[data-g]")) {
      node.classList.toggle("dim", state.focus !== null && node.dataset.g !== state.focus);
    }
    get("reset").hidden = state.focus === null;
  }
  document.addEventListener("click", (event) => {
    const node = event.target.closest("[data-g]");
    if (node) focus(node.dataset.g);
  });
  for (const row of document.querySelectorAll("tr[data-g]")) {
    row.tabIndex = 0;
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") focus(row.dataset.g); });
  }
  get("reset").addEventListener("click", () => focus(state.focus));
  for (const radio of document.querySelectorAll("input[name=axis]")) {
    radio.addEventListener("change", () => { get("curves").className = `by-${radio.value}`; });
  }

  if (!get("benchmark")) return;
  const benchmark = () => data.benchmarks[Number(get("benchmark").value)];
  const runName = (at) => {
    const run = data.runs[at];
    return `${data.groups[run.group].letter}${run.seed === null ? "" : `, seed ${run.seed}`}`;
  };

  function option(select, value, text) {
    const node = make("option", "", text);
    node.value = value;
    select.append(node);
  }

  function fillRuns() {
    const answered = data.runs.map((_, at) => at).filter((at) => benchmark().answers[at]);
    for (const [id, rank] of [["a", 0], ["b", 1]]) {
      const before = get(id).value;
      get(id).replaceChildren();
      for (const at of answered) option(get(id), at, `${runName(at)}: ${data.groups[data.runs[at].group].label}`);
      const groups = [...new Set(answered.map((at) => data.runs[at].group))];
      const other = groups[Math.min(rank, groups.length - 1)];
      const usual = groups.length > 1 ? answered.find((at) => data.runs[at].group === other)
        : answered[Math.min(rank, answered.length - 1)];
      get(id).value = answered.includes(Number(before)) && before !== "" ? before : usual;
    }
  }

  function fillFilter() {
    const before = get("filter").value;
    get("filter").replaceChildren();
    const kinds = benchmark().graded
      ? [["all", "all samples"], ["a", "first better"], ["b", "second better"], ["same", "same score"]]
      : [["all", "all samples"], ["a", "first right, second wrong"], ["b", "first wrong, second right"],
         ["right", "both right"], ["wrong", "both wrong"]];
    for (const [value, text] of kinds) option(get("filter"), value, text);
    if (kinds.some(([value]) => value === before)) get("filter").value = before;
    const types = [...new Set(benchmark().samples.map((sample) => sample.type))].filter(Boolean).sort();
    get("type").replaceChildren();
    option(get("type"), "", "all types");
    for (const type of types) option(get("type"), type, type);
  }

  function passes(at) {
    const bench = benchmark();
    const sample = bench.samples[at];
    const [a, b] = ["a", "b"].map((id) => bench.answers[Number(get(id).value)]);
    const [one, two] = [a.scores[at], b.scores[at]];
    const kind = get("filter").value;
    if (get("type").value && sample.type !== get("type").value) return false;
    if (kind === "a" && !(one > two)) return false;
    if (kind === "b" && !(two > one)) return false;
    if (kind === "same" && one !== two) return false;
    if (kind === "right" && !(one >= 1 && two >= 1)) return false;
    if (kind === "wrong" && !(one < 1 && two < 1)) return false;
    const words = get("text").value.trim().toLowerCase();
    if (!words) return true;
    const all = [sample.id, data.texts[sample.prompt], data.texts[sample.target]];
    for (const answers of bench.answers) if (answers) all.push(data.texts[answers.texts[at]]);
    return all.some((text) => text.toLowerCase().includes(words));
  }

  function boxes(sample, at) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    const own = ["a", "b"].map((id) => (benchmark().answers[Number(get(id).value)].boxes || [])[at]);
    for (const [box, name] of [[sample.box, "target"], [own[0], "predicted"], [own[1], "second"]]) {
      if (!box) continue;
      for (const kind of ["halo", `box ${name}`]) {
        const rect = document.createElementNS(space, "rect");
        const values = { x: box[0], y: box[1], width: Math.max(box[2] - box[0], 0), height: Math.max(box[3] - box[1], 0) };
        for (const key in values) rect.setAttribute(key, values[key]);
        rect.setAttribute("class", kind);
        svg.append(rect);
      }
    }
    return svg;
  }

  function picture(sample, at) {
    if (sample.picture === null) return make("div", "noimage", "no picture");
    const frame = make("div", "picture");
    const image = make("img");
    image.alt = "";
    image.src = data.pictures[sample.picture];
    frame.append(image, boxes(sample, at));
    return frame;
  }

  function answer(run, at) {
    const bench = benchmark();
    const score = bench.answers[run].scores[at];
    const chosen = [get("a").value, get("b").value].includes(String(run));
    const row = make("div", chosen ? "answer chosen" : "answer");
    row.append(make("b", "", data.groups[data.runs[run].group].letter));
    const seed = data.runs[run].seed;
    row.append(make("span", "who", `${data.groups[data.runs[run].group].label}${seed === null ? "" : `, seed ${seed}`}`));
    const right = score >= 1;
    const mark = score === null ? "" : bench.graded ? score.toFixed(2) : right ? "✓ right" : "✗ wrong";
    row.append(make("span", `mark ${bench.graded || score === null ? "" : right ? "right" : "wrong"}`, mark));
    row.append(make("span", "said", data.texts[bench.answers[run].texts[at]] || "(empty)"));
    return row;
  }

  function card(at) {
    const bench = benchmark();
    const sample = bench.samples[at];
    const node = make("article", "sample");
    const body = make("div");
    body.append(make("p", "", data.texts[sample.prompt]));
    const target = make("p", "target", `${sample.type ? `${sample.type}, ` : ""}target: `);
    target.append(make("b", "", data.texts[sample.target]));
    body.append(target);
    const chosen = [...new Set([Number(get("a").value), Number(get("b").value)])];
    const others = data.runs.map((_, run) => run).filter((run) => bench.answers[run] && !chosen.includes(run));
    for (const run of chosen) body.append(answer(run, at));
    if (chosen.length + others.length <= SHOWN_RUNS) {
      for (const run of others) body.append(answer(run, at));
    } else {
      const more = make("details");
      more.append(make("summary", "", `${others.length} other runs`));
      more.addEventListener("toggle", () => {
        if (more.open && more.childElementCount === 1) for (const run of others) more.append(answer(run, at));
      });
      body.append(more);
    }
    node.append(picture(sample, at), body);
    return node;
  }

  function draw() {
    const bench = benchmark();
    const found = bench.samples.map((_, at) => at).filter(passes);
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shown = found.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
    get("cards").replaceChildren(...shown.map(card));
    const thinned = bench.total > bench.samples.length ? `, drawn evenly from ${bench.total}` : "";
    get("count").textContent = `${found.length} of ${bench.samples.length} samples${thinned}; page ${state.page + 1} of ${pages}`;
    get("previous").disabled = state.page === 0;
    get("next").disabled = state.page === pages - 1;
    const boxed = bench.samples.some((sample) => sample.box);
    get("box-key").hidden = !boxed;
  }

  function turn(by) {
    state.page += by;
    draw();
    get("side-by-side").scrollIntoView();
  }

  data.benchmarks.forEach((bench, at) => option(get("benchmark"), at, bench.name.split("/").reverse().join(", ")));
  get("benchmark").addEventListener("change", () => { state.page = 0; fillRuns(); fillFilter(); draw(); });
  for (const id of ["a", "b", "filter", "type"]) get(id).addEventListener("change", () => { state.page = 0; draw(); });
  get("text").addEventListener("input", () => { state.page = 0; draw(); });
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));
  fillRuns();
  fillFilter();
  draw();
})();
