"""Predictions in anybody's format, scored without a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.benchmarks import benchmark_of, version_of
from eval.benchmarks.record import Benchmark
from eval.evaluation import Evaluation, scores_without_audio, times_asked
from eval.long_clips import LongClips, recorded_long_clips
from eval.predictions import MOST_REPEATS, PREDICTIONS, SETTINGS, Prediction, digest, predict, question_hash
from eval.results import write_results
from r1_aqa_repro.common.claim import read_claim
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import sha256_of, unreadable, write_json
from r1_aqa_repro.data.prompts import PROMPT_STYLES
from r1_aqa_repro.data.questions import AudioQuestion, question_of, read_questions
from r1_aqa_repro.data.records import BadRecord, Rejected, id_of, no_records, parse_records

_OF_OURS = {"settings_hash", "question_hash"}  # keys that tell a line of a predictions.jsonl
_REMEDY = "Repair the file, or give the data it was made for."


def score_file(
    predictions: Path,
    data: Path | None = None,
    out: Path | None = None,
    *,
    audio_dir: Path | None = None,
    prompt_style: str | None = None,
    limit: int | None = None,
    embed_audio: bool = False,
    benchmark: Benchmark | None = None,
) -> Evaluation:
    """Score predictions that are already there, without loading a model.

    The same evaluation without audio is reported with them if it lies where an evaluation puts it, and both are
    complete.

    Args:
        predictions: a predictions.jsonl, or a JSON list or lines of a benchmark's records with an answer in one of the
            fields that it `reads`.
        data: manifest or a benchmark's file. Without answers there is a submission but no score. Default: the one that
            the settings.json beside a predictions.jsonl names.
        out: folder to write to. Default: that of a predictions.jsonl, otherwise one named after the file beside it.
        audio_dir: as for an evaluation.
        prompt_style: what format the completions should have. Default: the settings.json beside a predictions.jsonl
            tells; of other files it is not known.
        limit: only the first so many questions. Default: as many as settings.json tells.
        embed_audio: put the clips into the page.
        benchmark: the one that the questions have to be of; None takes whatever they are.

    Raises:
        Refused: a file cannot be read or holds unknown or repeated questions; `out` belongs to other predictions.
    """
    made = background_of(predictions, data, audio_dir)
    settings, paths, data_sha256 = made.settings, made.paths, made.data_sha256
    if benchmark is not None:
        benchmark.require(made.questions, benchmark_of(made.questions), str(made.data))
    if settings.get("data_sha256") == data_sha256:
        limit = limit or settings.get("questions")
    style = prompt_style or settings.get("prompt_style")
    asked = made.questions[:limit]
    ids = {question.id for question in asked}
    found = {key: one for key, one in read_predictions(predictions, made.questions, style).items() if one.id in ids}
    as_evaluated = bool(settings) and (
        settings.get("data_sha256", data_sha256) == data_sha256 and settings.get("questions", len(asked)) == len(asked)
    )
    is_whole = as_evaluated and len(found) == len(asked) * times_asked(settings)
    without_audio = scores_without_audio(predictions.absolute().parent, settings) if is_whole else None
    out = out or (predictions.parent if as_evaluated else predictions.with_name(f"{predictions.stem}-scores"))
    other = out / PREDICTIONS
    if other.exists() and not other.samefile(predictions):
        raise Refused.because(str(out), "the folder holds other predictions", "Choose another --out.")

    in_place = bool(settings) and out.resolve() == predictions.resolve().parent
    if not in_place:
        settings = {**settings, "predictions_sha256": sha256_of(predictions), "prompt_style": style}
        paths = {**paths, "predictions": str(predictions)}
    settings = settings | {"data_sha256": data_sha256, "questions": len(asked)}
    paths = paths | {"data": str(made.data)} | ({} if audio_dir is None else {"audio_dir": str(audio_dir)})
    if not in_place:
        content = {"settings_hash": digest(settings), "settings": settings, "paths": paths}
        write_json(out / SETTINGS, content)
    evaluation = Evaluation(out, asked, found, settings, paths, made.version, without_audio, made.long_clips)
    write_results(evaluation, embed_audio)
    return evaluation


@dataclass(frozen=True)
class Background:
    """What predictions were made of.

    Attributes:
        settings, paths: as in settings.json; empty if they are not known.
        data: the file of the questions, `data_sha256` the hash of its bytes.
        questions: all of the file's.
        long_clips: as in long_clips.json.
    """

    settings: dict[str, Any]
    paths: dict[str, str]
    data: Path
    data_sha256: str
    questions: list[AudioQuestion]
    long_clips: LongClips

    @property
    def version(self) -> str:
        """Of the benchmark, see `benchmarks.version_of`."""
        return version_of(self.questions)


def background_of(path: Path, data: Path | None = None, audio_dir: Path | None = None) -> Background:
    """What the evaluation in a folder, or the predictions in a file, were made of.

    Args:
        path: the folder or the file; a settings.json counts if it is in the folder or beside a predictions.jsonl.
        data: the file of the questions, in place of the one that settings.json names.
        audio_dir: folder of a benchmark file's clips, likewise.

    Raises:
        Refused: one of the files is absent or damaged, or nothing names the questions.
    """
    is_folder = os.path.isdir(path)
    if not is_folder and (reason := unreadable(path)) is not None:
        raise Refused.because(str(path), reason, "Give the folder of an evaluation, or its predictions.")
    folder, remedy = path if is_folder else path.parent, "Remove it, or restore it."
    is_ours = is_folder or path.name == PREDICTIONS
    parts = ("settings", "paths") if is_ours else ()
    settings, paths = [read_claim(folder / SETTINGS, remedy, part) or {} for part in parts] or [{}, {}]
    _check_settings(folder / SETTINGS, settings, paths, remedy)
    if is_folder and not settings and not (folder / PREDICTIONS).exists():
        what = f"it is no folder of an evaluation: it has neither {SETTINGS} nor {PREDICTIONS}"
        raise Refused.because(str(path), what, "Give the folder of one evaluation, or its predictions.")
    if data is None and "data" not in paths:
        raise Refused.because(str(path), "the questions of these predictions are not known", "Give --data.")
    data = data or Path(paths["data"])
    read = read_questions(data, audio_dir or paths.get("audio_dir"))
    if read.problems:
        raise Refused(read.problems)
    long_clips = recorded_long_clips(folder) if is_ours else LongClips()
    return Background(settings, paths, data, sha256_of(data), read.records, long_clips)


def _check_settings(file: Path, settings: Mapping[str, Any], paths: Mapping[str, Any], remedy: str) -> None:
    """Refuse values that no evaluation records and scoring would rely on."""
    most = {"repeats": MOST_REPEATS, "permute_choices": MOST_REPEATS, "questions": sys.maxsize}
    bad = {name for name, limit in most.items() if not _is_count(settings.get(name, 1), limit)}
    if not bad and not _is_count(times_asked(settings), MOST_REPEATS):
        bad = {"repeats", "permute_choices"}
    if settings.get("prompt_style") not in (None, *PROMPT_STYLES):
        bad.add("prompt_style")
    bad |= {name for name, path in paths.items() if not isinstance(path, str)}
    if bad:
        what = f"{', '.join(sorted(bad))} {'is' if len(bad) == 1 else 'are'} not what an evaluation records"
        raise Refused.because(str(file), what, remedy)


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 < value <= limit


def read_predictions(
    path: Path, questions: Sequence[AudioQuestion], style: str | None = None
) -> dict[tuple[str, int], Prediction]:
    """The predictions of a file, by question id and repeat; answers are parsed anew from the completions.

    Args:
        path: a predictions.jsonl, or records with one of the fields that the questions' benchmark `reads`, as a JSON
            list or as lines. A record without any, or with null, has no prediction; an empty string is one.
        questions: those that predictions may be about.
        style: the prompt style that a predictions.jsonl was made with; None accepts any.

    Raises:
        Refused: naming every record that is damaged, about an unknown or another question, or repeated, or that holds
            two different predictions; or no record has a prediction: the score would be that of nothing.
    """
    by_id = {question.id: question for question in questions}
    fields = benchmark_of(questions).reads
    first_seen: dict[tuple[str, int], str] = {}

    def parse(record: dict[str, Any], where: str) -> Prediction | None:
        question_id = id_of(record)
        question = by_id.get(question_id)
        if question is None:
            raise BadRecord(f"the id {question_id!r} is not among the questions", _REMEDY)
        one = _ours(record, question, style) if set(record) >= _OF_OURS else _anybodys(record, question, fields)
        seen = first_seen.setdefault((question.id, 0 if one is None else one.repeat), where)
        if seen != where:
            raise BadRecord(f"the id {question.id!r} was already predicted at {seen}", _REMEDY)
        return one

    records = [one for _, one in parse_records(path, parse, any_text=True)]
    if not records:
        raise no_records(path)
    problems = [one.problem for one in records if isinstance(one, Rejected)]
    found = {one.key: one for one in records if isinstance(one, Prediction)}
    hashes = {one.settings_hash for one in found.values()}
    if len(hashes) > 1:
        what = f"its predictions were made with {len(hashes)} different settings"
        problems.append(Problem(str(path), what, "Give the predictions of one evaluation."))
    if problems:
        raise Refused(problems)
    if all(one.completion is None for one in found.values()):
        what = f"none of its {len(records)} records has a prediction"
        raise Refused.because(str(path), what, f"Give records with {' or '.join(fields)}, or evaluate again.")
    return found


def _ours(record: Mapping[str, Any], question: AudioQuestion, style: str | None) -> Prediction:
    """A line of a predictions.jsonl, its answer parsed again."""
    one = Prediction.of_record(record)
    if one is None:
        raise BadRecord("the line is damaged", _REMEDY)
    asked = question
    if one.order is not None:
        if sorted(one.order) != sorted(question.choices):
            raise BadRecord(f"the choices in its order are not those of {question.id!r}", _REMEDY)
        asked = replace(question, choices=one.order)
    styles = PROMPT_STYLES if style is None else (style,)
    if one.question_hash not in [question_hash(asked, name) for name in styles]:
        raise BadRecord(f"it is about another question than {question.id!r} of the data", _REMEDY)
    again = predict(asked, _printable(one.completion), styles[0], one.settings_hash, one.repeat, one.order is not None)
    return replace(again, question_hash=one.question_hash)


def _anybodys(record: Mapping[str, Any], question: AudioQuestion, fields: Sequence[str]) -> Prediction | None:
    """A record with a prediction in one of these fields; None if it has no prediction."""
    # the question itself may have changed between versions under the same id
    theirs = _as_asked(record, question)
    for key, ours in (
        ("question", question.question),
        ("choices", list(question.choices)),
        ("answer", question.answer),
    ):
        if ours is not None and theirs.get(key, ours) not in (ours, "", None):
            raise BadRecord(f"the {key} of {question.id!r} is not that of the data, which is another version", _REMEDY)
    given = {field: record[field] for field in fields if record.get(field) is not None}
    for one in given.values():
        if not isinstance(one, str):
            raise BadRecord(f"the prediction for {question.id!r} is {one!r:.200}, not a text", _REMEDY)
    if len(set(given.values())) > 1:
        raise BadRecord(f"{question.id!r} has two different predictions, {' and '.join(given)}", _REMEDY)
    return predict(question, _printable(next(iter(given.values()))), PROMPT_STYLES[0], "") if given else None


def _as_asked(record: Mapping[str, Any], question: AudioQuestion) -> Mapping[str, Any]:
    """`question`, `choices` and `answer` of a record as a question has them, where it is in a format of files: with
    letters taken off, and a letter for the text that it stands for. Otherwise as they are in the record."""
    try:
        one = question_of({"audio_path": question.audio_path.name, **record}, Path(), None)
    except BadRecord:
        return record
    return {"question": one.question, "choices": list(one.choices), "answer": one.answer}


def _printable(text: str | None) -> str | None:
    """Halves of characters, as a JSON escape can hold them, cannot be written to a file."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")
