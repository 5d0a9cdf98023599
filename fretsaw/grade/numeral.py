"""One number in a text: which one it is, and its exact value.

A number within an expression, a list, a range, a date or a version is none that an answer ends on.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from fretsaw.grade.plain import joined, plain_text

MAX_DIGITS = 4000  # of a number, and the largest exponent: what has more is no answer
CONTEXT = 160  # characters on either side of a number that decide what it is part of

# --- one word -------------------------------------------------------------------------------------

_UNITS = r"[mck]m|[kKm]g|m[lL]|lbs?|oz|ft|in|yd|mi|hrs?|mins?|secs?|mph|kph"
_NUMERAL = re.compile(
    r"(?P<sign>[+-]?)(?:[A-Z]{0,2}[$€£¥₹])?(?P<sign_after>[+-]?)(?:"
    r"(?P<whole>\d+)&(?P<top>\d+)/(?P<bottom>\d+)"
    r"|(?P<over>\d[\d,']*)/(?P<under>\d[\d,']*)"
    r"|(?P<units>\d[\d,']*)?(?:\.(?P<decimals>\d*))?(?:[eE](?P<exponent>[+-]?\d+))?"
    rf")(?:%|°[CF]?|[¢$€£¥₹]|(?:{_UNITS})(?:\^?[23²³])?)?"
)
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?:'\d{3})+)|[1-9]\d?(?:,\d\d)+,\d{3}|\d+")


def numeral_value(word: str) -> Fraction | None:
    """Return the exact value of a word that is a numeral, None where it is none."""
    found = _NUMERAL.fullmatch(word) if len(word) <= MAX_DIGITS else None
    if found is None or (found["sign"] and found["sign_after"]):
        return None
    sign = -1 if "-" in (found["sign"], found["sign_after"]) else 1
    if found["whole"]:
        whole, top, bottom = (int(found[name]) for name in ("whole", "top", "bottom"))
        return sign * (whole + Fraction(top, bottom)) if top < bottom else None
    if found["over"]:
        over, under = _whole_number(found["over"]), _whole_number(found["under"])
        return sign * Fraction(over, under) if over is not None and under else None
    decimals, exponent = found["decimals"] or "", int(found["exponent"] or 0)
    units = _whole_number(found["units"] or "0")
    if units is None or not (found["units"] or decimals) or abs(exponent) > MAX_DIGITS:
        return None
    return sign * (units + Fraction(int(decimals or "0"), 10 ** len(decimals))) * _ten(exponent)


def _whole_number(text: str) -> int | None:
    """Return a whole number, its thousands set apart or not."""
    is_known = _GROUPED.fullmatch(text) is not None
    return int(text.replace(",", "").replace("'", "")) if is_known else None


def _ten(exponent: int) -> Fraction:
    return Fraction(10**exponent) if exponent >= 0 else Fraction(1, 10**-exponent)


# --- what stands beside it ------------------------------------------------------------------------

_WORD = re.compile(r"\S+")
_UNIT_POWER = re.compile(
    r"(?:k?m|[cm]m|in|ft|yd|mi|units?|inches|feet|met(?:er|re)s?)\^?\{?[23]\}?"
)
_OPENING, _CLOSING = "*_\"'“”‘`({$#:≈", "*_\"'“”`)}.,;:?!$"

_LABEL = re.compile(r"[^\d\\√^]*[A-Za-z*]:|[-=]+>|[→⇒]")  # answer:7, ->7
_ARROW = re.compile(r"(?:[-=]+>|[→⇒])\s*$")
_SIGN = re.compile(
    r"(?:^|[=:→⇒(])\s*([+-])\s*$|\bnegative\s+$|(?:^|[^\d\s]\s+)minus\s+$", re.IGNORECASE
)
_BULLET = re.compile(r"(?:^|\n)\s*[-+*•]\s+$")
_NUMBER = r"[^\s,]*\d[^\s,]*"
_LIST = re.compile(rf"(?:^|\n|[=:({{\[]|\b(?:is|are|be|either))\s*(?:{_NUMBER},\s+)*{_NUMBER},\s+$")
_SPOILT_BEFORE = re.compile(
    r"[+×÷^±√<>≤≥≠/]\s*$"
    r"|(?:^|[\s\w)])[-*]\s+$"
    r"|[\\][A-Za-z]+\s*$"
    r"|[<>!~]=\s*$|(?:\bnot|n't|\bmod)\s+$"
    r"|\d\S*,?\s+(?:[xX]|or|and|to|plus|minus|times|over|by|point|through)\s+$"
    r"|\d\S*,?\s+(?:or|and)\s+[A-Za-z]\s*=\s*$"
    r"|\b(?:divided|multiplied)\s+by\s+$|\b(?:root|log|half|square|cube|factorial)\s+of\s+$"
    r"|\b(?:sin|cos|tan|log|ln|exp|sqrt|lim)\s+$"
    r"|\d[^\s.:;?!)=\]]*(?<!,)[^\S\n]+$"  # another number: no list that we can read
    rf"|[({{\[]{_NUMBER},\s+$",
    re.IGNORECASE,
)
_SPOILT_AFTER = re.compile(
    r"\s*(?:[+×÷^/<>≤≥≠±√π…\\]|\*\s)"
    r"|\s+-\s*(?:[A-Za-z]\b|[(\\])"
    r"|\s+(?:half|halves|squared|cubed|factorial)\b"
    r"|\s+and\s+(?:a|one|three)\s+(?:half|third|quarter|fourth|fifth|sixth|eighth|tenth)"
    r"|[^\S\n]+(?![mgshLlNJWVACFKaI]\b)[A-Za-z](?![\w'])"  # a variable
)
_SCALE = re.compile(r"\s+(hundred|thousand|lakh|million|crore|billion|trillion)\b", re.IGNORECASE)
_POWERS = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7} | {
    "billion": 9,
    "trillion": 12,
}
# in a box: a name, or arithmetic, and = before it, a unit after it
_ALONE_BEFORE = re.compile(
    r"(?:(?:[^\W\d]|[ \\{}'_]|(?<=[\w{])\d|\(\w+\))*=|[\d\s+*/×÷^().,-]*=)?"
    r"(?:\s|[-+$*_€£¥₹]|\b(?:the|final|answer|is|negative|minus|about|exactly|USD|EUR)\b:?)*",
    re.IGNORECASE,
)
_ALONE_AFTER = re.compile(
    r"(?:[\s$*_.%°¢€£¥₹]|°[CF]|[^\W\d_aI]|[^\W\d_]{2,}\.?|\(s\))*"
    r"(?:/[^\W\d_]+)?(?:\^?\{?[23²³]\}?)?[\s.$*_]*"
)


@dataclass(frozen=True)
class Number:
    """A word with digits and what stands before and after it."""

    before: str
    word: str
    after: str

    @property
    def shown(self) -> str:
        """The word as evidence."""
        return self.word.replace("&", " ").rstrip(_CLOSING).lstrip(_OPENING)

    def value(self, *, is_whole: bool) -> Fraction | None:
        """Return the exact value, None where it is no number of its own.

        With `is_whole` there may be nothing else than `x =` before and a unit after it.
        """
        closes = self.word.rstrip(_CLOSING) != self.word.rstrip(
            "*_$}\"'”"
        )  # a clause, or a bracket
        word = _core(self.word)
        value = None if word is None or (is_whole and "!" in self.word) else numeral_value(word)
        if value is None or (is_whole and not self._is_alone()):
            return None
        if not closes and _SPOILT_AFTER.match(self.after):
            return None
        scale = None if closes else _SCALE.match(self.after)
        power = 10 ** _POWERS[scale[1].lower()] if scale else 1
        sign = 1 if "=" in self.word else self._sign(is_whole)
        return None if sign is None else sign * value * power

    def _sign(self, is_whole: bool) -> int | None:
        """Return the sign that stands apart from the number, None where it is part of more."""
        before = _ARROW.sub(": ", self.before)
        if _BULLET.search(before) and (is_whole or "\n" not in (before + self.after).strip()):
            return -1 if before.strip() == "-" else 1
        if _BULLET.search(before):
            return None if before.rstrip().endswith("-") else 1
        if sign := _SIGN.search(before):
            return 1 if sign[1] == "+" else -1
        return None if _SPOILT_BEFORE.search(before) or _LIST.search(before) else 1

    def _is_alone(self) -> bool:
        before = self.before + "".join(self.word.rpartition("=")[:2])
        return bool(_ALONE_BEFORE.fullmatch(before) and _ALONE_AFTER.fullmatch(self.after))


def _core(word: str) -> str | None:
    """Return a word without what decorates it and `x=`; None where that would change it."""
    if word.endswith("..") or "…" in word:
        return None
    if re.search(r"[(\[{]", word) and "," in word:  # (1,200) is a point, [1,200] an interval
        return None
    word = word.strip("[]") if word.startswith("[") and word.endswith("]") else word
    word = word.rstrip(_CLOSING)
    before, equals, rest = word.rpartition("=")
    if equals and before.endswith(("<", ">", "!", "~")):
        return None
    label = _LABEL.match(rest)
    return rest[label.end() if label else 0 :].lstrip(_OPENING)


def last_number(text: str) -> Number | None:
    """Return the last word that has a digit; powers of units, as in 12 cm^2, are none."""
    plain = joined(plain_text(text))
    found = [word for word in _WORD.finditer(plain) if any(map(str.isdecimal, word[0]))]
    while found and _UNIT_POWER.fullmatch(found[-1][0].strip(_OPENING + _CLOSING)):
        found.pop()
    if not found:
        return None
    start, end = found[-1].span()
    return Number(plain[max(0, start - CONTEXT) : start], found[-1][0], plain[end:][:CONTEXT])


def read_number(text: str) -> Fraction | None:
    """Return the exact value of a text that is one number: 1,200.50, 3/4, x = 7 cm; else None."""
    number = last_number(text) if len(text) <= 2 * MAX_DIGITS else None
    return None if number is None else number.value(is_whole=True)
