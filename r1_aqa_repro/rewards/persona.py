"""Role play by a rubric: a YAML file of named, weighted demands on the text of a completion.

    parts:
      keeps_the_lamp: {weight: 1.0, required: [lamp, fog]}
      stays_in_role: {weight: 2.0, forbidden: [as an AI, language model]}
      speaks_as_i: {weight: 0.5, first_person: 0.3}
      in_english: {weight: 0.5, language: en}
      brief: {weight: 0.5, length: {min_words: 20, max_words: 80}}

Each part makes exactly one demand and meets it to a degree from 0 to 1:

- `required`: a list of phrases; the share of them that occur.
- `forbidden`: a list of phrases; 1 if not one of them occurs.
- `first_person`: `true`, or a share from 0 to 1; 1 if a sentence, or at least this share of the sentences, has `I`,
  `me`, `my`, `mine`, `myself` or 我 (but not 我们, we).
- `language`: `en` or `zh`; the share of the letters that are of its script, Latin or Han. It tells the script, not the
  language: French counts as `en`, and the kanji of a Japanese text as `zh`.
- `length`: some of `min_words`, `max_words`, `min_characters`, `max_characters`, all inclusive; 1 if the text keeps to
  them. Words stand between white space, which Chinese does without: give characters there.

The reward is the sum of weight times degree, and 0 for an empty text. It sees only the surface of a text: a list of the
required phrases with an `I` before it gets full marks. Use it beside a reward that reads the text.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.data.answers import fold
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.rewards.rules import Completion, RewardFunction, completion_text

Degree = Callable[[str], float]  # how well a text meets a demand, 0 to 1

# of scripts that set no space between words, or write more onto them: Thai, Lao, Myanmar, Khmer, kana, Han, Hangul
_NO_END = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = rf"[^\W{_NO_END}]"  # a character of a word that has an end
_APOSTROPHES = str.maketrans("‘’ʼ`´", "'''''")
_SENTENCE_ENDS = re.compile(r"(?<![.!?…])[.!?…]+(?=\W|$)|[。！？\n]")
_FIRST_PERSON = re.compile(rf"(?<!{_WORD})(?:i(?!\.e\b)|me|my|mine|myself)(?!{_WORD})|我(?!们|們)")
_SCRIPTS = {"en": "LATIN", "zh": "CJK"}  # how the Unicode names of the letters begin
_LIMITS = ("min_words", "max_words", "min_characters", "max_characters")


Rubric = dict[str, tuple[float, Degree]]  # weight and demand of each part by name, in the order of the file


def persona_reward(rubric_file: str) -> RewardFunction:
    """The reward function of a rubric (see `read_rubric`). It logs the mean of every part as `persona/<name>`."""
    rubric = read_rubric(rubric_file)

    def persona_reward(
        completions: Sequence[Completion], log_metric: Callable[[str, float], None] | None = None, **_: Any
    ) -> list[float]:
        """The sum of a rubric's parts, of the whole completion with whatever tags it has."""
        parts = [persona_parts(completion_text(completion), rubric) for completion in completions]
        if log_metric is not None:  # TRL's, while training
            for name in rubric:
                log_metric(f"persona/{name}", sum(values[name] for values in parts) / len(parts))
        return [sum(values.values()) for values in parts]

    return persona_reward


def persona_parts(text: str, rubric: Rubric) -> dict[str, float]:
    """The reward of a text by the parts of a rubric: weight times degree, or 0 for an empty text."""
    return {name: weight * degree(text) if text.strip() else 0.0 for name, (weight, degree) in rubric.items()}


def read_rubric(path: str) -> Rubric:
    """Read a rubric.

    Raises:
        Refused: the file cannot be read; or with everything in it that is wrong.
    """
    content = read_yaml(path)
    parts: Any = content.get("parts")
    found = f"the keys {', '.join(map(str, content))}" if content else "nothing"
    is_rubric = set(content) == {"parts"} and isinstance(parts, dict) and parts
    _require(is_rubric, path, f"expected `parts:` with at least one part in it, found {found}", _EXAMPLE)
    rubric: Rubric = {}
    problems: list[Problem] = []
    for name, part in parts.items():
        wrong: list[Problem] = []
        with collecting(wrong):
            _require(isinstance(name, str), "", "the name is no text", "Put it into quotation marks.")
            rubric[name] = _part(part)
        problems += [replace(each, where=f"{path}: parts.{name}{each.where}") for each in wrong]
    if problems:
        raise Refused(problems)
    return rubric


def phrases_in(text: str, phrases: Sequence[str]) -> list[str]:
    """The phrases that a text contains, in any case and with any white space, but not as a part of longer words.

    `I` is not in `It`. In scripts without spaces between words, such as Chinese, a phrase is found anywhere.
    """
    folded = plain(text)
    return [phrase for phrase in phrases if _pattern(phrase).search(folded)]


def plain(text: str) -> str:
    """A text as phrases are looked for in it: `answers.fold`, and one kind of apostrophe."""
    # before folding: NFKC makes a space and a combining accent of ´
    return fold(text.translate(_APOSTROPHES))


@functools.cache
def _pattern(phrase: str) -> re.Pattern[str]:
    wanted = plain(phrase)
    begin = rf"(?<!{_WORD})" if re.match(_WORD, wanted[:1]) else ""
    end = rf"(?!{_WORD})" if re.match(_WORD, wanted[-1:]) else ""
    return re.compile(begin + re.escape(wanted) + end)


def _require(sound: object, where: str, what: str, remedy: str) -> None:
    if not sound:
        raise Refused.because(where, what, remedy)


def _part(content: Any) -> tuple[float, Degree]:
    _require(isinstance(content, dict), "", f"{content!r} is no part", _EXAMPLE)
    demands = [key for key in content if key != "weight"]
    for key in demands:
        _require(key in _DEMANDS, f".{key}", "there is no such key", f"Choose among weight, {', '.join(_DEMANDS)}.")
    what = f"{len(demands)} demands ({', '.join(demands) or 'none'})"
    _require(len(demands) == 1, "", what, f"Make exactly one of {', '.join(_DEMANDS)} in each part.")
    weight = content.get("weight")
    is_weight = _is_number(weight) and 0 < weight <= sys.float_info.max
    _require(is_weight, ".weight", "absent" if weight is None else f"{weight!r}", "Give a number above 0.")
    return float(weight), _DEMANDS[demands[0]](content[demands[0]])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _required(phrases: Any) -> Degree:
    _require_phrases("required", phrases)
    return lambda text: len(phrases_in(text, phrases)) / len(phrases)


def _forbidden(phrases: Any) -> Degree:
    _require_phrases("forbidden", phrases)
    return lambda text: float(not phrases_in(text, phrases))


def _require_phrases(key: str, value: Any) -> None:
    are_texts = isinstance(value, list) and value and all(isinstance(text, str) and plain(text) for text in value)
    _require(are_texts, f".{key}", f"{value!r}", "Give a list of texts, such as [lamp, fog].")


def _first_person(value: Any) -> Degree:
    is_share = value is True or (_is_number(value) and 0 < value <= 1)
    remedy = "Give true, or a share of the sentences above 0, at most 1."
    _require(is_share, ".first_person", f"{value!r}", remedy)

    def degree(text: str) -> float:
        sentences = [part for part in map(plain, _SENTENCE_ENDS.split(text)) if any(map(str.isalpha, part))]
        speaking = sum(_FIRST_PERSON.search(sentence) is not None for sentence in sentences)
        return float(speaking > 0 and (value is True or speaking / len(sentences) >= value))

    return degree


def _language(value: Any) -> Degree:
    script = _SCRIPTS.get(str(value))
    _require(script is not None, ".language", f"{value!r}", f"Choose among {', '.join(_SCRIPTS)}.")

    def degree(text: str) -> float:
        letters = [letter for letter in plain(text) if letter.isalpha()]
        ours = sum(unicodedata.name(letter, "").startswith(str(script)) for letter in letters)
        return ours / len(letters) if letters else 0.0

    return degree


def _length(value: Any) -> Degree:
    known = f"Give some of {', '.join(_LIMITS)}."
    _require(isinstance(value, dict) and value, ".length", f"{value!r}", known)
    for key, limit in value.items():
        _require(key in _LIMITS, f".length.{key}", "there is no such key", known)
        _require(type(limit) is int and limit >= 0, f".length.{key}", f"{limit!r}", "Give a whole number.")
    for unit in ("words", "characters"):
        low, high = value.get(f"min_{unit}", 0), value.get(f"max_{unit}", sys.maxsize)
        _require(low <= high, ".length", f"min_{unit} {low} is above max_{unit} {high}", "No text is both.")

    def degree(text: str) -> float:
        sizes = {"words": len(text.split()), "characters": len(text.strip())}
        return float(
            all(value.get(f"min_{unit}", 0) <= size <= value.get(f"max_{unit}", size) for unit, size in sizes.items())
        )

    return degree


_DEMANDS: dict[str, Callable[[Any], Degree]] = {
    "required": _required,
    "forbidden": _forbidden,
    "first_person": _first_person,
    "language": _language,
    "length": _length,
}
_EXAMPLE = "Write parts such as `in_role: {weight: 1.0, forbidden: [as an AI]}`; see configs/personas/."
