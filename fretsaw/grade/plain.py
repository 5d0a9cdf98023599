"""Numbers as people type them -> plain text: one minus, one space, ASCII digits, no LaTeX.

Nothing is evaluated here, and nothing is brought together that would then read as another number.
"""

import re
import unicodedata
from functools import lru_cache

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2796\ufe58\ufe63"
_SIGNS = {
    **dict.fromkeys(DASHES, "-"),
    **dict.fromkeys("\u2044\u2215", "/"),
    **{"\u066b": ".", "\u066c": ",", "\u3002": ".", "\u3001": ",", "\u2019": "'"},
    **{"\u22c5": "*", "\u00b7": "*", "\u2217": "*"},
}
_MAGNITUDES = set("十百千万萬億亿兆半点點分만억천백십조")  # they change the number before them
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


@lru_cache(maxsize=4096)
def _plain_character(c: str) -> str:
    category = unicodedata.category(c)
    if c in _SIGNS:
        return _SIGNS[c]
    if category == "Nd":
        return str(unicodedata.decimal(c))
    if category == "Zs":
        return " "
    if category in ("Zl", "Zp") or c == "\x85":
        return "\n"
    if category == "Cf" or c in "\ufe0f\u20e3":  # joiners, marks of direction, of emoji
        return ""
    if "\uff01" <= c <= "\uff5e":  # the wide forms of ASCII
        return _SIGNS.get(chr(ord(c) - 0xFEE0), chr(ord(c) - 0xFEE0))
    if unicodedata.decomposition(c).startswith("<fraction>"):
        return rf"\frac{{{unicodedata.normalize('NFKC', c).replace(chr(0x2044), '}{')}}}"
    if category == "Lo" and c not in _MAGNITUDES:  # scripts that put no space beside a number
        return f" {c} "
    return c


_LATEX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>]{0,200}>>", ""),  # GSM8K's calculator
        (r"</?[A-Za-z][^<>\n]{0,40}>", " "),
        (r"\{,\}", ","),
        (r",\\! ?", ","),
        (r"\\!", ""),
        (r"\\(?:left|right|displaystyle|boxed|fbox)(?![A-Za-z])", ""),
        (r"\\(?:[,;:> ]|quad|qquad|enspace|hfill)(?![A-Za-z])|~|&|\\[()\[\]]", " "),
        (r"\\\\", "\n"),
        (r"\\([%$#_])", r"\1"),
        (r"\^ ?\{? ?\\(?:circ|degree)(?![A-Za-z]) ?\}?|\\degree(?![A-Za-z])", "°"),
        (r"\\times(?![A-Za-z])", "×"),
        (r"\\(?:cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\l?dots(?![A-Za-z])", "…"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", " = "),
        (r"\\(?:to|rightarrow|Rightarrow|implies)(?![A-Za-z])", " → "),
        # \text{ cm}^2 keeps its power
        (
            r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|mathit|mbox|emph|rm|bf)"
            r" ?\{([^{}]{0,400})\}( ?\^)?",
            lambda found: f" {found[1].strip()}{'^' if found[2] else ' '}",
        ),
        # after a digit it is the rest of a mixed number; a digit after it is not its own
        (
            r"(\d ?)?\\[dtc]?frac ?(?:\{ ?(-?)([\d,]+) ?\}|(\d)) ?"
            r"(?:\{ ?([\d,]+) ?\}|(\d))(?=(\d)?)",
            lambda f: (
                (f"{f[1][0]} " if f[1] else "")
                + f"{f[2] or ''}{f[3] or f[4]}/{f[5] or f[6]}"
                + (" " if f[7] else "")
            ),
        ),
    )
]


# after a word: a long dash, one between spaces, or any after "answer". After "is" it is a minus
_DASH = re.compile(
    r"(?:(?<=[^\W\d_]{2})|(?<=[^\W\d_]\*\*))(?<!\bis)(?<!\bbe)(?<!\bare)(?<!\bwas)(?<!\bequals)"
    r"(?: ?[—―]+|[ ](?:–|-{2,3})(?= )|(?:(?<=answer)|(?<=result)|(?<=answer\*\*)) -(?= )) ?"
    r"(?=[-+−$€£¥*_\\.\d])",
    re.IGNORECASE,
)


def plain_characters(text: str) -> str:
    """Return the text with ASCII digits and signs for all that mean the same."""
    return re.sub(r"[^\x00-\x7f]", lambda found: _plain_character(found[0]), text)


def plain_text(text: str) -> str:
    """Return the text without LaTeX's commands, fractions of whole numbers written as 3/4."""
    text = plain_characters(_DASH.sub(": ", text))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def joined(text: str) -> str:
    """Return plain text in which a numeral has no spaces: 12 000, 3 / 4 and 1 × 10^3 are one word.

    A mixed number, 1 1/2, becomes 1&1/2.
    """
    text = _THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text)
    text = _FRACTION.sub("/", text)
    text = _MIXED.sub(r"\1&\2", text)
    text = _SCIENTIFIC.sub(lambda found: f"e{_exponent(found)}", text)
    return _POWER_OF_TEN.sub(lambda found: f"1e{_exponent(found)}", text)


def _exponent(found: re.Match[str]) -> str:
    return (found[1] or found[2] or found[3]).translate(_SUPERSCRIPTS)


_THOUSANDS = re.compile(r"(?<![\w.,/'^&])[1-9]\d{0,2}(?: \d{3})+(?!\d| ?/)")
_FRACTION = re.compile(
    r"(?<=\d) ?/ ?(?=\d)|(?<=[A-Za-z]) ?/ ?(?=[A-Za-z])|(?<=\d) ?/ ?(?=[A-Za-z]{3})"
)
_MIXED = re.compile(r"(?<![\w.,/'^&])(\d+) ([1-9]\d*/\d+)(?![\w/^])")
_TEN = r"10(?:\^ ?\{ ?([+-]?\d+) ?\}|\^([+-]?\d+)|([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))(?![\w^]|\.\d)"
_SCIENTIFIC = re.compile(rf"(?<=[\d.]) ?[×*xX] ?{_TEN}")
_POWER_OF_TEN = re.compile(rf"(?<![\w.,/'^&)]){_TEN}")
