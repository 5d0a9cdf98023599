"""The words and signs beside a number that make it part of something else, or of nothing known.

They are read as plain text: `before` ends where the number begins, `after` begins where it ends.
Every pattern is bounded, since both are cut to a fixed length.
"""

import re

_DIGITS = r"[^\s,]*\d[^\s,]*"
_OPEN = r"\d[^\s.:;?!)=\]]*"  # a word with a digit after which the clause goes on
_COUNTED = rf"{_OPEN}(?:[^\S\n]+[A-Za-z]+\.?)"  # 5 apples

# --- names ----------------------------------------------------------------------------------------

_GREEK = (
    r"alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau"
    r"|upsilon|phi|chi|psi|omega"
)
_FUNCTIONS = (
    r"a?r?c?(?:sin|cos|tan|cot|csc)h?|log|ln|lg|exp|sqrt|cbrt|lim|gcd|lcm|det|infinity|infinities"
)
NAMES = rf"{_GREEK}|{_FUNCTIONS}"
_SHORT_UNITS = (
    r"[cmk]?m|[kmM]?gm?s?|[mM]?s|h|l|L|[mcd][lL]|lbs?|oz|ft|in|yds?|mi|hrs?|yrs?|mins?|secs?|[mkr]p[hm]"
    r"|N|J|W|V|A|C|F|k[WVJN]|[kMGT]B|[kMG]?Hz|Pa|rad|deg|cc|sq|cu|pts?|pcs?|qts?|tsp|tbsp"
)
_SCRIPT = r"[^\W\d_A-Za-zͰ-Ͽ]"  # a letter of a script in which nobody names variables
# a word that is a unit or a thing that is counted: no product of variables, such as xy
THING = (
    rf"(?:(?:{_SHORT_UNITS}|of|on|at|to|we|he|no|TVs?)\b\.?"
    rf"|(?!(?:{NAMES}|or|and|than)\b)(?=[^\W\d_]*[aeiouyAEIOUY])[A-Za-z][^\W\d_]{{2,}}"
    rf"|{_SCRIPT}[^\W\d_]*)"
)

# --- measures, counts and shares ------------------------------------------------------------------

MEASURE = (
    r"(?:[cmk]?m|k?g|h|s|lbs?|oz|ft|in|yds?|mi|hrs?|mins?|secs?|inch(?:es)?|foot|feet|yards?|miles?"
    r"|(?:kilo|centi|milli)?(?:met(?:er|re)|gram|lit(?:er|re))s?|pounds?|ounces?|stones?"
    r"|seconds?|minutes?|hours?|days?|weeks?|months?|years?|decades?|dollars?|cents?|euros?|pence"
    r"|degrees?|gallons?|quarts?|pints?|cups?|tens|ones|hundreds|thousands)\b\.?"
)
_SMALL = r"one|two|three|four|five|six|seven|eight|nine"
_CARDINAL = (
    rf"{_SMALL}|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w+)?"
)
_SHARE = (
    r"(?:third|fourth|quarter|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|\w+teenth"
    r"|\w+tieth|hundredth|thousandth|\w+illionth)s?|half|halves"
)
SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7} | {
    "billion": 9,
    "trillion": 12,
}
SCALE = re.compile(rf"\s+({'|'.join(SCALES)})\b", re.IGNORECASE)
# what multiplies or divides a number by what we do not read
_MULTIPLIERS = (
    rf"dozens?|score|gross|(?:{'|'.join(SCALES)})s|tens|myriads?|bn|tn|mn|mil|mill|mln|mio|mrd|milliards?"
    rf"|\w*[qd]uadrillions?|quintillions?|googols?"
    rf"|per\s*(?:mill?e?|hundred|thousand|million|billion)|(?:{_SHARE})(?![\s-]+grade)"
)

# --- before ---------------------------------------------------------------------------------------

_VERB = (
    r"(?:is|are|was|were|be|been|equals?|makes?|made|gives?|gave|leaves?|left|has|have|had|becomes?"
    r"|totals?|yields?|means?|gets?|got|needs?|costs?|answer|total|then|so|thus|hence|therefore)\b"
)
_HEDGE = (
    r"(?:else|maybe|perhaps|possibly|probably|likely|even|rather|alternatively|otherwise|about"
    r"|around|just|also|either|it|is|could|might|may|be|the|a|an)\b"
)
_EACH = r"(?:(?:the|every|each|all|these|those|about|a|an|his|her|their|its|my|our)\s+)?"
_LINK = r"(?:of|per|than|by|into|from|versus|vs\.?|against|choose|over|off|for|to|mod|less|plus)"
SPOILT_BEFORE = re.compile(
    r"[+×÷^±∓√<>≤≥≠/]\s*$"
    r"|[+/]\s*-\s*$|-\s*/?\s*\+\s*$"  # +/-
    r"|(?:^|[\s\w)])[-*]\s+$"
    r"|[\\][A-Za-z]+\s*$"
    r"|[<>!~]=\s*$"
    r"|(?:\bnot|\bnever|n't|\bmod(?:ulo)?|\bbase)[\s-]+$"
    r"|\b(?:or\s+minus|plus-minus|give\s+or\s+take)\s+$"
    r"|\d\S*,?\s+(?:[xX]|or|and|to|plus|minus|times|over|by|point|through)\s+$"
    r"|\d\S*,?\s+(?:or|and)\s+[A-Za-z]\s*=\s*$"
    # two guesses
    rf"|\d\S*(?:[^\S\n]+[A-Za-z]+)?,?[^\S\n]+[(\[]?(?:and/)?or\b[\s,(:]*(?:{_HEDGE}[\s,:]*){{0,4}}$"
    rf"|\d\S*[,;]?[^\S\n]+(?:(?:maybe|perhaps|possibly|probably|alternatively)\b[\s,]*){{1,2}}$"
    r"|\d[^\s;]*;[^\S\n]+$"
    # a comparison, or a function of it
    r"|\bthan[^\S\n]+$|\b(?:at[^\S\n]+(?:least|most)|(?<!rounds\s)(?<!rounded\s)up[^\S\n]+to|as[^\S\n]+\w+[^\S\n]+as)[^\S\n]+$"
    r"|\b(?:twice|thrice|double|triple|quadruple|half)[^\S\n]+$"
    r"|\b(?:divided|multiplied)[^\S\n]+by[^\S\n]+$"
    rf"|(?:\b(?:root|log|square|cube|factorial|percent|reciprocal|inverse|opposite|power|multiple"
    rf"|double|triple|{_SHARE})|%)[^\S\n]+of[^\S\n]+(?:the[^\S\n]+)?$"
    rf"|\b(?:{_FUNCTIONS})[^\S\n]+$|\b(?:power|exponent)[^\S\n]+(?:of[^\S\n]+)?$"
    # several: a compound, a ratio, a share
    r"|\d[^\S\n]*\|+\s*$|\d[^\S\n]+:\s*$|\bratio\b[^.\n]{0,60}\d\s*:\s*$"
    rf"|{_OPEN}(?<!,)[^\S\n]+(?!{_VERB})[A-Za-z]+\.?[^\S\n]+$"
    rf"|{_COUNTED}{{1,2}},?[^\S\n]+(?:and|&)[^\S\n]+$"
    rf"|{_COUNTED}{{0,2}}[^\S\n]+(?:out[^\S\n]+)?(?<!\btotal\s)(?<!\bsum\s){_LINK}[^\S\n]+{_EACH}$"
    rf"|{_COUNTED}?[^\S\n]+(?:out[^\S\n]+of|in)[^\S\n]+{_EACH}$"
    r"|\d\S*[^\S\n]+(?:with[^\S\n]+)?(?:a[^\S\n]+)?(?:remainder|rem\.?|r)[^\S\n]+(?:of[^\S\n]+)?$"
    r"|\d[^\s.:;?!)=\]]*(?<!,)[^\S\n]+$"  # another number: no list that we can read
    rf"|[({{\[]{_DIGITS},\s+$",
    re.IGNORECASE,
)
LIST = re.compile(rf"(?:^|\n|[=:({{\[]|\b(?:is|are|be|either))\s*(?:{_DIGITS},\s+)*{_DIGITS},\s+$")
COMPOUND = re.compile(rf"{_OPEN}\s+{MEASURE},\s+$", re.IGNORECASE)
MEASURED = re.compile(rf"\s+{MEASURE}", re.IGNORECASE)
QUESTION = re.compile(r"\d[^\s?]*\?\s+$")

# --- after ----------------------------------------------------------------------------------------

_VARIABLE = r"(?![mgshLlNJWVACFaI]\b)[A-Za-zα-ωϑϕΓΔΘΛΞΠΣΦΨ](?![\w'’])"
_VARIABLES = (
    r"(?!(?:by|my|cc|cm|m[lmg]|k[mg]|ft|lb|hr|yr|[mkr]p[hm]|kgs|gms?|yrs|hrs|lbs|pts|pcs|sq|cu)\b)"
    r"[b-df-hj-np-tv-z]{2,3}\b"
)
SPOILT_AFTER = re.compile(
    r"\s*(?:[+×÷^/<>≤≥≠±∓√π…\\‰‱]|\*\s)"
    r"|\s+-\s*(?:[A-Za-z]\b|[(\\])"
    rf"|(?i:\s+(?:{_MULTIPLIERS}|{NAMES}|squared|cubed|factorial)\b"
    r"|\s+(?:plus|minus|divided|multiplied|choose|modulo|mod|point|raised)\b|\s+[ap]\.?m\b"
    rf"|\s+(?:over|times)\s+(?!a\b)[A-Za-z]\b|\s+to\s+the\s+(?:power|{_SHARE})\b"
    rf"|(?:\s+[A-Za-z]+)?\s+and\s+(?:(?:an?|\w+)\s+)?(?:{_SHARE})\b"
    rf"|(?:\s+[A-Za-z]+)?\s+and\s+(?:{_CARDINAL}|a\s+bit|change|up|more|above|over|counting)\b"
    r"|\s+(?:\w+\s+)?below\s+zero\b|\s+(?:at\s+(?:least|most)|minimum|maximum)\b"
    r"|\s*\(?(?:in\s+)?(?:base\b|(?:binary|octal|hexadecimal|hex)\b)"
    rf")|[^\S\n]+(?:{_VARIABLE}|{_VARIABLES})"
)
OR_AFTER = re.compile(r",?\s*\(?\bor\b(?!\s+so\b)", re.IGNORECASE)
CARDINAL_AFTER = re.compile(rf"\s+(?:and\s+)?(?:{_CARDINAL})\b", re.IGNORECASE)

# --- a box, or what is expected: nothing else -----------------------------------------------------

# a name, or arithmetic, and = before it, a unit after it
ALONE_BEFORE = re.compile(
    r"(?:(?:[^\W\d]|[ \\{}'_]|(?<=[\w{])\d|\(\w+\))*=|[\d\s+*/×÷^().,-]*=)?"
    r"(?:\s|[-+$*_€£¥₹]|\b(?:the|final|answer|is|negative|minus|about|exactly|USD|EUR)\b:?)*",
    re.IGNORECASE,
)
ALONE_AFTER = re.compile(
    rf"(?:[\s$*_.%°¢€£¥₹]|°[CF]|\b{THING}\.?|\b(?:{'|'.join(SCALES)})\b|\(s\))*"
    r"(?:/[^\W\d_]+)?(?:\^?\{?-?[123²³]\}?)?[\s.$*_]*"
)
