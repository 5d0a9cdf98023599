// The layers: in words, as pictures and as a table.

/** Say in a sentence or two what a model's layers are. */
function inWords({ blocks }) {
  const kinds = (half, kind) => blocks.filter((block) => block[half] === kind).length;
  const heads = blocks.filter((block) => block.kv_heads).map((block) => block.kv_heads);
  const widths = blocks.filter((block) => block.ffn_width).map((block) => block.ffn_width);
  const range = (values) => {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return least === most ? whole.format(least) : `${whole.format(least)} to ${whole.format(most)}`;
  };
  const others = (half, prefix) => {
    const found = [[kinds(half, `${prefix}_linear`), "a linear map"], [kinds(half, `${prefix}_none`), "none"]];
    return found.filter(([count]) => count).map(([count, what]) => `; ${count} ${count === 1 ? "has" : "have"} ${what}${what === "none" ? "" : " in its place"}`).join("");
  };
  const first = heads.length
    ? `${heads.length === blocks.length ? "All" : heads.length} of ${plural(blocks.length, "layer")} ${heads.length === 1 ? "keeps" : "keep"} attention, with ${range(heads)} KV heads`
    : `None of ${plural(blocks.length, "layer")} keeps attention`;
  const second = widths.length ? `Feed-forward widths are ${range(widths)}` : "No layer keeps its feed-forward network";
  return `${first}${others("attention", "attn")}. ${second}${others("ffn", "ffn")}.`;
}

/** Whether any half of a layer is "linear" or "none". */
function hasKind({ blocks }, kind) {
  return blocks.some((block) => block.attention === `attn_${kind}` || block.ffn === `ffn_${kind}`);
}

function picture(id, width, height, model, ...children) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` },
    svg("title", { id: `${id}-title` }, `The layers of ${model.name}`),
    svg("desc", { id: `${id}-desc` }, inWords(model)), ...children);
}

function most(blocks, name) {
  return Math.max(1, ...blocks.map((block) => block[name]));
}

/** Draw one row a layer: its KV heads, then its FFN to scale. */
function layersPicture(model) {
  const { blocks } = model;
  const pitch = blocks.length > 48 ? 13 : 18;
  const [left, middle, right, top] = [30, 158, 336, 26];
  const room = 48; // for the number behind a bar
  const cell = Math.min(14, (middle - left - 22) / most(blocks, "kv_heads"));
  const scale = (right - room - middle) / most(blocks, "ffn_width");
  const rows = blocks.flatMap((block, index) => {
    const y = top + index * pitch;
    const size = pitch - 6;
    const center = y + size / 2;
    const label = (x, text) => svg("text", { x, y: center + 4 }, text);
    const half = (x, width, kind) => kind.endsWith("_linear")
      ? [svg("rect", { class: "linear-half", x: x + .5, y: y + .5, width: width - 1, height: size - 1, rx: 2 })]
      : [svg("line", { class: "no-half", x1: x, x2: x + 12, y1: center, y2: center })];
    const heads = Array.from({ length: block.kv_heads }, (_, head) =>
      svg("rect", { class: "kept", x: left + head * cell, y, width: Math.max(cell - 2, cell * .7), height: size, rx: Math.min(2, cell / 4) }));
    const ffn = block.ffn_width
      ? [svg("rect", { class: "width", x: middle, y, width: Math.max(1, block.ffn_width * scale), height: size, rx: 2 }),
        label(middle + block.ffn_width * scale + 6, whole.format(block.ffn_width))]
      : half(middle, 40, block.ffn);
    const number = svg("text", { x: 18, y: center + 4, "text-anchor": "end" }, String(index + 1));
    return [number, ...(heads.length ? heads : half(left, 40, block.attention)), ...ffn];
  });
  return picture("layers", right, top + blocks.length * pitch, model,
    svg("text", { class: "head", x: left, y: 12 }, "KV heads"),
    svg("text", { class: "head", x: middle, y: 12 }, "Feed-forward width"), ...rows);
}

/** Draw one column a layer: attention above the line, the FFN below it, both to scale. */
function skyline(model) {
  const { blocks } = model;
  const pitch = Math.min(36, 712 / blocks.length);
  const column = pitch * .76;
  const width = pitch * blocks.length;
  const [above, below, gap] = [44, 64, 3];
  const shapes = blocks.flatMap((block, index) => {
    const x = index * pitch;
    const other = (kind, y, height) => kind.endsWith("_linear")
      ? svg("rect", { class: "linear-half", x: x + .6, y, width: column - 1.2, height, rx: Math.min(2, column / 4) })
      : svg("line", { class: "no-half", x1: x, x2: x + column, y1: y + height / 2, y2: y + height / 2 });
    const cell = above / most(blocks, "kv_heads");
    const heads = Array.from({ length: block.kv_heads }, (_, head) =>
      svg("rect", { class: "kept", x, y: above - (head + 1) * cell, width: column, height: Math.max(cell - 1.5, cell * .7), rx: Math.min(1.5, cell / 4) }));
    const ffn = block.ffn_width
      ? svg("rect", { class: "width", x, y: above + gap, width: column, height: below * block.ffn_width / most(blocks, "ffn_width"), rx: Math.min(2, column / 4) })
      : other(block.ffn, above + gap, 10);
    return [...(heads.length ? heads : [other(block.attention, above - 11, 10)]), ffn];
  });
  const drawn = picture("skyline", width, above + gap + below, model, ...shapes);
  drawn.setAttribute("preserveAspectRatio", "none"); // narrow screens squeeze the columns alone
  drawn.style.maxWidth = `${width}px`;
  return drawn;
}

function layersTable({ blocks }) {
  const half = (kind, size, unit) => size ? `${whole.format(size)}${unit}` : kind.endsWith("_linear") ? "linear map" : "none";
  return el("table", {},
    el("thead", {}, el("tr", {}, ...["Layer", "Attention", "Feed-forward"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...blocks.map((block, index) => el("tr", {},
      el("th", { scope: "row" }, String(index + 1)),
      el("td", {}, half(block.attention, block.kv_heads, block.kv_heads === 1 ? " KV head" : " KV heads")),
      el("td", {}, half(block.ffn, block.ffn_width, " wide"))))));
}
