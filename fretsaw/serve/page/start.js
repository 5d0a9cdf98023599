// The start: the listeners, then what was kept from the last visit.

const EXAMPLES = [
  "Tom has 8 apples. He buys 5 more. He gives away 4. How many apples does he have now?",
  "Explain in two sentences why the sky is blue.",
  "Write a Python function that reverses the words of a sentence.",
];

function listen() {
  const hasKeyboard = matchMedia("(hover: hover), (pointer: fine)").matches;
  $("hint").hidden = !hasKeyboard;
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("prompt").addEventListener("input", fitPrompt);
  $("prompt").addEventListener("keydown", (event) => {
    // On glass there is no Shift to hold, and while a word is composed Enter accepts it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !hasKeyboard) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    const isCovered = document.querySelector("main").inert;
    if (running && !isCovered) stop();
    else if (openedPanel()) closePanel();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", startAnew);
  $("undo").addEventListener("click", () => { setTurns(previous); previous = null; showWelcome(); toEnd(); });
  $("latest").addEventListener("click", () => { toEnd(); $("prompt").focus(); });
  $("toggle").addEventListener("click", () => setReasoning(!isReasoningOn()));
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  $("gate").addEventListener("submit", (event) => { event.preventDefault(); useKey(); });
  $("reach").addEventListener("click", readArchitecture);
  $("every-layer").addEventListener("click", () => openPanel("model"));
  $("reset").addEventListener("click", () => {
    for (const name of Object.keys(settings)) settings[name] = "";
    changed();
    showSettings();
  });
  for (const name of PANELS) {
    $(`open-${name}`).addEventListener("click", () => openedPanel() === name ? closePanel() : openPanel(name));
    $(name).querySelector(".close").addEventListener("click", closePanel);
  }
  isWide.addEventListener("change", shade);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  window.addEventListener("scroll", () => {
    document.body.classList.toggle("is-scrolled", window.scrollY > 4);
    showLatest();
  }, { passive: true });
  window.addEventListener("pagehide", () => {
    if (running) running.turn.finish = "stopped"; // or leaving would look like a broken connection
    running?.controller.abort();
    keepTurns();
  });
  window.addEventListener("resize", () => { fitPrompt(); showLatest(); });
}

function start() {
  setTheme(recall("localStorage", "theme"));
  $("examples").append(...EXAMPLES.map((text) =>
    el("li", {}, el("button", { type: "button", click: () => { if (!running) ask(text); } }, text))));
  buildSettings();
  settings = recallSettings();
  showSettings();
  setReasoning(recall("localStorage", "reasoning") ?? true);
  apiKey = recall("sessionStorage", "key") ?? null;
  listen();
  setTurns(recallTurns());
  fitPrompt();
  if (turns.length) toEnd();
  if (matchMedia("(hover: hover)").matches) $("prompt").focus({ preventScroll: true });
  readArchitecture();
}

start();
