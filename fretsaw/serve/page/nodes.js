// Nodes: elements made of strings that stay text, and found by their ids.

const $ = (id) => document.getElementById(id);

/** Return an element; strings among the children become text, never markup. */
function el(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Set a node's text where it differs, so that nothing is announced or redrawn for naught. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function copyButton(textOf, label = "Copy") {
  return el("button", {
    class: "text-button", type: "button", "aria-label": label,
    click: async ({ currentTarget: button }) => {
      try {
        await navigator.clipboard.writeText(textOf());
        write(button, "Copied");
      } catch (error) {
        write(button, "Not copied");
        say(`The browser did not let this page copy: ${error.message}`);
      }
      setTimeout(() => write(button, "Copy"), 1500);
    },
  }, "Copy");
}
