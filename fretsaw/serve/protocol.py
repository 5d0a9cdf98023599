"""Requests as they come over the wire: their fields, what is refused, and why.

Every field is checked before anything runs. A field that would change the answer and that this
server does not do is refused by name; one that changes nothing is let pass.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fretsaw.chat.message import Message, text_of
from fretsaw.chat.reasoning import Mode
from fretsaw.chat.tools import ToolCall, read_arguments
from fretsaw.engine.sampling import (
    MAX_INTEGER,
    MAX_REPETITION_PENALTY,
    MIN_REPETITION_PENALTY,
)
from fretsaw.serve.errors import ApiError, bad_request
from fretsaw.stage.json_text import NotJson

MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE, MAX_PENALTY = 2.0, 2.0  # OpenAI's, far within the engine's
# Bounds of the protocol's numbers, each within what the engine's settings allow.
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
CountFrom1 = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
TopK = Annotated[int, Field(ge=-1, le=MAX_INTEGER)]  # 0 and -1: all
Seed = Annotated[int, Field(ge=-MAX_INTEGER - 1, le=MAX_INTEGER)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, lt=1)]
RepetitionPenalty = Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]  # of presence and frequency
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Fields that other servers know and that leave the answer as it is.
PASSED_OVER = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "priority", "request_id", "cache_salt", "session_id"),
        *("spaces_between_special_tokens", "stream_reasoning", "timings_per_token", "cache_prompt"),
    }
)
# Fields that would change the answer, and what to do instead.
NOT_DONE = {
    "response_format": "structured output is not served; ask for the format in the messages",
    "structured_outputs": "structured output is not served; ask for the format in the messages",
    "guided_json": "structured output is not served; ask for the format in the messages",
    "guided_regex": "structured output is not served; ask for the format in the messages",
    "guided_choice": "structured output is not served; ask for the format in the messages",
    "guided_grammar": "structured output is not served; ask for the format in the messages",
    "grammar": "structured output is not served; ask for the format in the messages",
    "json_schema": "structured output is not served; ask for the format in the messages",
    "chat_template": "the server renders with the checkpoint's own format; leave it out",
    "logit_bias": "tokens are not biased; leave it out",
    "audio": "answers are text; leave it out",
    "modalities": 'answers are text; leave it out or send ["text"]',
    "prediction": "predicted output is not used; leave it out",
    "verbosity": "lengths are not steered; ask for it in the messages",
    "web_search_options": "nothing is searched; leave it out",
    "functions": "send `tools`",
    "function_call": "send `tools` and `tool_choice`",
    "suffix": "text is continued, not filled in; leave it out",
    "best_of": "send `n` and choose",
    "use_beam_search": "answers are sampled; leave it out",
    "length_penalty": "answers are sampled; leave it out",
    "min_tokens": "answers end where they end; leave it out",
    "bad_words": "tokens are not biased; leave it out",
    "include_stop_str_in_output": "a stop string is no part of the answer; leave it out",
    "truncate_prompt_tokens": "prompts are not cut; shorten it yourself",
    "continue_final_message": "a new answer is always begun; leave it out",
    "documents": "put them into the messages",
}
# Values of those fields that mean what is done anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "best_of": (1,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "function_call": ("none",),
    "suffix": ("",),
}


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, raw: Any) -> Any:
        """Take null for a field that is not given, wherever it stands."""
        if not isinstance(raw, dict):
            return raw
        return {name: value for name, value in raw.items() if value is not None}


class _Told(_Fields):
    """Fields of a conversation, where clients send back what servers told them and more."""

    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(_Fields):
    """What a stream tells besides its text."""

    include_usage: bool = False
    include_obfuscation: bool = False  # has no effect: chunks are not padded
    continuous_usage_stats: Literal[False] = False


class GenerationRequest(_Fields):
    """The fields that chat completions and completions share."""

    model: str | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Seed | None = None
    n: CountFrom1 = 1
    stop: Any = ()
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    return_token_ids: bool = False  # of what was generated, the stop token included
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @field_validator("stop")
    @classmethod
    def _as_strings(cls, stop: Any) -> tuple[str, ...]:
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
            raise ValueError("give a string or a list of strings")
        if "" in strings:
            raise ValueError("an empty string would end every answer at once; leave it out")
        return tuple(dict.fromkeys(strings))


class ChatTemplateKwargs(_Fields):
    """The toggle, as templates take it."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class Thinking(_Fields):
    """The toggle, as DeepSeek takes it."""

    type: Literal["enabled", "disabled", "auto"]
    budget_tokens: Count | None = None


class FunctionCall(_Told):
    """The call of one function, its arguments as JSON; none where they are left out or blank."""

    name: str
    arguments: Any = None

    @field_validator("arguments")
    @classmethod
    def _as_object(cls, arguments: Any) -> Mapping[str, Any]:
        try:
            return read_arguments(arguments)
        except NotJson as error:
            raise ValueError(f"{error}; give a JSON object as a string") from error


class CallOfTool(_Told):
    """A tool call that an earlier answer made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int = 0

    def typed(self) -> ToolCall:
        """Return it as the renderer takes it."""
        return ToolCall(self.function.name, self.function.arguments or {}, self.id)


class Turn(_Told):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = ""
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOfTool] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: None = None  # the older form of a call, which would be lost

    @field_validator("content")
    @classmethod
    def _as_text(cls, content: Any) -> str:
        return "" if content is None else text_of(content)

    def typed(self) -> Message:
        """Return it as the renderer takes it; reasoning of earlier answers is for it to drop."""
        role = "system" if self.role == "developer" else self.role
        reasoning = self.reasoning_content if self.reasoning is None else self.reasoning
        calls = tuple(call.typed() for call in self.tool_calls or ())
        return Message(
            role, self.content, reasoning, calls, self.tool_call_id or "", self.name or ""
        )


class Function(_Told):
    """A function that the model may call."""

    model_config = ConfigDict(strict=True, extra="allow")
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] = {}


class Tool(_Told):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class Conversation(_Fields):
    """What is rendered: turns, tools, and the toggle."""

    messages: list[Turn] = Field(min_length=1)
    tools: list[Tool] = []
    tool_choice: Any = "auto"
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    reasoning_effort: str | None = None
    thinking: Thinking | None = None
    add_generation_prompt: bool = True

    @field_validator("reasoning_effort")
    @classmethod
    def _is_effort(cls, effort: str) -> str:
        if effort not in EFFORTS:
            raise ValueError(f"{effort!r} is none of {', '.join(EFFORTS)}")
        return effort

    @field_validator("tool_choice")
    @classmethod
    def _is_free(cls, choice: Any) -> str:
        if choice not in ("auto", "none"):
            raise ValueError("a call can be neither forced nor chosen; send auto or none")
        return choice

    @property
    def mode(self) -> Mode:
        """What the fields ask for; a system text that names a mode itself wins over it."""
        kwargs = self.chat_template_kwargs
        for asked in (kwargs.enable_thinking, kwargs.thinking):
            if asked is not None:
                return "on" if asked else "off"
        if self.thinking is not None and self.thinking.type != "auto":
            return "on" if self.thinking.type == "enabled" else "off"
        return "off" if self.reasoning_effort == "none" else "on"

    @property
    def turns(self) -> list[Message]:
        """The messages as the renderer takes them."""
        return [turn.typed() for turn in self.messages]

    @property
    def offered_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools as the renderer takes them; none where the model may call none."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.model_dump(exclude_none=True) for tool in self.tools)


class ChatRequest(Conversation, GenerationRequest):
    """The body of /v1/chat/completions."""

    max_tokens: CountFrom1 | None = None
    max_completion_tokens: CountFrom1 | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    parallel_tool_calls: bool = True  # has no effect: calls are as the model writes them
    include_reasoning: bool = True
    separate_reasoning: bool = True
    thinking_token_budget: Count | None = None
    thinking_budget_tokens: Count | None = None
    stop_scope: Literal["answer", "all"] = "answer"
    add_generation_prompt: Literal[True] = True
    skip_special_tokens: Literal[True] = True
    echo: Literal[False] = False

    @property
    def thinking_budget(self) -> int | None:
        """Tokens of reasoning at most, by whichever name they are asked for."""
        named = self.thinking.budget_tokens if self.thinking else None
        asked = (self.thinking_token_budget, self.thinking_budget_tokens, named)
        return next((budget for budget in asked if budget is not None), None)


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    prompt: Any
    max_tokens: Count = 16
    echo: bool = False
    logprobs: TopLogprobs | None = None
    add_special_tokens: bool = True
    parse_special: bool = True
    skip_special_tokens: bool = True

    @field_validator("prompt")
    @classmethod
    def _as_prompts(cls, prompt: Any) -> list[str] | list[list[int]]:
        return prompts_of(prompt)


def prompts_of(prompt: Any) -> list[str] | list[list[int]]:
    """Return a prompt in any of its four forms as a list of texts or a list of token ids."""
    wrong = "give a text, a list of texts, a list of token ids, or a list of such lists"
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise ValueError(wrong)
    if not prompt:
        raise ValueError(f"empty; {wrong}")
    if all(isinstance(item, str) for item in prompt):
        return prompt
    lists = [prompt] if all(type(item) is int for item in prompt) else prompt
    for ids in lists:
        if not isinstance(ids, list) or not all(type(id) is int for id in ids):
            raise ValueError(wrong)
        if not ids:
            raise ValueError("an empty list of token ids; give at least one")
    return lists


class TokenizeRequest(Conversation):
    """The body of /tokenize: a prompt, or messages."""

    model: str | None = None
    messages: list[Turn] = []
    prompt: str | None = None
    add_special_tokens: bool = True
    parse_special: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Fields):
    """The body of /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


Body = TypeVar("Body", bound=BaseModel)


def parse(raw: Mapping[str, Any], kind: type[Body]) -> Body:
    """Return a body's fields, checked; raise the refusal that names the first wrong one."""
    given = {name: value for name, value in raw.items() if value is not None}
    for name, value in list(given.items()):
        if name in kind.model_fields:
            continue
        if name in PASSED_OVER:
            del given[name]
        elif name in NOT_DONE:
            if value and value not in _HARMLESS.get(name, ()):
                raise bad_request(f"{name}: {NOT_DONE[name]}", name, "unsupported_parameter")
            del given[name]
        else:
            raise _unknown(name, kind.model_fields)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from error


def _unknown(name: str, fields: Mapping[str, Any]) -> ApiError:
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {near[0]}?" if near else "leave it out"
    return bad_request(f"{name}: no such field; {hint}", name, "unknown_parameter")


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    param, limits = path_of(first["loc"]), first.get("ctx", {})
    match first["type"]:
        case "missing":
            return bad_request(f"{param}: required, but missing", param, "missing_parameter")
        case "extra_forbidden":
            return bad_request(f"{param}: no such field; leave it out", param, "unknown_parameter")
        case "value_error":
            message = first["msg"].removeprefix("Value error, ")
            return bad_request(f"{param}: {message}", param, "invalid_value")
        case "too_short" | "string_too_short":
            return bad_request(f"{param}: empty; give at least one", param, "invalid_value")
        case "greater_than_equal":
            rule = f"give at least {limits['ge']}"
        case "greater_than":
            rule = f"give more than {limits['gt']}"
        case "less_than_equal":
            rule = f"give at most {limits['le']}"
        case "less_than":
            rule = f"give less than {limits['lt']}"
        case "literal_error":
            rule = f"give {limits['expected']}"
        case kind:
            rule = _KINDS.get(kind, first["msg"])
    return bad_request(f"{param}: {_shown(first['input'])}; {rule}", param, "invalid_value")


_KINDS = {
    "int_type": "give an integer",
    "float_type": "give a number",
    "string_type": "give a string",
    "bool_type": "give true or false",
    "list_type": "give a list",
    "dict_type": "give an object",
    "model_type": "give an object",
    "none_required": "leave it out",
}


def path_of(location: Sequence[str | int]) -> str:
    """Return where a field is, such as `messages[0].role`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
