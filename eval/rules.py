"""Every rule by which the same completions are scored, here and elsewhere, and what each of them sees in an answer.

`official`, `strict` and `letter_aware` are those of `matcher`. The others do what the code of others does, quirks
included, and are given the text that it is given: the parsed answer (`answers.answer_of`) or the raw completion. Where
that code draws a choice at random, its expectation counts: nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval.benchmarks.record import Rule as Matches
from eval.evaluation import Evaluation
from eval.matcher import MATCHERS, alone
from eval.scores import choices_as_asked, tally
from r1_aqa_repro.data.answers import match_choice, mentioned, official, official_tokens

ANSWER, COMPLETION = "parsed answer", "raw completion"
_SHOWN = 60  # characters of a text that a reason quotes


@dataclass(frozen=True)
class Reading:
    """What a rule makes of an answer.

    Attributes:
        share: 1 right, 0 wrong, in between the expectation of a random guess; None leaves it out of the denominator.
        saw: why, as the rest of a sentence that begins with the rule's name.
    """

    share: float | None
    saw: str


@dataclass(frozen=True)
class Answer:
    """One answer to a question, or that there is none.

    Attributes:
        id, repeat: of the question; among the answers to it.
        completion: as it came; None if there is no prediction.
        answer: what was parsed from it; None if nothing could be.
        gold: the right choice.
        choices: in the order in which they were asked.
        rule: the benchmark's own, `official` here.
    """

    id: str
    repeat: int
    completion: str | None
    answer: str | None
    gold: str
    choices: Sequence[str]
    rule: Matches = official

    @cached_property
    def readings(self) -> dict[str, Reading]:
        """What every rule makes of it, by the rule's name."""
        return {name: rule.read(self) for name, rule in RULES.items()}

    @cached_property
    def names(self) -> str:
        """Which choices the completion names by their texts, as a clause; rules differ over little else."""
        if self.completion is None:
            return "there is no prediction"
        *others, last = [quoted(choice) for choice in mentioned(self.completion, self.choices)] or [""]
        named = f"{len(others) + 1} choices, {', '.join(others)} and last {last}" if others else f"one choice, {last}"
        empty = "" if self.answer is not None else ", and no answer can be parsed from it"
        return f"the completion names {named if last else 'no choice by its text'}{empty}"


@dataclass(frozen=True)
class Rule:
    """A rule: the text that it is given, what it does with it, and whose it is."""

    read: Callable[[Answer], Reading]
    given: str
    does: str
    whose: str


def answers_of(evaluation: Evaluation) -> list[Answer]:
    """Every answer asked for, in the order of the questions, also those that are missing."""
    answers, rule = [], evaluation.benchmark.rule
    for question in evaluation.questions:
        by_repeat = {one.repeat: one for one in evaluation.of_question.get(question.id, ())}
        for record in evaluation.verdicts_of[question.id]:
            one = by_repeat.get(record["repeat"])
            said = (None, None) if one is None else (one.completion, one.answer)
            gold = question.answer or ""  # there is one: an evaluation without answers has no verdicts
            choices = choices_as_asked(question, one)
            answers.append(Answer(question.id, record["repeat"], *said, gold, choices, rule))
    return answers


def tallies(evaluation: Evaluation, answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """The tally of every rule, see `scores.tally`; there is none of a rule that leaves out every question.

    A question counts once, with the mean over those of its answers that the rule does not leave out.

    Args:
        evaluation: of questions with answers.
        answers: its `answers_of`.
    """
    clip_of = {question.id: question.audio_path for question in evaluation.questions}
    found = {}
    for name in RULES:
        shares_of: dict[str, list[float]] = {}
        for answer in answers:
            if (share := answer.readings[name].share) is not None:
                shares_of.setdefault(answer.id, []).append(share)
        if shares_of:
            means = [sum(shares) / len(shares) for shares in shares_of.values()]
            found[name] = tally(means, [clip_of[question_id] for question_id in shares_of])
    return found


def quoted(text: str) -> str:
    """A text in a reason, cut if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _official(answer: Answer) -> Reading:
    """The script of MMAU (evaluation.py) and MMAR (code/evaluation.py), with a missing answer as a wrong one."""
    if answer.answer is None:
        return _without(answer)
    if answer.rule is not official:
        return _own_rule(answer, answer.answer)
    said, lacking, foreign = official_tokens(answer.answer, answer.gold, answer.choices)
    if not said:
        return Reading(0.0, "finds no word in the answer")
    found = f"misses {_words(lacking)} of the right choice" if lacking else "finds all words of the right choice"
    joined = (" and finds", "") if lacking else (", but also", ", and none of other choices")
    saw = f"{found}{joined[0]} {_words(foreign)} of other choices" if foreign else f"{found}{joined[1]}"
    return Reading(float(official(answer.answer, answer.gold, answer.choices)), saw)


def _own_rule(answer: Answer, parsed: str) -> Reading:
    """Another benchmark's rule, such as MMSU's."""
    right = [choice for choice in answer.choices if answer.rule(parsed, choice, answer.choices)]
    saw = f"takes the answer for {quoted(right[0])}" if right else "takes the answer for no choice"
    return Reading(float(answer.rule(parsed, answer.gold, answer.choices)), saw)


def _official_answered(answer: Answer) -> Reading:
    """The same scripts as they stand: `if output_key not in sample: continue` comes before anything is counted."""
    return Reading(None, "leaves the question out") if answer.completion is None else _official(answer)


def _strict(answer: Answer) -> Reading:
    if answer.answer is None:
        return _without(answer)
    said, fitting = answer.answer, alone(answer.answer, answer.choices)
    is_right = MATCHERS["strict"](said, answer.gold, answer.choices)
    one = "the right choice" if is_right else "another choice"
    kind = {0: "not one choice and nothing else", 1: one}.get(len(fitting), "which fits several choices")
    return Reading(float(is_right), f"reads {quoted(said)}, {kind}")


def _letter_aware(answer: Answer) -> Reading:
    if answer.answer is None:
        return _without(answer)
    place = match_choice(answer.answer, answer.choices)
    taken = "neither the text nor the letter of one choice" if place is None else _choice(answer, place)
    is_right = MATCHERS["letter_aware"](answer.answer, answer.gold, answer.choices)
    return Reading(float(is_right), f"reads {quoted(answer.answer)}, {taken}")


def _letter_lmms(answer: Answer) -> Reading:
    """lmms-eval's `parse_multi_choice_response` of the tasks mmar and mmsu (lmms_eval/tasks/mmar/utils.py), after MMMU.

    Every choice has a letter. The first form counts in which a letter is found: `(A)`, then `A ` (also at the end of a
    word in capitals), then `A.`; then, in responses of more than five words, a choice's text. Of several the last
    counts; letters found without brackets are looked up as ` A `. No response is an empty one, which is guessed on.
    """
    response, choices = _lmms_response(answer), answer.choices
    form, found = _lmms_letters(response, len(choices), "{} ")
    if found:
        return _lmms_last(answer, response, form, found, form if form == "({})" else " {} ")
    if len(response.split()) <= 5:
        return _guess(answer, choices, "finds no letter, looks for no text in 5 words or fewer")
    lower = response.lower()
    held = [place for place, choice in enumerate(choices) if choice.lower() in lower]
    if not held:
        return _guess(answer, choices, "finds no letter and no text")
    place = max(held, key=lambda place: lower.rfind(choices[place].lower()))
    several = f" but the texts of {len(held)} choices and takes the last" if held[1:] else ""
    return Reading(float(choices[place] == answer.gold), f"finds no letter{several}, {_choice(answer, place)}")


def _letter_lmms_mmau(answer: Answer) -> Reading:
    """lmms-eval's function of the same name in its task mmau (lmms_eval/tasks/mmau/utils.py).

    It knows the letters A to D, however many choices there are, as `(A)`, ` A ` or `A.`, and looks for no texts. Of
    several it takes the one that stands last as ` A `, which is the first of them if none does. Where the letter is
    that of no choice, drawn or found, the original ends with an IndexError: here that is wrong.
    """
    response = _lmms_response(answer)
    form, found = _lmms_letters(response, 4, " {} ")
    if not found:
        return _guess(answer, answer.choices[:4], "finds no letter", of=4)
    return _lmms_last(answer, response, form, found, " {} ")


def _lmms_response(answer: Answer) -> str:
    response = answer.completion or ""
    for mark in ",.!?;:'":
        response = response.strip(mark)
    return f" {response} "


def _lmms_letters(response: str, count: int, bare: str) -> tuple[str, list[int]]:
    """The first form in which any of the first `count` letters is found, and the places of all that are."""
    for form in ("({})", bare, "{}."):
        found = [place for place in range(count) if form.format(_letter(place)) in response]
        if found:
            return form, found
    return "", []


def _lmms_last(answer: Answer, response: str, form: str, found: Sequence[int], last: str) -> Reading:
    """Of the letters found in a form the one that stands last in the form `last`; the first of them if none does."""
    place = max(found, key=lambda place: response.rfind(last.format(_letter(place))))
    forms = " and ".join(repr(form.format(_letter(one))) for one in found)
    saw = f"finds {forms}" + (f" and takes {_letter(place)}" if found[1:] else "")
    if place >= len(answer.choices):
        return Reading(0.0, f"{saw}, the letter of no choice")
    return Reading(float(answer.choices[place] == answer.gold), f"{saw}, {_choice(answer, place)}")


def _guess(answer: Answer, choices: Sequence[str], why: str, of: int | None = None) -> Reading:
    """A draw from `of` letters, or of as many as there are choices."""
    count = of or len(choices)
    expected = sum(choice == answer.gold for choice in choices) / count
    return Reading(expected, f"{why}, and would draw one of {count} letters")


def _exact_alnum(answer: Answer) -> Reading:
    """NeMo-RL's `exact_answer_alphanumeric_reward` (nemo_rl/environments/rewards.py), the score of its MMAU evaluation.

    What stands between the first opening and the last closing answer tag, without all that is neither letter nor
    digit, in lower case, has to equal the right choice's text. Without tags nothing is right.
    """
    if answer.completion is None:
        return _without(answer)
    _, opened, rest = answer.completion.partition("<answer>")
    inside, closed, _ = rest.rpartition("</answer>")
    if not opened or not closed:
        return Reading(0.0, "finds no answer tags")
    said, wanted = _alphanumeric(inside), _alphanumeric(answer.gold)
    return Reading(float(said == wanted), f"reads {quoted(said)}, {'' if said == wanted else 'not '}{quoted(wanted)}")


def _named_last(answer: Answer) -> Reading:
    """The choice that the completion mentions last; of one that mentions none, the choice that the answer is."""
    if answer.completion is None:
        return _without(answer)
    named = mentioned(answer.completion, answer.choices)
    if named:
        return Reading(float(named[-1] == answer.gold), f"takes {quoted(named[-1])}")
    place = None if answer.answer is None else match_choice(answer.answer, answer.choices)
    if place is None:
        return Reading(0.0, "finds no choice")
    return Reading(float(answer.choices[place] == answer.gold), f"finds no text, but {_choice(answer, place)}")


def _without(answer: Answer) -> Reading:
    return Reading(0.0, "counts that as wrong" if answer.completion is None else "has no answer to read")


def _alphanumeric(text: str) -> str:
    return "".join(character for character in text if character.isalnum()).lower()


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _choice(answer: Answer, place: int) -> str:
    return f"choice {_letter(place)}, {quoted(answer.choices[place])}"


def _words(tokens: set[str]) -> str:
    return ", ".join(quoted(token) for token in sorted(tokens))


RULES = {
    "official": Rule(
        _official,
        ANSWER,
        "all words of the right choice and none that only another choice has; a missing answer is wrong",
        "MMAU and MMAR, over all questions; of MMSU its own rule",
    ),
    "official_answered": Rule(
        _official_answered,
        ANSWER,
        "the same; questions without a prediction are left out of the denominator",
        "the scripts of MMAU and MMAR as they stand",
    ),
    "letter_lmms": Rule(
        _letter_lmms,
        COMPLETION,
        "the last letter as (A), A or A., else the choice whose text stands last; else a random letter",
        "lmms-eval's tasks mmar and mmsu",
    ),
    "letter_lmms_mmau": Rule(
        _letter_lmms_mmau,
        COMPLETION,
        "a letter from A to D as (A), A or A.; else a random one of the four",
        "lmms-eval's task mmau",
    ),
    "exact_alnum": Rule(
        _exact_alnum,
        COMPLETION,
        "letters and digits between the answer tags equal those of the right choice; without tags nothing is right",
        "NeMo-RL",
    ),
    "strict": Rule(_strict, ANSWER, "one choice's text and nothing else", "this project"),
    "letter_aware": Rule(_letter_aware, ANSWER, "one choice's text, or its letter", "this project, as its reward"),
    "named_last": Rule(
        _named_last,
        COMPLETION,
        "the choice whose text stands last; where none does, as letter_aware",
        "this project, for comparison",
    ),
}
