r"""The final number of a text, as an exact fraction. Nothing is evaluated, and every pattern takes linear time.

A number is understood in these forms:

- `7`, `7.0`, `.5`, `7,000`, `7 000`, `-7` (also with a typographic minus, or `minus 7`), `+7`, `1e3`, `1.5 million`,
  `7万`;
- `1/2`, `1 1/2`, `½`, `\frac{1}{2}`: 1/2 is 0.5, and 0.333 is not 1/3;
- `50%`, `50 percent`, `百分之50`: a percentage equals only a percentage, neither 0.5 nor 50;
- each of them in mathematics or bold type (`$7$`, `\(7\)`, `**7**`), beside a currency sign, before a unit: of two
  letters or more where no space is between them (`7kg`, `60km/h`; `7 m`, `12 cm²`, `7 apples`).

What has a digit and is none of these is no number: expressions (`3 + 4`, `9^9^9`, `2\pi`, `3x`), inequalities, times
and ratios (`12:30`), dates, ranges (`3-7`), ordinals (`7th`), versions, `1,2,3`, and whatever is longer than 100
characters. Numbers in words are not read either.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Number(NamedTuple):
    """A value, and whether it is a percentage: 50% is (50, True)."""

    value: Fraction
    percent: bool


def final_number(text: str) -> Number | None:
    r"""The number that a text ends on, or None.

    The last `\boxed{...}` counts, or else what follows the last `####` on its line (how GSM8K marks its answers, arXiv
    2110.14168): see `only_number`. Without either it is the last word that has a digit, whether it is a number or not;
    names (`x1`, `H2O`, `cm^2`) and labels (`step 1`, `Speaker 2`) are passed over.
    """
    marked = _marked(text)
    if marked is not None:
        return _alone(_words(marked))
    return next((_read(word) for word in reversed(_words(text)) if _has_digit(word) and not word[0].isalpha()), None)


def only_number(text: str) -> Number | None:
    r"""The number that a text, or what is marked in it as in `final_number`, consists of; or None.

    An equation's left side, or words that end in `is` or a colon, may precede it and units follow: `x = 7`, `It is 7
    apples.` But `7 or 8` is no number, and neither is `dog 1`.
    """
    marked = _marked(text)
    return _alone(_words(text if marked is None else marked))


_BOXED = "\\boxed{"
_GSM8K = re.compile(r"(?<!#)####((?:[^\w\n#]|\\[a-z]+)*\d[^#\n]*)")
_INTRODUCING = {
    *("is", "are", "was", "were", "be", "equals", "has", "have"),
    *("是", "为", "得", "有", "共", "于"),
}  # fmt: skip


def _marked(text: str) -> str | None:
    """What is in the last box, to the end where it is not closed; else what follows the last `####` and has a digit."""
    start = text.rfind(_BOXED)
    if start >= 0:
        depth, begin = 1, start + len(_BOXED)
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin:place]
        return text[begin:]
    marks = _GSM8K.findall(text)
    return marks[-1] if marks else None


def _alone(words: list[str]) -> Number | None:
    """The one number among the words from the last equals sign on, or None."""
    start = len(words) - words[::-1].index("=") if "=" in words else 0
    with_digits = [place for place in range(start, len(words)) if _has_digit(words[place])]
    if not with_digits:
        return None
    first, *others = with_digits
    introduced = first == start or words[first - 1].casefold() in _INTRODUCING or words[first - 1].endswith(":")
    return _read(words[first]) if introduced and all(words[place][0].isalpha() for place in others) else None


def _has_digit(word: str) -> bool:
    return any(map(str.isdecimal, word))


_PLAIN: dict[int, int | str] = {
    **str.maketrans("−﹣－–＋％＄￥．／＝：０１２３４５６７８９", "----+%$¥./=:0123456789"),
    **{ord(power): f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{
        ord(fraction): rf"\frac{{{above}}}{{{below}}}"
        for fraction, above, below in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True)
    },
}
_FRAC = r"\\[dt]?frac ?(?:\{([^{}]*)\}|(\d)) ?(?:\{([^{}]*)\}|(\d))"
_POWERS_OF_TEN = {
    **{"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12},
    **{"百": 2, "千": 3, "万": 4, "亿": 8},
}

# what people and LaTeX write in several ways, written in one; in this order
_REWRITING = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"<<[^<>\n]*>>|</?(?:think|answer)>", " "),  # GSM8K's notes for a calculator; tags without a partner
        (r"[^\S\n]+", " "),
        # LaTeX
        (r"\\[()\[\]]|\\(?:begin|end) ?\{[^{}]*\}|\\q?quad|\\(?:text|mathrm|mathbf|textbf|mathit|textit) ?\{", " "),
        (r"\\[,!;: ]", ""),
        (r"\{,\}", ","),
        (r"\\([$%])", r"\1"),
        (r"\\(?:times|cdot|div|pm)(?![a-z])", "×"),
        (r"\\approx(?![a-z])", "="),
        (r"(?<=\d) ?" + _FRAC, r"&\1\2/\3\4"),
        (_FRAC, r"\1\2/\3\4"),
        # what surrounds a number
        (r"[-=]>|[→⇒]|\\(?:to|implies|Rightarrow)(?![a-z])", "="),
        (r"\\(?:[lg]eq?|[lg]t|neq?)(?![a-z])", "≠"),
        (r"([<>≤≥≠])=? ?", r"\1"),
        (r" ?[=≈≃≅] ?", " = "),
        (r"(?<=[^\W\d]): ?", ": "),
        (r"\b(?:speaker|step|option|choice|question|problem|example|equation|case) [#(]?\d++(?![.,/]\d)", " "),
        (r"(?<![a-z])[a-z]{1,2}\$(?=\d)", ""),  # US$, A$
        (r"[$€£¥₹] ?", ""),
        # what belongs to it
        (r"百分之 ?([\d./]+)", r"\1%"),
        (r"(?<=\d) ?(?:%|per ?cent(?![a-z]))", "%"),
        *((rf"(?<=\d) ?{word}s?(?![a-z])", f"e{power}") for word, power in _POWERS_OF_TEN.items()),
        (r"(?<![a-z])(?:minus|negative) ?(?=\d)|[负負] ?(?=\d)", "-"),
        (r"(?:(?<=[=:] )|(?<=\bis ))- (?=[\d.])", "-"),  # elsewhere it is a dash
        (r"(?<=\d) (?=\d{3}(?![\d/]))", ","),
        (r"(?<=\d) (?=\d+/\d)", "&"),
        # what makes an expression of it
        (r"(?:(?<=[\d%])|(?<=\d[)}])) ?([-+*/·]) ?(?=[\d.(\\])", r"\1"),
        (r"(?<=\w) (\*\*|[+*]) (?=\w)", r"\1"),
        (r"(?<=\d) : (?=\d)", ":"),
        (r" ?([×÷^±]) ?", r"\1"),
        (r"(?<=\d) (?=\\[a-z]|[π√])", ""),
        # scripts without spaces: Han, kana and their punctuation; Hangul
        (r"([\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\uac00-\ud7a3])", r" \1 "),
        (r"[—…]", " "),
    )
)


def _words(text: str) -> list[str]:
    """The words of a text, rewritten, without the punctuation around them."""
    text = text.translate(_PLAIN)
    for pattern, replacement in _REWRITING:
        text = pattern.sub(replacement, text)
    stripped = (word.lstrip("\"'`*_([{“‘").rstrip("\"'`*_.,;!?)]}”’") for word in text.split())
    return [word for word in stripped if word]


_LONGEST = 100  # characters
_NUMBER = re.compile(
    r"""
    (?P<sign> [-+]? )
    (?:
        (?: (?P<whole> \d+ ) & )? (?P<fraction> \d+ / \d+ )
        | (?P<decimal> (?: \d{1,3} (?: ,\d{3} )+ | \d+ ) (?: \.\d+ )? | \.\d+ ) (?P<power> e[-+]?\d{1,3} )?
    )
    (?P<percent> % )?
    (?P<unit> (?! (?: st | nd | rd | th | pi ) (?![a-z]) ) [a-z]{2,} (?: /[a-z]+ )? (?: \^\d )? | /[a-z]+ | °[cf]? )?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _read(word: str) -> Number | None:
    """The number that a word of `_words` is, or None."""
    match = _NUMBER.fullmatch(word) if len(word) <= _LONGEST else None
    if match is None:
        return None
    if match["fraction"]:
        above, below = map(int, match["fraction"].split("/"))
        if below == 0:
            return None
        value = int(match["whole"] or 0) + Fraction(above, below)
    else:
        value = Fraction(match["decimal"].replace(",", "") + (match["power"] or ""))
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)
