// The conversation: its turns, kept over a reload, and what the reader does with them.

// A turn is a question with its answer: { question, reasoning, content, finish, fault, times, usage }.
// `finish` is null while it is written, then "stop", "length", "stopped" (by the reader) or "failed".
let turns = [];
let previous = null; // the turns that "new conversation" took away

function newTurn(question) {
  return { question, ...unanswered() };
}

function unanswered() {
  return { reasoning: "", content: "", finish: null, fault: null, times: {}, usage: null };
}

function isTurn(value) {
  return typeof value?.question === "string" && typeof value.content === "string" && typeof value.reasoning === "string";
}

function recallTurns() {
  const kept = recall("sessionStorage", "turns");
  if (!Array.isArray(kept)) return [];
  return kept.filter(isTurn).map((turn) => ({
    ...unanswered(), ...turn, times: turn.times ?? {},
    finish: turn.finish ?? "stopped", // the page was left while it was being written
  }));
}

function keepTurns() {
  const isKept = keep("sessionStorage", "turns", turns.length ? turns : undefined);
  if (!isKept) say("This browser keeps nothing more: the conversation will not survive a reload.");
}

function send() {
  const question = $("prompt").value;
  if (!question.trim()) return $("prompt").focus();
  if (running) return say("An answer is being written; Esc stops it.");
  const wrong = SETTINGS.find((setting) => complaint(setting));
  if (wrong) {
    openPanel("settings");
    return $(`set-${wrong.name}`).focus();
  }
  $("prompt").value = "";
  fitPrompt();
  ask(question);
}

function ask(question) {
  previous = null;
  const turn = newTurn(question);
  turns.push(turn);
  const view = turnView(turn);
  $("log").append(view.root);
  begin(turn, view);
  redrawOthers(turn);
  $("prompt").focus();
  toEnd();
}

function begin(turn, view) {
  say("");
  view.isChosen = false;
  answer(turn, view);
  keepTurns();
  draw(turn, view);
  showWelcome();
}

/** Have a turn answered anew; what came after it, if anything, stays. */
function retry(turn) {
  if (running) return say("An answer is being written; Esc stops it.");
  Object.assign(turn, unanswered());
  begin(turn, views.get(turn));
  redrawOthers(turn);
  $("prompt").focus();
}

function takeBack(turn) {
  if (running) return say("An answer is being written; Esc stops it.");
  turns = turns.filter((other) => other !== turn);
  views.get(turn).root.remove();
  keepTurns();
  redrawOthers();
  showWelcome();
  $("prompt").value = turn.question;
  fitPrompt();
  $("prompt").focus();
}

function redrawOthers(turn) {
  for (const other of turns) if (other !== turn) draw(other, views.get(other));
}

function stop() {
  running?.controller.abort();
  $("prompt").focus();
}

function startAnew() {
  if (running) {
    running.controller.abort();
    running.turn.finish = "stopped";
  }
  if (turns.length) previous = turns;
  setTurns([]);
  say("");
  $("prompt").focus();
}

function setTurns(fresh) {
  turns = fresh;
  $("log").replaceChildren(...turns.map((turn) => turnView(turn).root));
  keepTurns();
  showWelcome();
  showRunning();
}
