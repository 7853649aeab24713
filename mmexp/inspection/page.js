"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const palette = bytes(data.palette);
  const number = (value) => (value >= 0.001 || value === 0 ? value.toFixed(3) : value.toExponential(1));

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function add(parent, ...nodes) { parent.append(...nodes); return parent; }
  function lay(node, [left, top, right, bottom]) {
    const style = { left, top, width: right - left, height: bottom - top };
    for (const key in style) node.style[key] = `${100 * style[key]}%`;
    return node;
  }
  function choice(label, names, values, onChange) {
    const select = make("select");
    select.name = label;
    names.forEach((name, at) => { const option = make("option", "", name); option.value = values[at]; select.append(option); });
    select.addEventListener("change", onChange);
    return [add(make("label", "", label), select), select];
  }

  // Maps as Python packed them: one is `size` bytes, all views together, and has the value of its strongest place.
  function mapsOf(packed) {
    const all = bytes(packed.data);
    const [views, places] = packed.size;
    return (...index) => {
      const flat = index.reduce((sum, at, dim) => sum * packed.lead[dim] + at, 0);
      const start = flat * views * places;
      return { top: packed.top[flat], view: (v) => all.subarray(start + v * places, start + (v + 1) * places) };
    };
  }
  function paint(canvas, [rows, columns], values) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    values.forEach((value, at) => image.data.set(palette.subarray(4 * value, 4 * value + 4), 4 * at));
    context.putImageData(image, 0, 0);
  }

  // The picture in its place, what the encoder saw of it bright, and a canvas over that.
  function viewBox(sample, view, withMap) {
    const box = make("div", "view");
    box.style.aspectRatio = String(view.aspect);
    const cropped = view.window.some((side, at) => Math.abs(side - view.whole[at]) > 1e-6) && inside(view.window, view.whole);
    const image = () => { const img = make("img"); img.alt = ""; img.src = sample.pictures[view.picture].src; return lay(img, view.whole); };
    add(box, image());
    if (withMap) box.firstChild.classList.add("under");
    if (cropped) {
      box.firstChild.classList.add("unseen");
      const [l, t, r, b] = view.window;
      add(box, image());
      const [pl, pt, pr, pb] = view.whole;
      const cut = [(t - pt) / (pb - pt), (pr - r) / (pr - pl), (pb - b) / (pb - pt), (l - pl) / (pr - pl)];
      if (withMap) box.lastChild.classList.add("under");
      box.lastChild.style.clipPath = `inset(${cut.map((share) => `${100 * Math.max(share, 0)}%`).join(" ")})`;
    }
    const canvas = lay(make("canvas"), view.window);
    if (withMap) add(box, canvas);
    if (cropped) add(box, lay(make("i", "frame"), view.window));
    return { box, canvas };
  }
  function inside(a, b) { return a[0] >= b[0] - 1e-6 && a[1] >= b[1] - 1e-6 && a[2] <= b[2] + 1e-6 && a[3] <= b[3] + 1e-6; }

  function attention(sample, section) {
    const byLayer = mapsOf(sample.layers);
    const byHead = sample.heads && mapsOf(sample.heads);
    const views = make("div", "views");
    const drawn = sample.views.map((view, at) => {
      const { box, canvas } = viewBox(sample, view, sample.placed);
      const holder = add(make("div"), box);
      if (sample.views.length > 1) add(holder, make("small", "", `view ${at}${sample.pictures.length > 1 ? `, picture ${view.picture}` : ""}`));
      if (sample.placed) { add(views, holder); return canvas; }
      const strip = make("canvas", "strip-map");
      add(views, add(make("div"), holder, make("small", "", "soft tokens have no place in the picture; in their order:"), strip));
      return strip;
    });
    const scale = add(make("p", "scale"), make("span", "", "0"), make("span", "ramp"), make("span", "top"));
    const left = add(make("div"), views, scale);

    const tokens = make("div", "tokens");
    let token = 0;
    ["whole answer", ...sample.tokens].forEach((text, at) => {
      const button = add(make("button", "", text));
      button.type = "button";
      if (at) add(button, make("small", "", `${(100 * sample.shares[at - 1]).toFixed(1)} %`));
      button.addEventListener("click", () => { token = at; show(); });
      add(tokens, button);
    });
    const layers = [...Array(sample.num_layers).keys()];
    const heads = [...Array(sample.num_heads).keys()];
    const [layerLabel, layer] = choice("layer", ["mean of all layers", ...layers.map((at) => `layer ${at}`)], ["", ...layers], show);
    const [headLabel, head] = choice("head", ["mean of all heads", ...heads.map((at) => `head ${at}`)], ["", ...heads], show);
    const bars = add(make("div", "shares"), make("small", "", "share of attention that goes to the picture, mean over the answer"));
    const most = Math.max(...sample.layer_shares, 1e-9);
    sample.layer_shares.forEach((share, at) => {
      const fill = make("u");
      fill.style.width = `${(100 * share) / most}%`;
      add(bars, add(make("div", "bar"), make("span", "", `layer ${at}`), add(make("i"), fill), make("b", "", `${(100 * share).toFixed(1)} %`)));
    });
    const right = add(make("div"), make("small", "", "answer tokens, and how much of their attention goes to the picture"), tokens,
      add(make("div", "controls"), layerLabel, headLabel), bars);
    add(section, make("h3", "", "Attention of the answer over the picture"), add(make("div", "duo"), left, right));

    function show() {
      const slot = sample.head_layers.indexOf(Number(layer.value));
      head.disabled = layer.value === "" || slot < 0 || !byHead;
      if (head.disabled) head.value = "";
      const map = head.value === "" ? byLayer(layer.value === "" ? 0 : Number(layer.value) + 1, token) : byHead(slot, Number(head.value), token);
      drawn.forEach((canvas, at) => paint(canvas, sample.grid, map.view(at)));
      scale.querySelector(".top").textContent = number(map.top);
      [...tokens.children].forEach((button, at) => button.setAttribute("aria-pressed", String(at === token)));
    }
    show();
  }

  function words(sample, section) {
    const soft = sample.soft;
    const slotsPerView = soft.near.length / sample.views.length;
    const laid = sample.placed && !sample.queries && slotsPerView === sample.grid[0] * sample.grid[1];
    const lensNames = Object.keys(soft.lens).map((at) => (at === "0" ? "logit lens, into the first layer" : `logit lens, behind layer ${at - 1}`));
    const [kindLabel, kind] = choice("words by", ["cosine with embeddings", ...lensNames], ["near", ...Object.keys(soft.lens)], show);
    const views = sample.views.map((_, at) => at);
    const [viewLabel, view] = choice("view", views.map((at) => `view ${at}`), views, show);
    viewLabel.hidden = views.length < 2;
    const cells = make("div", laid ? "words" : "words loose");
    if (laid) cells.style.gridTemplateColumns = `repeat(${sample.grid[1]}, minmax(44px, 1fr))`;
    const nearest = make("div", "nearest");
    const spot = make("div");
    let chosen = 0;
    const row = (which, at) => (which === "near" ? soft.near[at] : soft.slot_of[at] < 0 ? null : soft.lens[which][soft.slot_of[at]]);
    for (let at = 0; at < slotsPerView; at += 1) {
      const button = make("button");
      button.type = "button";
      button.addEventListener("click", () => { chosen = at; show(); });
      add(cells, button);
    }
    add(section, make("h3", "", "Soft tokens as words"), add(make("div", "controls"), kindLabel, viewLabel), cells,
      add(make("div", "duo small"), spot, nearest));

    function show() {
      const first = Number(view.value) * slotsPerView;
      [...cells.children].forEach((button, at) => {
        const found = row(kind.value, first + at);
        button.textContent = found ? soft.words[found[0][0]] : "\u2013";
        button.title = found ? found.map(([word, value]) => `${soft.words[word]} ${number(value)}`).join("\n") : "cut off";
        button.style.setProperty("--p", `${found ? Math.round(55 * Math.max(found[0][1], 0)) : 0}%`);
        button.setAttribute("aria-pressed", String(at === chosen));
      });
      const table = make("table");
      [["near", "cosine"], ...Object.keys(soft.lens).map((at, index) => [at, lensNames[index].replace("logit lens, ", "")])].forEach(([which, name]) => {
        const line = add(make("tr"), make("th", "", name));
        for (const [word, value] of row(which, first + chosen) || []) {
          add(line, add(make("td", "", soft.words[word]), make("small", "", number(value))));
        }
        add(table, line);
      });
      nearest.replaceChildren(make("small", "", `soft token ${chosen}, nearest first`), table);
      const { box, canvas } = viewBox(sample, sample.views[Number(view.value)], Boolean(sample.queries));
      if (sample.queries) paint(canvas, sample.grid, mapsOf(sample.queries.maps)(0, 0, chosen).view(Number(view.value)));
      if (laid) add(box, lay(make("i", "at"), cell(sample, sample.views[Number(view.value)], chosen)));
      spot.replaceChildren(box);
    }
    show();
  }
  function cell(sample, view, at) {
    const [rows, columns] = sample.grid;
    const [l, t, r, b] = view.window;
    const width = (r - l) / columns, height = (b - t) / rows;
    const x = l + width * (at % columns), y = t + height * Math.floor(at / columns);
    return [x, y, x + width, y + height];
  }

  function queries(sample, section) {
    const own = sample.queries;
    const maps = mapsOf(own.maps);
    const layers = [...Array(own.num_layers).keys()];
    const heads = [...Array(own.maps.lead[1] - 1).keys()];
    const [layerLabel, layer] = choice("connector layer", ["mean of all layers", ...layers.map((at) => `layer ${at}`)], [0, ...layers.map((at) => at + 1)], show);
    const [headLabel, head] = choice("head", ["mean of all heads", ...heads.map((at) => `head ${at}`)], [0, ...heads.map((at) => at + 1)], show);
    headLabel.hidden = !own.heads;
    const thumbs = make("div", "thumbs");
    const drawn = [];
    for (let query = 0; query < own.maps.lead[2]; query += 1) {
      sample.views.forEach((view, at) => {
        const { box, canvas } = viewBox(sample, view, true);
        const caption = make("small");
        add(thumbs, add(make("div"), box, caption));
        const nearest = sample.soft.words[sample.soft.near[at * own.maps.lead[2] + query][0][0]];
        drawn.push({ query, at, canvas, caption, name: `${query}${sample.views.length > 1 ? `, view ${at}` : ""} \u201c${nearest}\u201d` });
      });
    }
    add(section, make("h3", "", "What each query reads"));
    if (own.prefix !== null) add(section, make("small", "", `${(100 * own.prefix).toFixed(1)} % of the attention goes to the position in front of the patches (CLS), which has no place.`));
    if (!own.heads) add(section, make("small", "", "Single heads are left out: there are too many maps for a page."));
    add(section, add(make("div", "controls"), layerLabel, headLabel), thumbs);

    function show() {
      for (const { query, at, canvas, caption, name } of drawn) {
        const map = maps(Number(layer.value), own.heads ? Number(head.value) : 0, query);
        paint(canvas, sample.grid, map.view(at));
        caption.textContent = `${name} max ${number(map.top)}`;
      }
    }
    show();
  }

  for (const sample of data.samples) {
    const section = add(make("section", "inside"), make("h2", "", sample.id));
    for (const [name, text] of [["asked", sample.prompt], ["answer", sample.answer || "(empty)"], ["target", sample.target]]) {
      if (text) add(section, add(make("p", "said"), make("span", "", name), document.createTextNode(text)));
    }
    add(document.getElementById("samples"), section);
    attention(sample, section);
    words(sample, section);
    if (sample.queries) queries(sample, section);
  }
})();
