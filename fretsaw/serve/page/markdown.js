// Markdown as far as answers use it: from text to blocks, from blocks to nodes.

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^#{1,6}[ \t]+(.*)$/;
const ITEM = /^([ \t]*)(?:[-*+]|(\d{1,9})[.)])[ \t]+(.*)$/;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

/** Return the blocks of a text: { kind, text, ... }, each with the `source` it was read from. */
function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const isPlain = (line) => line.trim() && !FENCE.test(line) && !HEADING.test(line) && !ITEM.test(line);
  while (at < lines.length) {
    const begin = at;
    const line = lines[at];
    const fence = FENCE.exec(line);
    let block = null;
    if (fence) {
      const isEnd = (other) => other.trim().startsWith(fence[1]) && !other.trim().replaceAll(fence[1][0], "");
      at += 1;
      while (at < lines.length && !isEnd(lines[at])) at += 1;
      block = { kind: "code", language: fence[2].trim().split(/\s/)[0], text: lines.slice(begin + 1, at).join("\n") };
      at += 1;
    } else if (HEADING.test(line)) {
      block = { kind: "heading", text: HEADING.exec(line)[1] };
      at += 1;
    } else if (ITEM.test(line)) {
      const items = [];
      const isNumbered = ITEM.exec(line)[2] !== undefined;
      for (; at < lines.length; at += 1) {
        const item = ITEM.exec(lines[at]);
        const isDeeper = item && item[1].length > 1;
        if (item && !isDeeper && (item[2] !== undefined) !== isNumbered) break;
        if (item) items.push({ isDeeper, number: item[2], text: item[3] });
        else if (/^[ \t]+\S/.test(lines[at]) && !FENCE.test(lines[at])) items.at(-1).text += `\n${lines[at].trim()}`;
        else break;
      }
      block = { kind: "list", isNumbered, items };
    } else if (line.trim()) {
      while (at < lines.length && isPlain(lines[at])) at += 1;
      block = { kind: "paragraph", text: lines.slice(begin, at).join("\n") };
    } else {
      at += 1;
    }
    if (block) blocks.push({ ...block, source: lines.slice(begin, at).join("\n") });
  }
  return blocks;
}

function blockNode(block) {
  switch (block.kind) {
    case "code": return codeNode(block);
    case "heading": return el("h3", { dir: "auto" }, ...inline(block.text));
    case "list": return el(block.isNumbered ? "ol" : "ul", { dir: "auto" }, ...block.items.map(itemNode));
    default: return el("p", { dir: "auto" }, ...inline(block.text));
  }
}

function itemNode({ isDeeper, number, text }) {
  const kind = number === undefined ? "point" : "number";
  return el("li", { class: isDeeper ? `deeper ${kind}` : kind, value: number }, ...inline(text));
}

function codeNode({ language, text }) {
  const head = el("div", { class: "code-head" }, language || "code");
  if (navigator.clipboard) head.append(copyButton(() => text, "Copy code"));
  const pre = el("pre", { tabindex: 0, role: "region", "aria-label": "Code" }, el("code", {}, text));
  return el("div", { class: "code" }, head, pre);
}

function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(at, match.index));
    nodes.push(match[1] === undefined ? el("strong", {}, match[2]) : el("code", {}, match[1]));
    at = match.index + match[0].length;
  }
  return [...nodes, text.slice(at)];
}

/** Show a text in a node as blocks; those that have not changed are left alone. */
function renderInto(node, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, index) => {
    const old = node.children[index];
    if (old?.source === block.source) return;
    const fresh = Object.assign(blockNode(block), { source: block.source });
    if (old) old.replaceWith(fresh);
    else node.append(fresh);
  });
  while (node.children.length > blocks.length) node.lastElementChild.remove();
}
