// The frame around the conversation: welcome, status, message field, scrolling and theme.

function showWelcome() {
  $("welcome").hidden = turns.length > 0 || !$("gate").hidden;
  $("name").hidden = turns.length === 0; // the welcome says it already
  $("undo").hidden = previous === null || turns.length > 0;
  $("new").disabled = turns.length === 0;
  showLatest();
}

function say(text) {
  write($("status"), text);
}

function showRunning() {
  const isRunning = running !== null;
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  write($("hint"), isRunning ? "Esc stops" : "Enter sends, Shift + Enter breaks the line");
  $("log").setAttribute("aria-busy", String(isRunning));
  $("new").disabled = turns.length === 0;
  if (hadFocus) $("prompt").focus();
}

function fitPrompt() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function isAtEnd() {
  const page = document.documentElement;
  return page.scrollHeight - page.scrollTop - page.clientHeight < 80;
}

function toEnd() {
  window.scrollTo(0, document.documentElement.scrollHeight);
}

function showLatest() {
  $("latest").hidden = turns.length === 0 || isAtEnd();
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Choose a theme; the one that the system has anyway is left to the system. */
function setTheme(theme) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (theme && theme !== system) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  keep("localStorage", "theme", document.documentElement.dataset.theme);
  showTheme();
}

function showTheme() {
  $("theme").setAttribute("aria-pressed", String(isDark()));
}
