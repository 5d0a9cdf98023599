// The server: requests, its events and faults, and the key that it asks for.

let apiKey = null;

/** What the server refused, or that it could not be reached. */
class Fault extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    Object.assign(this, { status, code });
  }
}

async function request(path, body, signal) {
  const headers = {};
  if (apiKey) headers.authorization = `Bearer ${apiKey}`;
  if (body) headers["content-type"] = "application/json";
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(`The server at ${location.host} does not answer. Is it running?`);
  }
  if (!response.ok) throw await faultOf(response);
  return response;
}

async function faultOf(response) {
  const text = await response.text();
  let told = null;
  try {
    told = JSON.parse(text).error;
  } catch {
    // Something between this page and the server answered, in a form of its own.
  }
  const message = told?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new Fault(message, response.status, told?.code ?? null);
}

/** Yield the JSON of each server-sent event up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Fault("The connection broke off before the answer was whole.");
    });
    if (done) throw new Fault("The server ended the answer before it was whole.");
    const parts = (waiting + value).split(/\r?\n\r?\n/);
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/gm, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function askForKey(why) {
  write($("gate-why"), apiKey ? `${why}.` : "It is kept until this tab is closed.");
  $("gate").hidden = false;
  showWelcome();
  $("key").focus();
}

async function useKey() {
  apiKey = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(apiKey)) {
    apiKey = null;
    return write($("gate-why"), "A key is of printable ASCII characters, without blanks.");
  }
  keep("sessionStorage", "key", apiKey);
  await readArchitecture();
  if (!$("gate").hidden) return;
  $("key").value = "";
  const last = turns.at(-1);
  if (last?.fault?.status === 401 && !running) retry(last);
  $("prompt").focus();
}
