"""The chat page in a real browser, against a real server of the toggled model."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from patience import patient
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from serving import CONTEXT, LESSONS, Remote, remote

from fretsaw.serve.page.page import FOLDER, ChatPage

QUESTION = "What is 2 + 3?"
REASONING, ANSWER = LESSONS[QUESTION]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE = (1280, 800)
# A server's answer arrives as the network likes to cut it: here event by event, and no further
# than the first event after which the written text contains `heldAt`.
EVENT_BY_EVENT = """
(fetched => {
  window.heldAt = null;
  async function* cut(response, signal) {
    let written = "", begun = "";
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      const events = (begun + text).split(/(?<=\\n\\n)/);
      begun = events.at(-1).endsWith("\\n\\n") ? "" : events.pop();
      for (const event of events) {
        while (window.heldAt !== null && written.includes(window.heldAt)) {
          signal?.throwIfAborted();
          await new Promise(done => setTimeout(done, 10));
        }
        signal?.throwIfAborted();
        for (const [, part] of event.matchAll(/content":("(?:[^"\\\\]|\\\\.)*")/g)) {
          written += JSON.parse(part);
        }
        yield new TextEncoder().encode(event);
      }
    }
  }
  window.fetch = async (address, options) => {
    const response = await fetched(address, options);
    const type = response.headers.get("content-type") ?? "";
    if (!type.startsWith("text/event-stream")) return response;
    const events = cut(response, options.signal);
    const body = new ReadableStream({ pull: async sink => {
      const { done, value } = await events.next();
      if (done) sink.close();
      else sink.enqueue(value);
    } });
    return new Response(body, response);
  };
})(window.fetch)
"""
TAGS = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def faults() -> list[str]:
    """What the browser's console complains of; a test that expects some clears it."""
    return []


@pytest.fixture
def context(browser: Browser, live: Remote, faults: list[str]) -> Iterator[BrowserContext]:
    """A visitor who samples greedily; in the end nothing was complained of or asked elsewhere."""
    width, height = WIDE
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(1000 * patient(10))
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on(
        "console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None
    )
    context.on("weberror", lambda error: faults.append(str(error.error)))
    context.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    store(context, "localStorage", "settings", {"temperature": "0"})
    context.add_init_script(EVENT_BY_EVENT)
    yield context
    context.close()
    assert faults == []
    assert {url for url in asked if not url.startswith(("http://127.0.0.1:", "data:"))} == set()


@pytest.fixture
def page(context: BrowserContext, live: Remote) -> Page:
    """The page of the shared server."""
    return opened(context, live)


def opened(context: BrowserContext, server: Remote) -> Page:
    page = context.new_page()
    page.goto(server.url)
    return page


def store(context: BrowserContext, storage: str, name: str, value: object) -> None:
    """Let every page of a context begin with a value kept, where it has none yet."""
    name, text = json.dumps(f"fretsaw.{name}"), json.dumps(json.dumps(value))
    context.add_init_script(
        f"if (location.protocol === 'http:' && {storage}.getItem({name}) === null) "
        f"{storage}.setItem({name}, {text})"
    )


def ask(page: Page, question: str = QUESTION) -> None:
    page.get_by_label("Message", exact=True).fill(question)
    page.get_by_role("button", name="Send").click()


def answered(page: Page) -> None:
    """Wait until nothing is written any more."""
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")


def hold(page: Page, at: str) -> None:
    """Let answers come as far as a text and no further, as one sees a large model's come."""
    page.evaluate("text => { window.heldAt = text }", at)


def release(page: Page) -> None:
    """Let them come to their end."""
    page.evaluate("window.heldAt = null")


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


# --- the file -------------------------------------------------------------------------------------


def test_every_part_is_put_in_once() -> None:
    html = ChatPage.assembled().html
    parts = [path for path in FOLDER.iterdir() if path.suffix in (".css", ".js")]
    assert {path.name: html.count(path.read_text(encoding="utf-8")) for path in parts} == {
        path.name: 1 for path in parts
    }
    assert "{{" not in html


def test_the_file_is_one_and_puts_nothing_in_as_markup() -> None:
    html = ChatPage.assembled().html
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    )
    assert re.findall(rf"{sinks}|\beval\(|new Function|srcdoc|setHTML|javascript:", html) == []
    addresses = re.findall(r"https?://[^\s\"')]*", html)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"<link [^>]*href=\"(?!data:)|\bsrc=|@import|url\(", html) == []


def test_its_policy_names_its_script_and_style_and_no_other(live: Remote) -> None:
    response = httpx.get(live.url)
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    changed = ChatPage(response.text.replace('"use strict";', '"use strict"; '))
    assert changed.headers["content-security-policy"] != policy


# --- answers --------------------------------------------------------------------------------------


def test_reasoning_on_is_folded_away_and_apart_from_the_answer(page: Page) -> None:
    expect(page.get_by_role("heading", name="toggled")).to_be_visible()
    hold(page, at="I add")  # at its full speed there would be none to tell
    ask(page)
    expect(page.locator(".trace")).to_contain_text("I add")
    release(page)
    expect(page.locator(".prose")).to_have_text(ANSWER)
    answered(page)
    trace = page.locator(".trace")
    expect(trace).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(trace).to_be_visible()
    assert trace.text_content() == REASONING
    assert re.fullmatch(
        r"Reasoned for [\d.]+ s · \d+ tokens", page.locator(".reasoning summary").inner_text()
    )
    stats = page.locator(".stats").inner_text()
    counts = r"(\d+) tokens · (\d+) of reasoning · [\d,.]+ tokens/s · first after [\d.]+ s"
    found = re.fullmatch(counts, stats)
    assert found, stats
    assert int(found[1]) > int(found[2]) > 0


def test_reasoning_off(page: Page) -> None:
    page.get_by_role("switch", name="Reasoning").click()
    ask(page)
    expect(page.locator(".prose")).to_have_text(ANSWER)
    answered(page)
    expect(page.locator(".reasoning")).to_be_hidden()
    assert "reasoning" not in page.locator(".stats").inner_text()
    page.reload()
    expect(page.get_by_role("switch")).to_have_attribute("aria-checked", "false")


def test_reasoning_is_open_while_it_streams_and_folds_when_the_answer_begins(page: Page) -> None:
    hold(page, at="I add")
    ask(page)
    expect(page.locator(".trace")).to_contain_text("I add")
    expect(page.locator(".trace")).to_be_visible()
    expect(page.locator(".reasoning summary")).to_contain_text("Reasoning ·")
    hold(page, at="It")
    expect(page.locator(".prose")).to_contain_text("It")
    expect(page.locator(".trace")).to_be_hidden()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")


def test_the_readers_own_folding_stays(page: Page) -> None:
    summary = page.locator(".reasoning summary")
    hold(page, at="I add")
    ask(page)
    expect(page.locator(".trace")).to_contain_text("I add")
    summary.click()
    expect(page.locator(".trace")).to_be_hidden()
    summary.click()
    release(page)
    expect(page.locator(".prose")).to_have_text(ANSWER)
    answered(page)
    expect(page.locator(".trace")).to_be_visible()


def test_stop_leaves_what_was_written_and_one_can_go_on(page: Page) -> None:
    hold(page, at="I add")
    ask(page)
    expect(page.locator(".trace")).to_contain_text("I add")
    page.get_by_role("button", name="Stop").click()
    answered(page)
    release(page)
    written = page.locator(".trace").text_content()
    assert written
    assert REASONING.startswith(written.rstrip())
    expect(page.locator(".turn .note")).to_contain_text("Stopped before an answer")
    expect(page.locator(".stats")).to_contain_text("token")  # counted afterwards
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    ask(page, "Name a color.")
    expect(page.locator(".prose").last).to_have_text("Blue.")
    answered(page)
    page.reload()
    assert page.locator(".trace").first.text_content() == written


def test_regenerate(page: Page) -> None:
    ask(page)
    answered(page)
    page.get_by_role("switch", name="Reasoning").click()
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".reasoning")).to_be_hidden()
    expect(page.locator(".prose")).to_have_text(ANSWER)


def test_a_conversation_is_sent_whole_and_survives_a_reload(page: Page) -> None:
    bodies: list[dict] = []
    page.on("request", lambda request: bodies.append(request.post_data_json or {}))
    for question in ("Name a color.", QUESTION):
        ask(page, question)
        answered(page)
    assert bodies[-1]["messages"] == [
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": QUESTION},
    ]
    expect(page.get_by_role("button", name="Regenerate")).to_have_count(1)  # of the last
    shown = page.get_by_role("log").inner_text()
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    assert page.get_by_role("log").inner_text() == shown
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Bring the last conversation back").click()
    assert page.get_by_role("log").inner_text() == shown
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    expect(page.get_by_role("heading", name="toggled")).to_be_visible()


def test_an_answer_that_a_reload_cuts_short_is_kept_as_far_as_it_came(page: Page) -> None:
    address = page.url
    hold(page, at="I add")
    ask(page)
    expect(page.locator(".trace")).to_contain_text("I add")
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator(".trace")).to_contain_text("I add")
    expect(page.locator(".turn .note")).to_contain_text("Stopped")


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_error_is_shown_in_place_and_one_can_go_on(page: Page, faults: list[str]) -> None:
    ask(page, "too long " * CONTEXT)
    alert = page.get_by_role("alert").filter(has_text="Error 400")
    expect(alert).to_contain_text(f"but the context is {CONTEXT}")
    expect(alert).to_be_in_viewport()
    alert.get_by_role("button", name="Try again").click()
    answered(page)
    expect(alert).to_be_visible()
    ask(page)  # the turn without an answer is not sent along
    expect(page.locator(".prose").last).to_have_text(ANSWER)
    answered(page)
    alert.get_by_role("button", name="Edit message").click()
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.get_by_label("Message", exact=True)).to_have_value("too long " * CONTEXT)
    assert all("400 (Bad Request)" in fault for fault in faults)
    assert len(faults) == 2
    faults.clear()


def test_a_key_a_model_without_a_toggle_and_a_server_that_goes(
    context: BrowserContext, toggled: Path, tmp_path: Path, faults: list[str]
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(toggled, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reasoning_toggle": "none"}))
    with remote(folder, "--api-key", "open-sesame") as server:
        page = opened(context, server)
        field = page.get_by_label("This server asks for an API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.locator("#gate-why")).to_contain_text("wrong or missing API key")
        field.fill("open-sesame")
        field.press("Enter")
        expect(field).to_be_hidden()
        switch = page.get_by_role("switch", name="No reasoning switch in this model")
        expect(switch).to_be_disabled()
        ask(page)
        expect(page.locator(".prose")).to_have_text(ANSWER)
        answered(page)
        page.reload()
        expect(page.locator(".prose")).to_have_text(ANSWER)
        expect(field).to_be_hidden()
        assert all("401" in fault for fault in faults)
    faults.clear()
    ask(page)
    expect(page.locator(".turn .fault").last).to_contain_text("does not answer. Is it running?")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert all("ERR_CONNECTION_REFUSED" in fault for fault in faults)
    faults.clear()


def test_markup_stays_text(context: BrowserContext, live: Remote) -> None:
    turn = {"question": TAGS, "reasoning": TAGS, "finish": "stop"}
    content = f"{TAGS}\n\n# {TAGS}\n\n1. {TAGS}\n- `{TAGS}`\n\n```{TAGS[1:6]}\n{TAGS}\n```"
    store(context, "sessionStorage", "turns", [{**turn, "content": content}])
    page = opened(context, live)
    expect(page.locator(".prose")).to_contain_text(TAGS)
    assert page.get_by_text(TAGS).count() >= 6
    assert page.locator(".prose").locator("h3, ol, ul, pre, p").count() == 5
    assert page.locator("#log img, #log script").count() == 0
    page.get_by_role("button", name="New conversation").click()
    ask(page, TAGS)
    answered(page)
    expect(page.locator(".question p")).to_have_text(TAGS)
    assert page.locator("#log img, #log script").count() == 0


# --- how it is used -------------------------------------------------------------------------------


def test_with_the_keyboard_alone(page: Page) -> None:
    field = page.get_by_label("Message", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("What is")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("x")
    expect(field).to_have_value("What is\nx")
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.keyboard.type(" 2 + 3?")
    page.keyboard.press("Tab")
    expect(page.get_by_role("switch")).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    hold(page, at="I add")
    page.keyboard.press("Enter")
    expect(page.locator(".trace")).to_contain_text("I add")
    page.keyboard.press("Escape")
    answered(page)
    expect(field).to_be_focused()
    skip = page.get_by_role("link", name="Skip to the message field")
    expect(skip).not_to_be_in_viewport()
    skip.focus()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(field).to_be_focused()
    page.get_by_role("button", name="Settings").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Settings")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Temperature")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    expect(page.get_by_label("Temperature")).to_be_hidden()


def test_settings_are_checked_kept_and_sent(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    limit = page.get_by_label("Max tokens")
    limit.fill("2.5")
    expect(page.get_by_text("Give a whole number, at least 1.")).to_be_visible()
    ask(page)
    expect(limit).to_be_focused()
    expect(page.locator(".turn")).to_have_count(0)
    limit.fill("14")
    page.get_by_label("Thinking budget").fill("5")
    page.get_by_label("System text").fill("Be brief.")
    page.reload()
    with page.expect_request("**/chat/completions") as sent:
        ask(page)
    body = sent.value.post_data_json or {}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    chosen = {name: body.get(name) for name in ("temperature", "max_tokens", "seed", "top_p")}
    assert chosen == {"temperature": 0, "max_tokens": 14, "seed": None, "top_p": None}
    expect(page.locator(".stats")).to_contain_text("14 tokens")
    expect(page.locator(".turn .note")).to_contain_text("Cut off")


def test_the_picture_of_the_layers(page: Page) -> None:
    page.get_by_role("button", name="Every layer").click()
    panel = page.get_by_role("complementary", name="Layers")
    words = "All of 2 layers keep attention, with 2 KV heads. Feed-forward widths are 128."
    expect(panel.get_by_text(words).first).to_be_visible()
    picture = panel.get_by_role("img", name="The layers of toggled")
    expect(picture.locator("rect.kept")).to_have_count(4)
    widths = [bar.get_attribute("width") for bar in picture.locator("rect.width").all()]
    assert widths == ["130", "130"]
    panel.get_by_text("The same as a table").click()
    expect(panel.get_by_role("row", name="1 2 KV heads 128 wide")).to_be_visible()
    page.get_by_role("button", name="Close layers").click()
    expect(panel).to_be_hidden()


def test_the_theme_is_the_systems_until_one_is_chosen(page: Page) -> None:
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    page.get_by_role("button", name="Dark theme", pressed=True).click()
    assert ground() == light
    page.reload()
    assert ground() == light


@pytest.mark.parametrize("width", [320, 360])
def test_on_a_phone(context: BrowserContext, live: Remote, width: int) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 640})
    word = "Donau" * 12
    page.goto(live.url)
    expect(page.get_by_role("heading", name="toggled")).to_be_visible()
    assert overflow(page) <= 0
    for name in ("Layers", "Settings"):
        page.get_by_role("button", name=name, exact=True).click()
        assert overflow(page) <= 0
        expect(page.get_by_role("main", include_hidden=True)).to_have_attribute("inert", "")
        page.keyboard.press("Escape")
    ask(page)
    expect(page.locator(".prose")).to_have_text(ANSWER)
    answered(page)
    page.locator(".reasoning summary").click()
    assert overflow(page) <= 0
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
    turn = {"question": word, "reasoning": word, "content": f"{word}\n\n```\n{word * 3}\n```"}
    store(context, "sessionStorage", "turns", [{**turn, "finish": "stop"}])
    page = opened(context, live)
    page.set_viewport_size({"width": width, "height": 640})
    page.locator(".reasoning summary").click()
    expect(page.locator(".trace")).to_have_text(word)
    assert overflow(page) <= 0
