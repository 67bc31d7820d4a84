"""The only parsing of completions: tags, and which choice an answer names.

Rewards in training and matchers in evaluation call the same functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

OPENING, _END = "<answer>", "</answer>"
_ANSWER = re.compile(rf"{OPENING}(.*?){_END}", re.DOTALL)
_STRICT = {
    "direct": re.compile(r"[^<>]*[^<>\s][^<>]*"),
    "answer": re.compile(r"\s*<answer>(?P<answer>.+?)</answer>\s*", re.DOTALL),
    "think": re.compile(r"\s*<think>(?P<think>.+?)</think>\s*<answer>(?P<answer>.+?)</answer>\s*", re.DOTALL),
}
_TAG = re.compile(r"</?(?:answer|think)>")
# a choice letter as people write it: B | B. | B) | (B) | B: , alone or before the choice's own text
_LETTER = re.compile(r"\(?(?P<letter>[A-Za-z])(?:[.):]+|(?=$))\s*(?P<text>.*)", re.DOTALL)
_TOKEN = re.compile(r"\b\w+\b")
_SURROUNDING = "\"'`´‘’“”«»*_.,;:!?…()[]{}- \t\n"


def answers_of(completion: str) -> tuple[str, ...]:
    """The text of every `<answer>` block, stripped; the whole completion if it has no complete block.

    An unclosed tag is no block.
    """
    closed = completion[: completion.rfind(_END) + len(_END)] if _END in completion else ""
    # beyond the last closing tag every opening one would be searched to the end in vain: quadratic time
    return tuple(block.strip() for block in _ANSWER.findall(closed)) or (completion.strip(),)


def answer_of(completion: str) -> str | None:
    """The first of `answers_of`; None if it is empty."""
    return answers_of(completion)[0] or None


def follows_format(completion: str, style: str) -> bool:
    """Whether the completion is exactly what the prompt style asks for and nothing else.

    `answer`: one non-empty `<answer>` block; `think`: one non-empty `<think>` block before it; `direct`: text without
    tags. White space around the blocks is allowed; a tag inside a block is not.
    """
    match = _STRICT[style].fullmatch(completion)
    return match is not None and all(text.strip() and not _TAG.search(text) for text in match.groupdict().values())


def in_tags(answer: str) -> str:
    """An answer as the prompts ask for it."""
    return f"{OPENING}{answer}{_END}"


def answer_begins(completion: str, style: str) -> int | None:
    """Where the tag before the answer begins, up to which a completion is reasoning; None if there is no such place.

    `<answer>` stands once, with text behind it, be it closed or cut off. In the style `think` it comes after one
    `<think>` and one `</think>`. Those are the demands of RLPR's code (`replace_answer_with_gt_batch`).
    """
    tags = ("<think>", "</think>", OPENING) if style == "think" else (OPENING,)
    places = [completion.find(tag) for tag in tags]
    once = all(completion.count(tag) == 1 for tag in tags) and places == sorted(places)
    said = completion[places[-1] + len(OPENING) :].removesuffix(_END)
    return places[-1] if once and said.strip() else None


def fold(text: str) -> str:
    """Unicode-normalised, case-folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalise(text: str) -> str:
    """`fold`, and without surrounding quotes and punctuation."""
    return fold(text).strip(_SURROUNDING)


def match_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Index of the one choice that `answer` names, or None.

    In this order: the choice's text (folded, then without surrounding punctuation), then a letter (`B`, `(B)`, `B.`)
    or a letter with that choice's own text (`B. text`). A form that fits choices with different texts names no
    choice; of choices with the same text the first is returned.
    """
    for form in (fold, normalise):
        wanted = form(answer)
        hits = [index for index, choice in enumerate(choices) if wanted and form(choice) == wanted]
        if hits:
            return hits[0] if len({choices[index] for index in hits}) == 1 else None
    match = _LETTER.fullmatch(answer.strip().strip("\"'`*"))
    if match is None:
        return None
    index = ord(match["letter"].upper()) - ord("A")
    if index >= len(choices):
        return None
    text = normalise(match["text"])
    if text:
        return index if text == normalise(choices[index]) else None
    # a lone letter is no label if the choices themselves are letters (notes, keys, vitamins)
    return None if any(len(normalise(choice)) == 1 for choice in choices) else index


def is_correct(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """Whether `answer` names the choice whose text is `gold`."""
    index = match_choice(answer, choices)
    return index is not None and choices[index] == gold


def official(answer: str, gold: str, choices: Sequence[str]) -> bool:
    """MMAU's token rule, with its quirks.

    Right is an answer that has tokens, holds all tokens of the gold text, and holds none that stands in another choice
    but not in the gold text.
    """
    said, lacking, foreign = official_tokens(answer, gold, choices)
    return bool(said) and not lacking and not foreign


def official_tokens(answer: str, gold: str, choices: Sequence[str]) -> tuple[set[str], set[str], set[str]]:
    """What `official` looks at: the tokens of the answer, those of the gold text that it lacks, and those in it that
    stand in another choice but not in the gold text."""
    said, wanted = _tokens(answer), _tokens(gold)
    others = set().union(*map(_tokens, choices)) - wanted
    return said, wanted - said, said & others


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The text of the choice that `answer` names: as `match_choice` reads it, otherwise the only one that `official`
    would accept; None if there is no such choice."""
    index = match_choice(answer, choices)
    if index is not None:
        return choices[index]
    accepted = {choice for choice in choices if official(answer, choice, choices)}
    return accepted.pop() if len(accepted) == 1 else None


def mentioned(completion: str, choices: Sequence[str]) -> list[str]:
    """The choices whose texts stand in the completion, in the order in which each is mentioned last.

    A text is mentioned where it stands as whole words (folded, without punctuation at its end) and not inside another
    choice's longer text: `old man` mentions no `man`. A text that fits choices with different texts mentions none.
    """
    texts: dict[str, set[str]] = {}
    for choice in choices:
        text = fold(choice)
        texts.setdefault(text.rstrip(".,;:!?") or text, set()).add(choice)
    longest_first = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    found: dict[str, None] = {}
    for match in re.finditer(rf"(?<!\w)(?:{longest_first})(?!\w)", fold(_TAG.sub(" \0 ", completion))):
        found.pop(match[0], None)  # to stand where it is mentioned last
        found[match[0]] = None
    return [choice for text in found if len(texts[text]) == 1 for choice in texts[text]]


def is_letter_alone(answer: str, choices: Sequence[str]) -> bool:
    """Whether `answer` is nothing but the letter of a choice (`B`, `(B)`, `B.`), which `official` takes for wrong."""
    index, said = match_choice(answer, choices), normalise(answer)
    return index is not None and len(said) == 1 and normalise(choices[index]) != said


def _tokens(text: str) -> set[str]:
    return set(_TOKEN.findall(text.lower()))
