"""One number in a text: which one it is, and its exact value.

A number within an expression, a list, a range, a date or a version is none that an answer ends on.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from fretsaw.grade import neighbours
from fretsaw.grade.plain import joined, plain_text

MAX_DIGITS = 4000  # of a number, and the largest exponent: what has more is no answer
MAX_READ = 1000  # numerals of a text that have a value and do not stand alone
CONTEXT = 160  # characters on either side of a number that decide what it is part of

# --- one word -------------------------------------------------------------------------------------

_UNITS = r"[mck]m|[kKm]g|m[lL]|lbs?|oz|ft|in|yd|mi|hrs?|mins?|secs?|mph|kph"
_NUMERAL = re.compile(
    r"(?P<sign>[+-]?)(?:[A-Z]{0,2}[$€£¥₹])?(?P<sign_after>[+-]?)(?:"
    r"(?P<whole>\d+)&(?P<top>\d+)/(?P<bottom>\d+)"
    r"|(?P<over>\d[\d,']*)/(?P<under>\d[\d,']*)"
    r"|(?P<units>\d[\d,']*)?(?:\.(?P<decimals>\d*))?(?:[eE](?P<exponent>[+-]?\d+))?"
    rf")(?:%|°[CF]?|[¢$€£¥₹]|(?:{_UNITS})(?:\^?[23²³])?"
    rf"|/(?:hr|yr|kg|lb|oz|mi|km|cm|ft|(?!(?:{neighbours.NAMES}|half|two|three)\b)[A-Za-z]{{3,}}))?"
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
_AREA = r"(?:k?m|[cm]m|in|ft|yd|mi|units?|inches|feet|met(?:er|re)s?)"
_UNIT_POWER = re.compile(
    rf"(?:{_AREA}|[A-Za-z]{{1,12}}(?:\^?[23])?/(?:{_AREA}|s|secs?|h|hrs?|mins?))\^?\{{?-?[123]\}}?"
)
_OPENING, _CLOSING = "*_\"'“”‘`({$#:≈", "*_\"'“”`)}.,;:?!$"

_LABEL = re.compile(r"[^\d\\√^]*[A-Za-z*]:|[-=]+>|[→⇒]")  # answer:7, ->7
_ARROW = re.compile(r"(?:[-=]+>|[→⇒])\s*$")
_SIGN = re.compile(
    r"(?:^|[=:→⇒(]|\b(?:is|are|be|was|equals?)[^\S\n])\s*([+-])\s*$"
    r"|\bnegative\s+$|(?:^|[^\d\s](?<!\bor)\s+)minus\s+$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:^|\n)\s*[-+*•]\s+$")


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

    @property
    def unit(self) -> str:
        """The sign of percent or of a currency that makes it another number, if there is one."""
        if "%" in self.word or _PERCENT.match(self.after):
            return "%"
        currency = _CURRENCY.match(self.word)
        return currency[1] if currency else ""

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
        if neighbours.OR_AFTER.match(self.after):
            return None
        power = 1 if closes else self._power()
        sign = 1 if "=" in self.word else self._sign(is_whole)
        return None if sign is None or power is None else sign * value * power

    def _power(self) -> int | None:
        """Return by what the words after it multiply it, None where they make it another's."""
        power, after = 0, self.after
        while scale := neighbours.SCALE.match(after):
            power, after = power + neighbours.SCALES[scale[1].lower()], after[scale.end() :]
        if neighbours.SPOILT_AFTER.match(after):
            return None
        return None if power and neighbours.CARDINAL_AFTER.match(after) else 10**power

    def _sign(self, is_whole: bool) -> int | None:
        """Return the sign that stands apart from the number, None where it is part of more."""
        before = _ARROW.sub(": ", self.before)
        if _BULLET.search(before) and (is_whole or "\n" not in (before + self.after).strip()):
            return -1 if before.strip() == "-" else 1
        if _BULLET.search(before):
            return None if before.rstrip().endswith("-") else 1
        if sign := _SIGN.search(before):
            return 1 if sign[1] == "+" else -1
        return None if self._is_one_of_several(before) else 1

    def _is_one_of_several(self, before: str) -> bool:
        return bool(
            neighbours.SPOILT_BEFORE.search(before)
            or neighbours.LIST.search(before)
            or (self.word.startswith(":") and before.rstrip()[-1:].isdigit())
            or ("?" in self.word and neighbours.QUESTION.search(before))
            or (neighbours.COMPOUND.search(before) and neighbours.MEASURED.match(self.after))
        )

    def _is_alone(self) -> bool:
        before = self.before + "".join(self.word.rpartition("=")[:2])
        return bool(
            neighbours.ALONE_BEFORE.fullmatch(before)
            and neighbours.ALONE_AFTER.fullmatch(self.after)
        )


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
    return Number(plain[max(0, start - CONTEXT) : start], found[-1][0], plain[end : end + CONTEXT])


def read_number(text: str) -> Fraction | None:
    """Return the exact value of a text that is one number: 1,200.50, 3/4, x = 7 cm; else None."""
    number = last_number(text) if len(text) <= 2 * MAX_DIGITS else None
    return None if number is None else number.value(is_whole=True)


# --- the numbers of a text ------------------------------------------------------------------------

_CURRENCY = re.compile(r"[-+(*_\"]*([$€£¥₹])(?!.*\$[.,;:?!*_)\"]*$)")  # $3, and not $3$
_PERCENT = re.compile(r"\s*(?:%|per\s?cent\b)")


def bare_number(text: str) -> tuple[Fraction, str] | None:
    """Return the value and the unit (%, $ or none) of a text that is a numeral, else None."""
    if any(map(str.isalpha, text)) or (value := read_number(text)) is None:
        return None
    number = last_number(text)
    assert number is not None, "it was just read"
    return value, number.unit


_TIMES = {Fraction(10**power) for power in range(CONTEXT)}


def says_number(text: str, wanted: tuple[Fraction, str], *, is_alone: bool = True) -> bool:
    """Whether any number of a text has this value and unit, and with `is_alone` stands alone."""
    plain, left = joined(plain_text(text)), MAX_READ
    for found in _WORD.finditer(plain):
        if not any(map(str.isdecimal, found[0])) or not _may_be(found[0], wanted[0]):
            continue
        start, end = found.span()
        number = Number(
            plain[max(0, start - CONTEXT) : start], found[0], plain[end : end + CONTEXT]
        )
        value = number.value(is_whole=False)
        if value == wanted[0] and number.unit == wanted[1]:
            return True
        if value is None and not is_alone:
            return True
        left -= 1
        if not left:
            break
    return False


def _may_be(word: str, wanted: Fraction) -> bool:
    """Whether a word has the value, but for its sign and the words after it that multiply it."""
    core = _core(word) if len(word) <= MAX_DIGITS else None
    value = None if core is None else numeral_value(core)
    if not value:
        return value == wanted
    times = abs(wanted / value)
    return times in _TIMES
