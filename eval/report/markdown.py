"""`report.md`: the figures of one evaluation with everything needed to read them, for people."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from eval.evaluation import Evaluation
from eval.matcher import MATCHERS, verdicts
from eval.predictions import Prediction
from eval.scores import choices_as_asked
from eval.targets import EMBEDDED_HEADING, against_published
from r1_aqa_repro.data.questions import AudioQuestion

_LISTED = 20  # completions shown, and the characters of each
_SHOWN_CHARACTERS = 120
_UNKNOWN = "not known"
# what settings.json records of an evaluation that a person chose, as options of `eval.mmau`
_OPTIONS = (
    "prompt_style",
    "decoding",
    "repeats",
    "permute_choices",
    "batch_size",
    "max_new_tokens",
    "audio_channel",
    "dtype",
)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!:])")
_WWW = re.compile(r"(www)\.", re.IGNORECASE)


def markdown_report(evaluation: Evaluation) -> str:
    """The report as GitHub-flavoured Markdown."""
    scores, settings, paths = evaluation.scores, evaluation.settings, evaluation.paths
    sections = [
        _heading(paths),
        f"**{EMBEDDED_HEADING}**" if scores["version"] == "embedded" else "",
        "**Without audio: silence stood in place of every clip.**" if settings.get("no_audio") else "",
        _headline(scores),
        _facts(scores, settings, paths),
        _comparison(scores, settings),
        _lazy(scores, settings),
        _repeats(scores["repeats"], scores.get("permutation")),
        _permutation(scores.get("permutation")),
        *(
            f"## By {name}\n\n{_tallies(name, scores[key])}"
            for key, name in (
                ("task", "task"),
                ("difficulty", "difficulty"),
                ("category", "category"),
                ("sub_category", "sub-category"),
            )
            if scores[key]
        ),
        f"## By matcher\n\n{_tallies('matcher', scores['matchers'])}\n\n{_MATCHERS}",
        _disagreements(evaluation.questions, evaluation.of_question),
        _unanswered(scores, evaluation.questions, evaluation.of_question),
        _settings(settings, paths),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def unscored_report(evaluation: Evaluation) -> str:
    """The report on questions whose answers are withheld."""
    scores = evaluation.scores
    sections = [
        _heading(evaluation.paths),
        "**No accuracy: the answers to these questions are withheld.** Hand in submission.json to have it scored.",
        _facts(scores, evaluation.settings, evaluation.paths),
        f"Without readable audio: {_ids(scores['no_audio'])}." if scores["no_audio"] else "",
        _settings(evaluation.settings, evaluation.paths),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def print_report(path: str | os.PathLike[str]) -> None:
    """Show a report.md on the terminal, its long lists of ids cut, followed by where it is."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    print_markdown("\n".join(line if len(line) < 2000 else f"{line[:500]} ... (all in the file)" for line in lines))
    Console().print(f"\n{path}", markup=False, highlight=False, soft_wrap=True)


def print_markdown(text: str) -> None:
    """Show Markdown on the terminal."""
    Console().print(Markdown(text))


def escape(text: str) -> str:
    """Text written by a model or a data set, as one line of Markdown that shows it and does nothing else."""
    line = "".join(character if character.isprintable() else " " for character in text)
    marked = _MARKUP.sub(r"\\\1", " ".join(line.split()))
    # GitHub links addresses and names of people wherever their text comes out, escaped or not: a comment parts it
    return _WWW.sub(r"\1\\.", marked).replace("@", "@<!-- -->")


_MATCHERS = (
    "Each is given the text in the first answer tag, or the whole completion where there is none. *official*: the "
    "benchmark's token rule, the headline. *strict*: that text is one choice, up to case, space and surrounding "
    "punctuation. *letter_aware*: or that choice's letter, as the accuracy reward of training has it."
)
_INTERVALS = (
    "Intervals are Wilson's at 95 %, with the number of questions as the size of the sample: repeated answers to one "
    "question are no independent draws and count once, as the share that is right."
)


def _heading(paths: Mapping[str, str]) -> str:
    return f"# Evaluation of {escape(paths.get('checkpoint') or paths['predictions'])}"


def _headline(scores: Mapping[str, Any]) -> str:
    total, repeats = scores["total"], scores["repeats"]["count"]
    text = f"**Accuracy {total['accuracy']:.2f} %**: {_number(total['correct'])} of {total['n']}"
    mean = f"; mean of {repeats} answers a question" if repeats > 1 else ""
    return f"{text}, 95 % interval {_interval(total)}{mean}"


def _facts(scores: Mapping[str, Any], settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    asked = scores.get("asked", scores["n"])
    longest = settings.get("max_new_tokens")
    facts = {
        "data": f"{paths['data']} (version {scores['version']})",
        "questions": f"{scores['n']}" + (f", {asked} answers asked for" if asked != scores["n"] else ""),
        "matcher": scores.get("matcher", "none"),
        "prompt style": settings.get("prompt_style") or _UNKNOWN,
        "decoding": settings.get("decoding", _UNKNOWN) + (f", at most {longest} new tokens" if longest else ""),
        "repeats": settings.get("repeats", 1),
        "orders of the choices": settings.get("permute_choices", 1),
        "batch size": settings.get("batch_size", _UNKNOWN),
        "computed in": f"{settings['dtype']} on {settings['device']}" if "dtype" in settings else _UNKNOWN,
        "audio": "silence" if settings.get("no_audio") else _channel(settings),
        "unparsed": f"{scores['unparsed']} of {asked}",
        "missing": f"{scores['missing']} of {asked} (count as wrong), {len(scores['no_audio'])} of the questions for "
        "want of readable audio",
    }
    if "format_rate" in scores:
        rate = scores["format_rate"]
        facts["right format"] = _UNKNOWN if rate is None else f"{100 * rate:.1f} %"
    if "checkpoint_sha256" in settings:  # a model in training has none yet, and predictions made elsewhere neither
        facts["checkpoint hash"] = settings["checkpoint_sha256"][:16]
    table = markdown_table(("what", "value"), ([name, escape(str(value))] for name, value in facts.items()), 2)
    return f"{table}\n\n{_INTERVALS}" if "total" in scores else table


def _channel(settings: Mapping[str, Any]) -> str:
    return f"{settings['audio_channel']} channel" if "audio_channel" in settings else _UNKNOWN


def _comparison(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The published figures with this run, where the two can be compared; otherwise why they cannot."""
    compared = against_published(scores, settings)
    if compared is None:
        return ""
    title = "## Compared with the paper"
    if compared.reason:
        return f"{title}\n\n{compared.reason}"
    rows = [[name, *("" if value is None else f"{value:.2f}" for value in values)] for name, *values in compared.rows]
    rows[-1] = [f"**{cell}**" for cell in rows[-1]]
    table = markdown_table(("model", "sound", "music", "speech", "average"), rows)
    return "\n\n".join(part for part in (title, compared.warning, table, " ".join(compared.sentences)) if part)


def _lazy(scores: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The run beside those who do not listen."""
    names = {
        "chance": "guessing at random",
        "always_first": "always the first choice",
        "most_frequent": "always the choice that is the answer to most of the other questions",
    }
    rows = [[name, f"{scores['baselines'][key]:.2f}", ""] for key, name in names.items()]
    blind = scores.get("blind")
    if blind:
        rows.append(["this model given silence", f"{blind['accuracy']:.2f}", _interval(blind)])
    rows.append(["**this run**", f"**{scores['total']['accuracy']:.2f}**", _interval(scores["total"])])
    text = f"## Without listening\n\n{markdown_table(('who', 'accuracy %', '95 % interval'), rows)}"
    if settings.get("no_audio"):
        return text
    if not blind:
        return f"{text}\n\nNo blind run of this model was given."
    shares = [
        f"{100 * blind[key]:.1f} % of {what}"
        for key, what in (("share", "the score"), ("share_above_chance", "what is above chance"))
        if blind[key] is not None
    ]
    return f"{text}\n\nWithout audio there remain {' and '.join(shares) or 'no shares, the score being 0'}."


def _repeats(repeats: Mapping[str, Any], permutation: Mapping[str, Any] | None) -> str:
    if repeats["count"] == 1:
        return ""
    what = "repeat and order of the choices" if permutation else "repeat"
    columns = zip(repeats["accuracy"], repeats["ci95"], strict=True)
    rows = [[str(number), f"{accuracy:.2f}", _between(ci95)] for number, (accuracy, ci95) in enumerate(columns)]
    text = (
        f"Mean {repeats['mean']:.2f} %, sample standard deviation {repeats['std']:.2f} points, "
        f"from {repeats['min']:.2f} to {repeats['max']:.2f}. This spread is that of the answers to these questions; "
        "the intervals of this report are about the choice of questions, and count each question once."
    )
    return f"## By {what}\n\n{markdown_table((what, 'accuracy %', '95 % interval'), rows)}\n\n{text}"


def _permutation(permutation: Mapping[str, Any] | None) -> str:
    if permutation is None:
        return ""
    lines = [f"## Order of the choices\n\nEvery question was asked in up to {permutation['orders']} orders."]
    shares = {
        "same_choice": "answered with the same choice in every order",
        "always_right": "right in every order",
    }
    rows = {label: permutation[key] for key, label in shares.items() if permutation[key]}
    if rows:
        lines.append(_tallies("questions", rows))
    lines.append(_tallies("place of the right choice", permutation["by_place"]))
    return "\n\n".join(lines)


def _disagreements(questions: Sequence[AudioQuestion], of_question: Mapping[str, list[Prediction]]) -> str:
    """Every question on which the matchers do not agree; the answers of the first."""
    rows, ids = [], []
    for question in questions:
        for one in of_question.get(question.id, []):
            verdict = verdicts(one.answer, question.answer or "", choices_as_asked(question, one))
            if len(set(verdict.values())) > 1:
                cells = ["right" if verdict[name] else "wrong" for name in MATCHERS]
                answer = escape((one.answer or "")[:_SHOWN_CHARACTERS])
                rows.append([escape(question.id), answer, escape(question.answer or ""), *cells])
                ids.append(question.id)
                break
    title = f"## Where the matchers disagree ({len(rows)} questions)"
    if not rows:
        return f"{title}\n\nNowhere."
    table = markdown_table(("question", "answer", "right choice", *MATCHERS), rows[:_LISTED], 6)
    rest = f"\n\nAnd: {_ids(ids[_LISTED:])}." if len(ids) > _LISTED else ""
    return f"{title}\n\n{table}{rest}"


def _unanswered(
    scores: Mapping[str, Any], questions: Sequence[AudioQuestion], of_question: Mapping[str, list[Prediction]]
) -> str:
    """All questions without prediction, without readable clip and without parsed answer."""
    by_id = {question.id: question for question in questions}
    sections = []
    absent = [question_id for question_id in scores["missing_ids"] if question_id not in scores["no_audio"]]
    if absent:
        sections.append(f"## Without a prediction\n\n{_ids(absent)}")
    if scores["no_audio"]:
        lost = ([escape(one), escape(str(by_id[one].audio_path))] for one in scores["no_audio"])
        sections.append(f"## Clips that could not be read\n\n{markdown_table(('question', 'clip'), lost, 2)}")
    if scores["unparsed_ids"]:
        ids = scores["unparsed_ids"]
        shown = (
            [escape(one.id), escape((one.completion or "")[:_SHOWN_CHARACTERS]) or "(empty)"]
            for question_id in ids[:_LISTED]
            for one in [next(one for one in of_question[question_id] if one.status == "unparsed")]
        )
        rest = f"\n\nAnd: {_ids(ids[_LISTED:])}." if len(ids) > _LISTED else ""
        title = f"## Unparsed completions (of {len(ids)} questions)"
        sections.append(f"{title}\n\n{markdown_table(('question', 'completion'), shown, 2)}{rest}")
    return "\n\n".join(sections)


def _settings(settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    """Everything recorded about the run, and the command that repeats it."""
    rows = [[escape(name), escape(str(value))] for name, value in (*paths.items(), *settings.items())]
    command = repeating_command(settings, paths)
    repeat = f"To repeat it:\n\n    {command}\n\n" if command else ""
    return f"## Settings\n\n{repeat}{markdown_table(('setting', 'value'), rows, 2)}"


def repeating_command(settings: Mapping[str, Any], paths: Mapping[str, str]) -> str:
    """The command line that makes the same predictions, or scores the same ones; empty for a model in training."""
    is_scoring = "predictions" in paths
    if "training_step" in settings and not is_scoring:
        return ""
    where = {name: path for name, path in paths.items() if not is_scoring or name not in ("checkpoint", "adapter")}
    options = ("prompt_style",) if is_scoring else _OPTIONS
    given: dict[str, Any] = {"ckpt" if name == "checkpoint" else name: path for name, path in where.items()}
    given |= {"limit": settings.get("questions")} | {name: settings.get(name) for name in options}
    command = ["python", "-m", "eval.mmau"]
    for name, value in given.items():
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    silent = settings.get("no_audio") and not is_scoring
    return shlex.join([*command, *(["--no-audio"] if silent else [])])


def _ids(ids: Iterable[str]) -> str:
    return ", ".join(map(escape, ids))


def _number(correct: float) -> str:
    return str(correct) if isinstance(correct, int) else f"{correct:.2f}"


def _tallies(name: str, tallies: Mapping[str, Mapping[str, Any]]) -> str:
    rows = (
        [escape(label), _number(one["correct"]), str(one["n"]), f"{one['accuracy']:.2f}", _interval(one)]
        for label, one in tallies.items()
    )
    return markdown_table((name, "correct", "of", "accuracy %", "95 % interval"), rows)


def _interval(tally: Mapping[str, Any]) -> str:
    return _between(tally["ci95"])


def _between(ci95: Sequence[float]) -> str:
    low, high = ci95
    return f"{low:.1f} to {high:.1f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table: the first columns, `texts` of them, on the left, figures on the right."""
    alignment = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, alignment, *rows))
