// The model: its description, read from the server and shown.

const TOGGLES = {
  "v1": "“detailed thinking on” or “off” in the system text",
  "v1.5": "“/think” or “/no_think” in the system text",
  "enable_thinking": "a switch of the model’s own chat template",
  "none": "none: the model answers as it does",
};

let architecture = null;

async function readArchitecture() {
  $("unreached").hidden = true;
  try {
    architecture = await (await request("architecture")).json();
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    if (error.status === 401) return askForKey(error.message);
    write($("unreached-why"), error.message);
    $("unreached").hidden = false;
    return;
  }
  $("gate").hidden = true;
  showModel();
  showWelcome();
}

function showModel() {
  const { name, params, context, blocks, toggle, chats } = architecture;
  document.title = `${name} · Fretsaw`;
  write($("name"), name);
  write($("welcome-name"), name);
  write($("lede"), `A language model of ${shortCount(params)} parameters in ${plural(blocks.length, "layer")}, ` +
    `with room for ${plural(context, "token")}.` + (toggle === "none" ? "" : " Its reasoning can be switched on and off.") +
    (chats ? "" : " It has no chat format: it only continues text, which programs send to /v1/completions."));
  $("prompt").disabled = !chats;
  $("examples").hidden = !chats;
  $("skyline-picture").replaceChildren(skyline(architecture));
  $("skyline").hidden = false;
  for (const kind of ["linear", "none"]) $(`key-${kind}`).hidden = !hasKind(architecture, kind);
  const hasToggle = toggle !== "none";
  $("toggle").disabled = !hasToggle;
  if (!hasToggle) $("toggle").setAttribute("aria-checked", "false");
  write($("toggle-word"), hasToggle ? "Reasoning" : "No reasoning switch in this model");
  $("set-temperature").placeholder = `the model’s own, ${architecture.temperature}`;
  $("model-body").replaceChildren(...modelPanel(architecture));
}

function modelPanel(model) {
  const facts = [
    ["Name", model.name], ["Parameters", `${shortCount(model.params)} (${whole.format(model.params)})`],
    ["Context", plural(model.context, "token")], ["Hidden size", whole.format(model.hidden_size)],
    ["Vocabulary", whole.format(model.vocab)], ["Reasoning", TOGGLES[model.toggle]],
  ];
  const legend = el("p", { class: "legend" },
    el("span", { class: "key attention" }, "KV head"), el("span", { class: "key ffn" }, "feed-forward, to scale"));
  if (hasKind(model, "linear")) legend.append(el("span", { class: "key linear" }, "linear map"));
  if (hasKind(model, "none")) legend.append(el("span", { class: "key none" }, "nothing"));
  return [
    el("p", { class: "summary" }, inWords(model)),
    el("dl", { class: "facts" }, ...facts.flatMap(([term, fact]) => [el("dt", {}, term), el("dd", {}, fact)])),
    el("div", { class: "picture" }, layersPicture(model)), legend,
    el("details", { class: "as-table" }, el("summary", {}, "The same as a table"), layersTable(model)),
  ];
}
