// A turn on the page: its question, reasoning, answer, counts and fault.

const views = new WeakMap();

function turnView(turn) {
  const view = {
    summary: el("summary"),
    trace: el("div", { class: "trace", tabindex: 0, role: "region", "aria-label": "Reasoning", dir: "auto" }),
    waiting: el("div", { class: "waiting", "aria-label": "Waiting for the answer", role: "img" }, el("i"), el("i"), el("i")),
    prose: el("div", { class: "prose" }),
    note: el("p", { class: "note" }),
    fault: el("div", { class: "fault", role: "alert" }),
    stats: el("span", { class: "stats" }),
    meta: el("div", { class: "meta" }),
    isChosen: false, // whether the reader has folded or unfolded the reasoning
    isDue: false,
  };
  view.reasoning = el("details", { class: "reasoning" }, view.summary, view.trace);
  view.summary.addEventListener("click", () => { view.isChosen = true; });
  view.again = el("button", { class: "text-button", type: "button", click: () => retry(turn) }, "Regenerate");
  const actions = el("span", { class: "meta-actions" });
  if (navigator.clipboard) actions.append(view.copy = copyButton(() => turn.content, "Copy answer"));
  actions.append(view.again);
  view.meta.append(view.stats, actions);
  view.root = el("article", { class: "turn" },
    el("div", { class: "question" }, el("h2", { class: "unseen" }, "You"), el("p", { dir: "auto" }, turn.question)),
    el("div", { class: "answer" }, el("h2", { class: "unseen" }, "Answer"),
      view.reasoning, view.waiting, view.prose, view.note, view.fault, view.meta));
  views.set(turn, view);
  draw(turn, view);
  return view;
}

/** Draw a turn before the next frame; however often it is asked, once a frame. */
function redraw(turn, view) {
  if (view.isDue) return;
  view.isDue = true;
  requestAnimationFrame(() => {
    view.isDue = false;
    draw(turn, view);
  });
}

function draw(turn, view) {
  const wasAtEnd = isAtEnd();
  const isRunning = running?.turn === turn;
  drawReasoning(turn, view, isRunning);
  view.waiting.hidden = !isRunning || turn.content !== "" || turn.reasoning.trim() !== "";
  renderInto(view.prose, turn.content);
  write(view.note, noteOf(turn, isRunning));
  view.note.hidden = !view.note.textContent;
  drawFault(turn, view);
  write(view.stats, isRunning ? "" : statsOf(turn));
  const isLast = turns.at(-1) === turn;
  view.again.hidden = !isLast || running !== null || turn.fault !== null;
  if (view.copy) view.copy.hidden = isRunning || !turn.content;
  view.meta.hidden = isRunning || (turn.fault !== null && !turn.content && !turn.reasoning);
  if (wasAtEnd && isLast) toEnd();
  showLatest();
}

function drawReasoning(turn, view, isRunning) {
  const text = turn.reasoning.trim();
  view.reasoning.hidden = !text;
  if (!text) return;
  const isThinking = isRunning && turn.content === "";
  const { trace } = view;
  const wasAtEnd = trace.scrollHeight - trace.scrollTop - trace.clientHeight < 24;
  const shown = trace.firstChild?.data ?? "";
  if (text !== shown) {
    if (shown && text.startsWith(shown)) trace.firstChild.appendData(text.slice(shown.length));
    else trace.replaceChildren(text);
  }
  view.reasoning.classList.toggle("is-thinking", isThinking);
  write(view.summary, reasoningLine(turn, isThinking));
  if (!view.isChosen) view.reasoning.open = turn.content === "" && (isThinking || turn.finish !== null);
  if (isThinking && wasAtEnd) trace.scrollTop = trace.scrollHeight;
}

function reasoningLine(turn, isThinking) {
  const { reasoningBegan, answerBegan } = turn.times;
  if (isThinking) return `Reasoning · ${Math.floor((performance.now() - running.sent - reasoningBegan) / 1000)} s`;
  const parts = [];
  if (answerBegan !== undefined) parts.push(`Reasoned for ${duration(answerBegan - reasoningBegan)}`);
  else parts.push("Reasoning");
  if (turn.usage) parts.push(plural(turn.usage.reasoning, "token"));
  return parts.join(" · ");
}

function noteOf(turn, isRunning) {
  if (isRunning || turn.fault) return "";
  const isEmpty = !turn.content.trim();
  if (turn.finish === "stopped") return isEmpty ? "Stopped before an answer; the next message goes without this one." : "Stopped.";
  if (turn.finish === "length") return `Cut off: max tokens or the context was used up${isEmpty ? " before an answer" : ""}.`;
  return isEmpty ? "The model ended without an answer." : "";
}

function statsOf(turn) {
  const { usage, times } = turn;
  if (!usage) return "";
  const parts = [plural(usage.completion, "token")];
  if (usage.reasoning && usage.reasoning !== usage.completion) parts.push(`${whole.format(usage.reasoning)} of reasoning`);
  const ms = times.end - times.first;
  const isMeasured = usage.completion > 1 && ms >= 5; // what came at once tells no speed
  if (isMeasured) parts.push(`${rateOf(usage.completion - 1, ms)} tokens/s`);
  if (times.first !== undefined) parts.push(`first after ${duration(times.first)}`);
  return parts.join(" · ");
}

function drawFault(turn, view) {
  const { fault } = turn;
  view.fault.hidden = !fault;
  if (!fault || view.drawnFault === fault) return;
  view.drawnFault = fault;
  const head = fault.status ? `Error ${fault.status}` : "No answer";
  view.fault.replaceChildren(
    el("strong", {}, head), el("p", {}, fault.message),
    el("div", { class: "actions" },
      el("button", { class: "button", type: "button", click: () => retry(turn) }, "Try again"),
      el("button", { class: "button", type: "button", click: () => takeBack(turn) }, "Edit message")));
}
