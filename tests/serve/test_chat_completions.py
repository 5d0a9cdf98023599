"""Chat completions: the toggle's three switches, the reasoning apart, streams, budgets, stops."""

import json
from pathlib import Path

import pytest
from serving import LESSONS, Local, asking, lesson, local

from fretsaw.chat.llama3_template import chat_template
from fretsaw.chat.own_format import OwnFormat
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sequence import Event
from fretsaw.serve.answer import Answer, Reading
from fretsaw.serve.chat_completions import ChatChoice
from fretsaw.serve.protocol import ChatRequest, parse
from fretsaw.serve.settings import Limits

QUESTION = "What is 2 + 3?"
REASONING, ANSWER = LESSONS[QUESTION]


def deltas(server: Local, **body) -> tuple[list[dict], list[dict]]:
    """Return the chunks of a stream, and the deltas of its first choice."""
    chunks = events(server, "/v1/chat/completions", asking(stream=True, **body))
    return chunks, [c["choices"][0]["delta"] for c in chunks if c["choices"]]


def events(server: Local, path: str, body: dict) -> list[dict]:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def joined(deltas: list[dict], field: str) -> str:
    return "".join(delta.get(field) or "" for delta in deltas)


# --- the toggle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("question", list(LESSONS))
def test_on_is_the_default(server: Local, question: str) -> None:
    choice = server.chat(question)
    reasoning, answer = LESSONS[question]
    assert choice["message"] == {
        "role": "assistant",
        "content": answer,
        "reasoning": reasoning,
        "reasoning_content": reasoning,
    }
    assert choice["finish_reason"] == "stop"


OFF = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"reasoning_effort": "none"},
    {"thinking": {"type": "disabled"}},
    {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
]


@pytest.mark.parametrize("fields", OFF)
@pytest.mark.parametrize("question", [QUESTION, "Hello!"])
def test_three_fields_switch_it_off(server: Local, fields: dict, question: str) -> None:
    message = server.chat(question, **fields)["message"]
    assert (message["content"], message["reasoning"]) == (LESSONS[question][1], None)


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_any_effort_switches_it_on(server: Local, effort: str) -> None:
    assert server.chat(reasoning_effort=effort)["message"]["reasoning"] == REASONING


@pytest.mark.parametrize(("said", "asked"), [("on", False), ("off", True)])
def test_the_system_text_wins_over_the_fields(server: Local, said: str, asked: bool) -> None:
    messages = [
        {"role": "system", "content": f"detailed thinking {said}"},
        {"role": "user", "content": QUESTION},
    ]
    body = asking(chat_template_kwargs={"enable_thinking": asked}) | {"messages": messages}
    message = server.post("/v1/chat/completions", body)["choices"][0]["message"]
    assert message["reasoning"] == (REASONING if said == "on" else None)
    assert message["content"] == ANSWER


def test_a_developer_message_is_a_system_text(server: Local) -> None:
    messages = [
        {"role": "developer", "content": "detailed thinking off"},
        {"role": "user", "content": QUESTION},
    ]
    body = asking() | {"messages": messages}
    assert server.post("/v1/chat/completions", body)["choices"][0]["message"]["reasoning"] is None


def test_reasoning_of_earlier_turns_is_not_fed_back(server: Local) -> None:
    earlier = [
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": "Blue.", "reasoning_content": "A secret."},
        {"role": "user", "content": QUESTION},
    ]
    inline = [earlier[0], {"role": "assistant", "content": lesson("Name a color.", "on")}]
    plain = [earlier[0], {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]}]
    counts = set()
    for messages in (earlier, [*inline, earlier[2]], [*plain, earlier[2]]):
        whole = server.post("/v1/chat/completions", asking() | {"messages": messages})
        counts.add(whole["usage"]["prompt_tokens"])
        assert whole["choices"][0]["message"]["content"] == ANSWER
    assert len(counts) == 1


def test_what_is_not_wanted_is_left_out_or_left_in_place(server: Local) -> None:
    message = server.chat(include_reasoning=False)["message"]
    assert message == {"role": "assistant", "content": ANSWER}
    message = server.chat(separate_reasoning=False)["message"]
    assert message["content"] == lesson(QUESTION, "on")


def test_an_answer_cut_within_its_trace(server: Local) -> None:
    choice = server.chat(max_tokens=8)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert REASONING.startswith(choice["message"]["reasoning"])


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_stream_is_the_same_answer(server: Local, mode: str) -> None:
    effort = {"reasoning_effort": "none" if mode == "off" else "high"}
    chunks, found = deltas(server, **effort)
    whole = server.chat(**effort)
    assert found[0] == {"role": "assistant", "content": ""}
    assert joined(found, "content") == whole["message"]["content"]
    assert joined(found, "reasoning") == (whole["message"]["reasoning"] or "")
    assert joined(found, "reasoning_content") == joined(found, "reasoning")
    assert found[-1] == {}
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1


def test_no_delta_holds_both_kinds_and_the_reasoning_comes_first(server: Local) -> None:
    _, found = deltas(server)
    kinds = [tuple(delta) for delta in found[1:-1]]
    assert set(kinds) == {("reasoning", "reasoning_content"), ("content",)}
    assert kinds == sorted(kinds, reverse=True)
    assert not any("think" in str(delta) for delta in found)


def test_a_stream_without_the_reasoning(server: Local) -> None:
    _, found = deltas(server, include_reasoning=False)
    assert not any("reasoning" in delta for delta in found)
    assert joined(found, "content") == ANSWER


def test_usage_in_a_stream_comes_last_and_only_when_asked(server: Local) -> None:
    chunks, _ = deltas(server, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == server.post("/v1/chat/completions", asking())["usage"]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in deltas(server)[0])


def test_several_answers_in_a_stream(server: Local) -> None:
    body = asking(n=3, stream=True, temperature=1.5, seed=5)
    whole = server.post("/v1/chat/completions", body | {"stream": False})
    texts = dict.fromkeys(range(3), "")
    for chunk in events(server, "/v1/chat/completions", body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {c["index"]: c["message"]["content"] for c in whole["choices"]}


# --- counts, budgets, stops -----------------------------------------------------------------------


def test_usage(server: Local) -> None:
    usage = server.post("/v1/chat/completions", asking())["usage"]
    tokenizer = server.service.model.tokenizer
    ids = tokenizer.encode(lesson(QUESTION, "on"))
    num_trace = next(n for n in range(len(ids)) if "</think>" in tokenizer.decode(ids[:n]))
    assert usage["completion_tokens_details"]["reasoning_tokens"] == num_trace
    assert usage["completion_tokens"] == len(ids) + 1  # with the token that ends the turn
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    asked = {"messages": asking()["messages"]}
    assert server.post("/tokenize", asked)["count"] == usage["prompt_tokens"]
    off = server.post("/v1/chat/completions", asking(reasoning_effort="none"))["usage"]
    assert off["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("budget", [0, 1, 5, 12])
@pytest.mark.parametrize("field", ["thinking_token_budget", "thinking_budget_tokens"])
def test_a_budget_closes_the_trace_and_the_answer_follows(server, field, budget) -> None:
    whole = server.post("/v1/chat/completions", asking(**{field: budget}))
    choice = whole["choices"][0]
    reasoning = choice["message"]["reasoning"]
    tokenizer = server.service.model.tokenizer
    assert REASONING.startswith(reasoning)
    assert len(tokenizer.encode(f"\n{reasoning}")) <= budget + 1
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    # What was put in counts as generated: the trace with its tags is the reasoning's share.
    closing = len(tokenizer.encode("\n</think>\n\n"))
    opening = len(tokenizer.encode("<think>"))
    counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert opening + budget + 1 <= counted <= opening + budget + closing + 1


def test_a_budget_in_a_stream(server: Local) -> None:
    _, found = deltas(server, thinking_token_budget=5)
    message = server.chat(thinking_token_budget=5)["message"]
    assert joined(found, "reasoning") == message["reasoning"]
    assert joined(found, "content") == message["content"]


def test_a_budget_that_is_not_used_changes_nothing(server: Local) -> None:
    assert server.chat(thinking_token_budget=100) == server.chat()
    off = {"reasoning_effort": "none"}
    assert server.chat(thinking_token_budget=2, **off) == server.chat(**off)
    assert server.chat(thinking_token_budget=4, max_tokens=10)["finish_reason"] == "length"


def test_tokens_put_in_are_marked_in_the_log_probabilities(server: Local) -> None:
    entries = server.chat(thinking_token_budget=3, logprobs=True)["logprobs"]["content"]
    forced = [e for e in entries if e.get("forced")]
    assert "".join(e["token"] for e in forced) == "\n</think>\n\n"
    assert {e["logprob"] for e in forced} == {-9999.0}


def test_a_budget_of_the_server(toggled) -> None:
    with local(toggled, limits=Limits(thinking_budget=5)) as server:
        short = server.chat()["message"]["reasoning"]
        assert len(short) < len(REASONING)
        assert server.chat(thinking_token_budget=100)["message"]["reasoning"] == REASONING


def test_stop_strings_do_not_cut_the_trace_unless_asked(server: Local) -> None:
    spared = server.chat(stop=["\n\n"])
    assert spared["message"] == server.chat()["message"]
    assert "\n\n" in spared["message"]["reasoning"]
    cut = server.chat(stop=["\n\n"], stop_scope="all")
    assert cut["message"]["reasoning"] == REASONING.partition("\n\n")[0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("", "stop")


def test_stop_strings_cut_the_answer(server: Local) -> None:
    for body in ({}, {"reasoning_effort": "none"}):
        choice = server.chat(stop=[" is", "5"], **body)
        assert choice["message"]["content"] == "It"
        assert choice["finish_reason"] == "stop"
    _, found = deltas(server, stop=" is")
    assert joined(found, "content") == "It"


def test_the_name_of_the_end_token_is_no_fifth_stop_string(server: Local) -> None:
    assert server.chat(stop=["q", "w", "e", "z", "<|eot_id|>"])["finish_reason"] == "stop"


# --- sampling and log-probabilities ---------------------------------------------------------------


def test_seeds(server: Local) -> None:
    def texts(**body) -> list[str]:
        body = asking(**{"temperature": 2, "n": 3, "max_tokens": 30, **body})
        choices = server.post("/v1/chat/completions", body)["choices"]
        return [c["message"]["reasoning"] or c["message"]["content"] for c in choices]

    first = texts(seed=7)
    assert first == texts(seed=7)
    assert len(set(first)) == 3
    assert first != texts(seed=8)
    assert texts(seed=7, n=1) == first[:1]
    assert texts(seed=-3) == texts(seed=-3)
    assert texts() != texts()


def test_log_probabilities(server: Local) -> None:
    choice = server.chat(logprobs=True, top_logprobs=3)
    entries = choice["logprobs"]["content"]
    text = "".join(e["token"] for e in entries)
    assert text == lesson(QUESTION, "on") + "<|eot_id|>"
    tokenizer = server.service.model.tokenizer
    prompt = server.post("/tokenize", {"messages": asking()["messages"]})["tokens"]
    ids = tokenizer.encode_raw(text)
    expected = server.engine.logprobs([*prompt, *ids])[len(prompt) - 1 :]
    assert [e["logprob"] for e in entries] == pytest.approx(expected, abs=1e-5)
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        best = [top["logprob"] for top in entry["top_logprobs"]]
        assert best == sorted(best, reverse=True)
        assert entry["logprob"] == pytest.approx(best[0])  # it was greedy
    streamed, _ = deltas(server, logprobs=True, top_logprobs=3)
    parts = [c["choices"][0]["logprobs"] for c in streamed]
    assert [e for part in parts if part for e in part["content"]] == entries


def test_penalties_and_filters_reach_the_engine(server: Local) -> None:
    plain = server.chat()
    for body in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.99}):
        assert server.chat(temperature=2, seed=3, **body)["message"] == plain["message"]
    assert server.chat(repetition_penalty=10)["message"] != plain["message"]
    assert server.chat(presence_penalty=2, max_tokens=100)["finish_reason"]


def test_an_answer_may_go_on_past_the_end_token(server: Local) -> None:
    choice = server.chat(ignore_eos=True, max_tokens=60)
    assert choice["finish_reason"] == "length"


# --- other toggles, and tools ---------------------------------------------------------------------


def test_the_toggle_of_v1_5(toggled) -> None:
    with local(toggled, toggle="v1.5") as server:
        assert server.chat()["message"]["reasoning"] == REASONING
        off = server.chat(chat_template_kwargs={"enable_thinking": False})["message"]
        assert (off["content"], off["reasoning"]) == (ANSWER, None)
        _, found = deltas(server, reasoning_effort="none")
        assert joined(found, "content") == ANSWER
        for said, reasoning in (("/no_think", None), ("/think", REASONING)):
            messages = [{"role": "system", "content": said}, *asking()["messages"]]
            body = asking() | {"messages": messages, "reasoning_effort": "low"}
            message = server.post("/v1/chat/completions", body)["choices"][0]["message"]
            assert message["reasoning"] == reasoning


def test_a_model_without_a_toggle_is_read_as_it_writes(toggled) -> None:
    with local(toggled, toggle="none") as server:
        for body in ({}, {"reasoning_effort": "high"}, {"thinking_token_budget": 0}):
            message = server.chat(**body)["message"]
            assert (message["content"], message["reasoning"]) == (ANSWER, None)
        assert server.chat(stop=[" is"])["message"]["content"] == "It"
        assert server.client.get("/v1/models/toggled").json()["reasoning_toggle"] == "none"


TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
]


def choice(server: Local, text: str, **body) -> tuple[ChatChoice, list[dict]]:
    """Return a choice that has taken a text character by character, and its deltas."""
    tokenizer = server.service.model.tokenizer
    answer = Answer(tokenizer, Reading(is_split=True))
    request = parse(asking(**body), ChatRequest)
    made = ChatChoice(0, answer, tokenizer, request, has_tools=bool(request.offered_tools))
    found = []
    for id in [*tokenizer.encode(text), tokenizer.eos_token_ids[0]]:
        reason = "stop" if id in tokenizer.eos_token_ids else None
        event = Event(0, id, -0.1, reason)
        pieces = answer.feed(event)
        made.take(pieces, [event])
        found += made.deltas(pieces)
    return made, found


CALL = '<TOOLCALL>[{"name": "add", "arguments": {"a": 2, "b": [3, "ü"]}}]</TOOLCALL>'


@pytest.mark.parametrize(
    "before", ["", "I will add. ", "<think>\nHm.\n</think>\n\n", "a < b <TOOL "]
)
@pytest.mark.parametrize("num_calls", [1, 2])
def test_tool_calls_are_read_from_the_answer(server: Local, before: str, num_calls: int) -> None:
    made, found = choice(server, before + CALL * num_calls, tools=TOOLS)
    message, reason = made.message()
    assert reason == "tool_calls"
    said = before.partition("</think>")[2].strip() if "think" in before else before.strip()
    assert message["content"] == (said or None)
    assert len(message["tool_calls"]) == num_calls
    call = message["tool_calls"][0]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": 2, "b": [3, "ü"]}
    assert joined(found, "content") == said
    streamed = [c for delta in found for c in delta.get("tool_calls", ())]
    assert [c["index"] for c in streamed] == list(range(num_calls))
    assert [c["function"] for c in streamed] == [c["function"] for c in message["tool_calls"]]
    assert [c["id"] for c in streamed] == [c["id"] for c in message["tool_calls"]]


def test_what_only_looks_like_a_call_is_content(server: Local) -> None:
    for text in ("<TOOLCALL>[{]</TOOLCALL>", "<TOOLCALL>", "1 <TOO"):
        made, found = choice(server, text, tools=TOOLS)
        message, reason = made.message()
        assert (message["content"], reason) == (text, "stop")
        assert joined(found, "content") == text
        assert "tool_calls" not in message
    made, found = choice(server, CALL)  # no tools were offered
    assert made.message()[0]["content"] == joined(found, "content") == CALL


def test_tools_and_their_results_are_rendered(server: Local) -> None:
    asked = asking()["messages"]
    plain = server.post("/tokenize", {"messages": asked})["tokens"]
    offered = server.post("/tokenize", {"messages": asked, "tools": TOOLS})["tokens"]
    text = server.service.model.tokenizer.decode(offered, skip_special=False)
    assert '{"name": "add"' in text
    none = {"messages": asked, "tools": TOOLS, "tool_choice": "none"}
    assert server.post("/tokenize", none)["tokens"] == plain
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        *asked,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    ids = server.post("/tokenize", {"messages": messages})["tokens"]
    text = server.service.model.tokenizer.decode(ids, skip_special=False)
    assert '<TOOLCALL>[{"name": "add", "arguments": {"a": 2}}]</TOOLCALL>' in text
    assert "<TOOL_RESPONSE>[5]</TOOL_RESPONSE>" in text


def test_a_trace_that_the_template_opens_is_told_apart(toggled: Path) -> None:
    tokenizer = Tokenizer.from_folder(toggled)
    opened = chat_template("v1") + "{%- if add_generation_prompt -%}{{ '<think>\n' }}{%- endif -%}"
    format = OwnFormat(
        tokenizer, {"default": opened}, variables={"bos_token": "<s>"}, toggle="none"
    )
    with local(toggled, format=format) as server:
        message = server.chat()["message"]
        assert (message["content"], message["reasoning"]) == (ANSWER, REASONING)
        chunks, found = deltas(server)
        assert (joined(found, "content"), joined(found, "reasoning")) == (ANSWER, REASONING)
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        spared = server.chat(stop=["Two"])["message"]
        assert (spared["content"], spared["reasoning"]) == (ANSWER, REASONING)
        short = server.chat(thinking_token_budget=3)["message"]
        assert len(short["reasoning"]) < len(REASONING)


def test_a_template_refuses_a_conversation_in_its_own_words(toggled: Path) -> None:
    template = "{{ raise_exception('user and assistant must take turns') }}"
    format = OwnFormat(Tokenizer.from_folder(toggled), {"default": template}, variables={})
    with local(toggled, format=format) as server:
        response = server.client.post("/v1/chat/completions", json=asking())
        assert response.status_code == 400
        assert "user and assistant must take turns" in response.json()["error"]["message"]


def test_a_model_without_a_chat_format_says_so(toggled: Path) -> None:
    with local(toggled, format=None) as server:
        response = server.client.post("/v1/chat/completions", json=asking())
        assert response.status_code == 400
        assert "it only continues text; send a prompt" in response.json()["error"]["message"]
        assert server.client.get("/architecture").json()["chats"] is False
