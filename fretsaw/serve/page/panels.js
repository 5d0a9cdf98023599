// The panels at the side: one is open, or none.

const PANELS = ["model", "settings"];
const isWide = matchMedia("(min-width: 68rem)");

function openPanel(name) {
  for (const other of PANELS) {
    $(other).hidden = other !== name;
    $(`open-${other}`).setAttribute("aria-expanded", String(other === name));
  }
  document.body.classList.toggle("with-panel", name !== null);
  shade();
  if (name) $(`${name}-title`).focus({ preventScroll: true });
}

/** What a panel covers is out of reach while it is open. */
function shade() {
  const isCovered = openedPanel() !== undefined && !isWide.matches;
  document.querySelector("main").inert = isCovered;
  document.querySelector("header").inert = isCovered;
}

function openedPanel() {
  return PANELS.find((name) => !$(name).hidden);
}

function closePanel() {
  const name = openedPanel();
  openPanel(null);
  if (name) $(`open-${name}`).focus();
}
