// Settings: what is sent with every question, checked as it is typed, and the reasoning switch.

// The fields of a request that a reader may set; an empty one is not sent.
const SETTINGS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2, help: "0 always takes the likeliest token." },
  { name: "top_p", label: "Top p", above: 0, most: 1, help: "Samples from the likeliest tokens that make up this share." },
  { name: "max_tokens", label: "Max tokens", least: 1, isWhole: true, empty: "all that the context leaves", help: "Reasoning and answer together." },
  { name: "thinking_token_budget", label: "Thinking budget", least: 0, isWhole: true, empty: "the server’s own", help: "Tokens of reasoning before the answer must begin." },
  { name: "seed", label: "Seed", least: 0, most: Number.MAX_SAFE_INTEGER, isWhole: true, empty: "another each time", help: "The same seed and messages give the same answer." },
];

let settings = {};

function recallSettings() {
  const kept = recall("localStorage", "settings");
  const names = [...SETTINGS.map((setting) => setting.name), "system"];
  return Object.fromEntries(names.map((name) => [name, typeof kept?.[name] === "string" ? kept[name] : ""]));
}

function buildSettings() {
  for (const setting of SETTINGS) {
    const id = `set-${setting.name}`;
    const input = el("input", {
      id, type: "text", inputmode: setting.isWhole ? "numeric" : "decimal", autocomplete: "off",
      placeholder: setting.empty ?? "the model’s own", "aria-describedby": `${id}-help ${id}-wrong`,
      input: () => { settings[setting.name] = input.value; changed(setting); },
    });
    $("fields").append(el("div", { class: "field" },
      el("label", { for: id }, setting.label), el("p", { class: "help", id: `${id}-help` }, setting.help),
      input, el("p", { class: "wrong", id: `${id}-wrong`, role: "status", hidden: true })));
  }
  const system = el("textarea", {
    id: "set-system", rows: 4, dir: "auto", "aria-describedby": "set-system-help", placeholder: "none",
    input: () => { settings.system = system.value; changed(); },
  });
  $("fields").append(el("div", { class: "field" },
    el("label", { for: "set-system" }, "System text"),
    el("p", { class: "help", id: "set-system-help" }, "Stands before the conversation. Where it switches the reasoning itself, it wins over the switch."),
    system));
}

function changed(setting) {
  keep("localStorage", "settings", settings);
  if (setting) showComplaint(setting);
}

function showSettings() {
  for (const setting of SETTINGS) {
    $(`set-${setting.name}`).value = settings[setting.name];
    showComplaint(setting);
  }
  $("set-system").value = settings.system;
}

/** Return what is wrong with a setting, or an empty string. */
function complaint({ name, isWhole, least, above, most }) {
  const text = settings[name].trim();
  if (!text) return "";
  const value = Number(text);
  const isNumber = /^[-+]?(\d+\.?\d*|\.\d+)$/.test(text) && (!isWhole || Number.isInteger(value));
  const isInRange = !(value < least) && !(value <= above) && !(value > most);
  if (isNumber && isInRange) return "";
  const bounds = [];
  if (least !== undefined) bounds.push(`at least ${least}`);
  if (above !== undefined) bounds.push(`more than ${above}`);
  if (most !== undefined && most !== Number.MAX_SAFE_INTEGER) bounds.push(`at most ${most}`);
  return `Give a ${isWhole ? "whole " : ""}number, ${bounds.join(" and ")}.`;
}

function showComplaint(setting) {
  const said = complaint(setting);
  const place = $(`set-${setting.name}-wrong`);
  write(place, said);
  place.hidden = !said;
  $(`set-${setting.name}`).setAttribute("aria-invalid", String(said !== ""));
}

function isReasoningOn() {
  return $("toggle").getAttribute("aria-checked") === "true";
}

function setReasoning(isOn) {
  $("toggle").setAttribute("aria-checked", String(isOn));
  keep("localStorage", "reasoning", isOn);
}
