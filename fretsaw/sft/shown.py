"""Conversations token by token: on the terminal with marks and colours, and as an HTML page."""

import html
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

from fretsaw.chat.renderer import Kind, Span
from fretsaw.chat.tokenizer import Tokenizer

MAX_RUN = 60  # tokens shown on the terminal of a stretch of one kind, half from each of its ends
WIDTH = 92  # columns of text beside the mark
MARKS: dict[Kind, str] = {"prompt": "   ", "thinking": ">t>", "answer": ">>>", "calls": ">c>"}
LEGEND = (
    "every token ends with a dot; learnt are answers after >>>, traces after >t>, calls after >c>"
)
_COLOURS: dict[Kind, int] = {"prompt": 2, "thinking": 36, "answer": 32, "calls": 35}  # of ANSI
_VISIBLE = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}
_STYLE = """\
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { white-space: pre-wrap } h2 { font-size: 1.1rem }
.tokens { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
.tokens span { border-right: 1px solid #8886; padding: 1px 0 }
.prompt { color: #777 } .thinking { background: #cfe8ff } .answer { background: #c9f2c9 }
.calls { background: #f3d3f7 } .thinking, .answer, .calls { color: #111 }
.error { color: #b00020 } .warning { color: #8a5a00 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd }
  .error { color: #ff8a80 } .warning { color: #ffcc66 } }
"""


def token_lines(
    spans: Sequence[Span], tokenizer: Tokenizer, *, colour: bool = False
) -> Iterator[str]:
    """Yield the tokens, each stretch of one kind on lines that begin with its mark."""
    marked: list[tuple[Kind, int]] = [
        pair for span in spans for pair in zip(span.kinds, span.token_ids, strict=True)
    ]
    for kind, stretch in groupby(marked, key=_kind_of):
        texts = [visible(tokenizer, id) for _, id in stretch]
        if len(texts) > MAX_RUN:
            half = MAX_RUN // 2
            texts = [*texts[:half], f"[{len(texts) - MAX_RUN:,} more]", *texts[-half:]]
        line = ""
        for text in texts:
            if line and len(line) + len(text) > WIDTH:
                yield _line(kind, line, colour)
                line = ""
            line += f"{text}\u00b7"
        yield _line(kind, line, colour)


def _kind_of(pair: tuple[Kind, int]) -> Kind:
    return pair[0]


def _line(kind: Kind, text: str, colour: bool) -> str:
    plain = f"{MARKS[kind]} {text}"
    return f"\x1b[{_COLOURS[kind]}m{plain}\x1b[0m" if colour else plain


def page(
    title: str,
    findings: Sequence[tuple[str, str]],
    about: Sequence[str],
    examples: Sequence[tuple[str, Sequence[Span]]],
    tokenizer: Tokenizer,
) -> str:
    """Return an HTML page: findings with their class, text, and every example's whole tokens."""
    legend = " ".join(f'<span class="{kind}">{kind}</span>' for kind in MARKS)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f'<p class="{kind}">{html.escape(text)}</p>' for kind, text in findings),
        f"<pre>{html.escape(chr(10).join(about))}</pre>",
        f'<p class="tokens">{legend}; what is no prompt is learnt</p>',
    ]
    for heading, spans in examples:
        tokens = (
            f'<span class="{kind}" title="{id}">{html.escape(visible(tokenizer, id))}</span>'
            for span in spans
            for kind, id in zip(span.kinds, span.token_ids, strict=True)
        )
        parts += [f"<h2>{html.escape(heading)}</h2>", f'<p class="tokens">{"".join(tokens)}</p>']
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>{chr(10).join(parts)}</html>\n"
    )


def visible(tokenizer: Tokenizer, id: int) -> str:
    """Return a token's text with nothing in it that moves the cursor; bytes as they are."""
    raw = tokenizer.token_bytes(id)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # a part of a character
        return "".join(f"<{byte:02x}>" for byte in raw)
    return "".join(_VISIBLE.get(c) or (c if _is_printed(c) else ascii(c)[1:-1]) for c in text)


def _is_printed(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp")
