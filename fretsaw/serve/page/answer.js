// The answer to a turn: asked for, and taken as it streams in.

let running = null; // { turn, view, controller, sent } of the answer being written

/** Return the body that asks for a turn's answer; turns without an answer are not sent along. */
function asked(turn) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const earlier of turns.slice(0, turns.indexOf(turn))) {
    if (!isSentAlong(earlier)) continue;
    messages.push({ role: "user", content: earlier.question });
    messages.push({ role: "assistant", content: earlier.content });
  }
  messages.push({ role: "user", content: turn.question });
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  if (architecture?.toggle !== "none") body.chat_template_kwargs = { enable_thinking: isReasoningOn() };
  for (const { name } of SETTINGS) {
    if (settings[name].trim()) body[name] = Number(settings[name]);
  }
  return body;
}

function isSentAlong(turn) {
  return turn.content.trim() !== "" && turn.finish !== "failed";
}

/** Let the model write a turn's answer. */
async function answer(turn, view) {
  const controller = new AbortController();
  const sent = performance.now();
  running = { turn, view, controller, sent };
  const since = () => performance.now() - sent;
  showRunning();
  const clock = setInterval(() => redraw(turn, view), 200);
  const saving = setInterval(keepTurns, 1000);
  try {
    const response = await request("v1/chat/completions", asked(turn), controller.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Fault(event.error.message, event.error.status ?? 0, event.error.code);
      take(turn, event, since());
      redraw(turn, view);
    }
    turn.finish ??= "stop";
  } catch (error) {
    if (error.name === "AbortError" || turn.finish === "stopped") turn.finish = "stopped";
    else fail(turn, error);
  } finally {
    clearInterval(clock);
    clearInterval(saving);
    turn.times.end ??= since();
    if (turn.reasoning) turn.times.answerBegan ??= turn.times.end;
    running = null;
    keepTurns();
    draw(turn, view);
    showRunning();
  }
  if (turn.finish === "stopped") await countStopped(turn, view);
}

function take(turn, event, now) {
  const choice = event.choices[0];
  if (choice) {
    const { reasoning, content } = choice.delta;
    if (reasoning || content) turn.times.first ??= now;
    if (reasoning) {
      turn.times.reasoningBegan ??= now;
      turn.reasoning += reasoning;
    }
    if (content) {
      if (turn.reasoning) turn.times.answerBegan ??= now;
      turn.content += content;
    }
    if (choice.finish_reason) {
      turn.finish = choice.finish_reason;
      turn.times.end = now;
    }
  }
  if (event.usage) {
    turn.usage = {
      prompt: event.usage.prompt_tokens,
      completion: event.usage.completion_tokens,
      reasoning: event.usage.completion_tokens_details?.reasoning_tokens ?? 0,
    };
  }
}

function fail(turn, error) {
  if (!(error instanceof Fault)) console.error(error);
  turn.finish = "failed";
  turn.fault = { message: error.message, status: error.status ?? 0, code: error.code ?? null };
  if (error.status === 401) askForKey(error.message);
}

/** Count the tokens of an answer that was stopped: a stream that is left tells no usage. */
async function countStopped(turn, view) {
  try {
    const counts = [];
    for (const prompt of [turn.reasoning, turn.content]) {
      const body = { prompt, add_special_tokens: false, parse_special: false };
      counts.push(prompt ? (await (await request("tokenize", body)).json()).count : 0);
    }
    turn.usage = { completion: counts[0] + counts[1], reasoning: counts[0] };
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return; // the answer stands without its counts
  }
  keepTurns();
  draw(turn, view);
}
