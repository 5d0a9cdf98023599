"""Which format a checkpoint's conversations are written in, and what ends its turns."""

import json
from pathlib import Path

import foreign
import pytest

from fretsaw.chat.control_tokens import CONTROL_TOKENS
from fretsaw.chat.format import chat_format, require_chat_format, text_ends
from fretsaw.chat.jinja_template import TemplateRefused
from fretsaw.chat.llama3_template import write_chat_template
from fretsaw.chat.message import Message
from fretsaw.chat.nemotron_format import NemotronFormat
from fretsaw.chat.own_format import OwnFormat
from fretsaw.chat.reasoning import Mode
from fretsaw.chat.renderer import ChatFormat
from fretsaw.chat.toggle import TOGGLES
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.chat.tools import ToolCall

CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
R1_TOKENS = ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"]
ASKED = [Message("user", "1 + 1?")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that has the tokens of every format."""
    tokenizer = Tokenizer.train(["some text of every kind"] * 3, 300)
    tokenizer.add_special_tokens([*CONTROL_TOKENS, *CHATML_TOKENS, *R1_TOKENS])
    tokenizer.save(tmp_path)
    return tmp_path


def found(folder: Path, template: str | None = None) -> ChatFormat:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return require_chat_format(folder, Tokenizer.from_folder(folder))


def shown(format: ChatFormat, mode: Mode = "on", messages: list[Message] = ASKED) -> str:
    return format.tokenizer.decode(format.prompt_ids(messages, mode), skip_special=False)


@pytest.mark.parametrize("toggle", TOGGLES)
def test_our_own_template_is_written_by_our_renderer(toggle, folder: Path) -> None:
    write_chat_template(folder, toggle)
    format = found(folder)
    assert isinstance(format, NemotronFormat)
    assert format.toggle == toggle
    assert format.modes == (("off",) if toggle == "none" else ("on", "off"))


@pytest.mark.parametrize(
    ("template", "modes"),
    [
        (foreign.CHATML, ("off",)),
        (foreign.HERMES, ("off",)),
        (foreign.ZEPHYR, ("off",)),
        (foreign.LLAMA_3_1, ("off",)),
        (foreign.R1, ("on",)),
    ],
)
def test_a_checkpoint_with_llama_3s_tokens_is_written_by_its_own_template(
    template: str, modes: tuple[Mode, ...], folder: Path
) -> None:
    format = found(folder, template)
    assert isinstance(format, OwnFormat)
    assert (format.toggle, format.modes) == ("none", modes)
    assert "detailed thinking" not in shown(format)


def test_turns_of_llama_3_that_drop_traces_are_ours_only_where_they_write_alike(
    folder: Path,
) -> None:
    """A template is known by what it writes, not by what stands in it."""
    turns = (
        "{{ bos_token }}{% for turn in messages %}"
        "{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' }}"
        "{{ (turn.content.split('</think>') | last | trim) + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    assert isinstance(found(folder, turns), NemotronFormat)
    other = found(folder, turns.replace("{{ bos_token }}", "{{ bos_token + 'Today: Monday' }}"))
    assert isinstance(other, OwnFormat)
    assert shown(other).startswith("<s>Today: Monday")


def test_without_a_template_the_tokens_tell(folder: Path, tmp_path: Path) -> None:
    assert found(folder).toggle == "v1"
    Tokenizer.train(["some text"], 260).save(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert chat_format(tmp_path, tokenizer) is None
    with pytest.raises(ValueError, match=r"no chat template.* so this is no chat model; tune it"):
        require_chat_format(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (foreign.CHATML, "<|im_end|>"),
        (foreign.HERMES, "<|im_end|>"),
        (foreign.LLAMA_3_1, "<|eot_id|>"),
        (foreign.ZEPHYR, "</s>"),
        (foreign.LLAMA_2, "</s>"),
        (foreign.MISTRAL, "</s>"),
        (foreign.R1, "</s>"),
    ],
)
def test_every_file_that_names_an_end_counts_and_so_does_the_template(
    template: str, end: str, folder: Path
) -> None:
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    format = found(folder, template)
    tokenizer = format.tokenizer
    assert set(format.ends) == {5, 7, 9, tokenizer.token_id("</s>"), tokenizer.token_id(end)}
    assert text_ends(tokenizer, None) == tokenizer.eos_token_ids


def test_a_taught_toggle_is_a_line_of_the_templates_system_turn(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reasoning_toggle": "v1"}))
    format = found(folder, foreign.CHATML)
    assert shown(format, "off") == (
        "<|im_start|>system\ndetailed thinking off<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    told = [Message("system", "Detailed thinking on\nBe brief."), *ASKED]
    assert "system\ndetailed thinking on\n\nBe brief.<|im_end|>" in shown(format, "off", told)
    earlier = [*ASKED, Message("assistant", "<think>\na\n</think>\n\n2"), *ASKED]
    assert "<think>" not in shown(format, "on", earlier)
    spans = format.render([*ASKED, Message("assistant", "2", reasoning="a")], "on")
    learnt = [id for span in spans if span.is_target for id in span.token_ids]
    text = format.tokenizer.decode(learnt, skip_special=False)
    assert text == "<think>\na\n</think>\n\n2<|im_end|>"


@pytest.mark.parametrize("flag", [None, "/think", "/no_think"])
def test_flags_of_a_foreign_template_stand_in_the_system_text(flag, folder: Path) -> None:
    template = (
        "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '</s>' }}{% endfor %}"
        "{% if '/no_think' in messages[0].content %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    )
    format = found(folder, template)
    assert (format.toggle, format.modes) == ("v1.5", ("on", "off"))
    own = [] if flag is None else [Message("system", flag)]
    off = shown(format, "off", [*own, *ASKED])
    assert off.endswith("</think>\n\n") == (flag != "/think")
    assert not shown(format, "on", ASKED).endswith("</think>\n\n")


def test_a_tools_result_names_its_call_where_the_template_asks(folder: Path) -> None:
    template = (
        "{% for turn in messages %}{{ turn.role + turn.get('tool_call_id', '') }}"
        "{{ turn.get('name', '') + turn.content + '</s>' }}{% endfor %}"
    )
    result = Message("tool", "4", tool_call_id="abc", name="add")
    assert shown(found(folder, template), "on", [*ASKED, result]).endswith("toolabcadd4</s>")


def test_what_a_template_would_leave_out_is_refused(folder: Path) -> None:
    format = found(folder, foreign.CHATML)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    with pytest.raises(TemplateRefused, match="tools: this checkpoint's chat template does not"):
        format.prompt_ids(ASKED, "off", tools)
    called = Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1}),))
    with pytest.raises(TemplateRefused, match="tool_calls: this checkpoint's chat template does"):
        format.conversation_ids([*ASKED, called], "off")
    calls = "{% for call in turn.tool_calls %}{{ call.function.name }}{% endfor %}"
    writes = found(folder, "{{ tools }}{% for turn in messages %}" + calls + "{% endfor %}")
    assert writes.conversation_ids([*ASKED, called], "off", tools)


def test_a_broken_template_is_refused_with_its_file_and_line(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"chat_template\.jinja, line 1: no Jinja"):
        found(folder, "{% for turn in %}")
