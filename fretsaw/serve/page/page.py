"""The chat page as it is sent: its parts in one file, and the policy under which it runs."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
_PART = re.compile(r"^\{\{ (.+) \}\}\n", re.MULTILINE)
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class ChatPage:
    """The page's text and the headers it is sent with."""

    html: str

    @classmethod
    def assembled(cls) -> "ChatPage":
        """Return the chat page, its style and scripts put in where page.html names them."""
        return cls(_PART.sub(lambda part: _text(part[1]), _text("page.html")))

    @property
    def headers(self) -> dict[str, str]:
        """Let its own script and style run, by their hashes, and reach this server alone.

        No text becomes markup: a browser that knows Trusted Types refuses what would make it so.
        """
        return {
            "content-security-policy": (
                f"default-src 'none'; script-src {self._hashes('script')}; "
                f"style-src {self._hashes('style')}; img-src data:; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                "require-trusted-types-for 'script'; trusted-types 'none'"
            ),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-cache",
        }

    def _hashes(self, tag: str) -> str:
        texts = [text for found, text in _INLINE.findall(self.html) if found == tag]
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
