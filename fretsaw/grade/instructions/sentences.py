"""How many sentences a text has, in time that grows with its length alone.

The reference asks nltk's Punkt (Kiss & Strunk 2006), whose English model is a download. This rule
decides as Punkt does, word by word, with a short list of abbreviations in place of the model.
"""

import re
from itertools import zip_longest

from fretsaw.grade.instructions.finding import Rules


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CLOSING = "\"'”’»)]}*_`"
_AFTER = ".,;:!?" + _CLOSING
_OPENING = "\"'“‘«([{*_`#>"
_MARK = re.compile(r"^[^\S\n]*\d+[.)](?=\s)", re.MULTILINE)  # 1. or 12) that numbers a line
_LETTER = re.compile(r"[^\W_]")
_NEVER_LAST = _words("mr mrs ms dr prof rev gen capt cpt lt sgt gov hon messrs st mt vs approx eds")
_BEFORE_NUMBERS = _words("no nos vol fig figs p pp ch sec art eq")
_ABBREVIATIONS = _NEVER_LAST | _words(
    "inc ltd co corp jr sr bros dept univ assn ave blvd rd etc e.g i.e cf al viz"
    " a.m p.m u.s u.k u.n u.s.a d.c l.a n.y ph.d m.d b.a m.a b.c a.d jan feb apr jun jul aug"
    " sept sep oct nov dec tue tues thu thur thurs fri ft oz lb lbs"
)
_STARTERS = _words(
    "a an the this that these those he she it we they you i his her its our their my your there"
    " here in on at for from with as if when while after before since but and so yet however"
    " then what who why how where all some many most no not both each one another moreover"
    " although though because despite meanwhile finally first now next"
    " also thus therefore hence such it's let's"
)


def count_sentences(text: str, rules: Rules) -> int:
    """Return the number of sentences; what follows the last full stop is one too.

    The number that begins a line of a list is a sentence to the reference, and so is what has no
    letter or digit. To the repaired rules neither is.
    """
    if rules == "repaired":
        text = _MARK.sub("", text)
    words = text.split()
    count, has_begun = 0, False
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word[-1].isalnum():
            has_begun = True
            continue
        has_begun = has_begun or rules == "reference" or bool(_LETTER.search(word))
        if has_begun and _ends(word, following):
            count, has_begun = count + 1, False
    return count + has_begun


def _ends(word: str, following: str) -> bool:
    """Return whether a sentence ends with a word, given the next one."""
    bare = word.rstrip(_CLOSING)
    if not bare.endswith((".", "!", "?")):
        return False
    if bare[-1] in "!?" or not following:
        return True
    stem, begin = bare[:-1].lstrip(_OPENING), following.lstrip(_OPENING)
    if stem.endswith("."):  # an ellipsis goes on where no capital follows
        return begin[:1].isupper()
    if stem.lower() in _NEVER_LAST or (stem.lower() in _BEFORE_NUMBERS and begin[:1].isdigit()):
        return False
    if stem.lower() in _ABBREVIATIONS or (len(stem) == 1 and stem.isalpha()):
        return begin[:1].isupper() and begin.rstrip(_AFTER).lower() in _STARTERS
    return not (stem.isdecimal() and begin[:1].islower())
