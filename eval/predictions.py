"""`predictions.jsonl`: one line a question and repeat, appended as they come, picked up again after any kind of end.

`clips.json` beside it tells which clips the answers are about, so that an evaluation never goes on with others. Bytes
are what counts: names and times say nothing after a copy. docs/evaluation.md describes both files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.grid import AudioPrompt, Key
from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json, sha256_of, write_json
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.answers import answer_of
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion

PREDICTIONS, SETTINGS, CLIPS = "predictions.jsonl", "settings.json", "clips.json"
MOST_REPEATS = 10_000  # of a question, in whatever orders of its choices; every one up to the last is listed
ClipHashes = dict[str, str | None]
_PARTS = "predictions.rank-*.jsonl"
_SHORTEST = 0.1  # seconds that every model needs, see `inputs.minimum_seconds`
_ELSEWHERE = "Choose another --out."
_REMEDY = "Choose another --out, or remove the folder."


@dataclass(frozen=True)
class Prediction:
    """What a model said to one question, once. The fields are those of a line."""

    id: str
    repeat: int
    completion: str | None
    answer: str | None
    status: str
    settings_hash: str
    question_hash: str
    order: tuple[str, ...] | None = None

    @property
    def key(self) -> Key:
        return self.id, self.repeat

    @classmethod
    def of_record(cls, record: Any) -> Prediction | None:
        """The prediction in a line, from its JSON value; None for anything else."""
        if not isinstance(record, dict) or set(record) | {"order"} != {field.name for field in fields(cls)}:
            return None
        order = record.get("order")
        texts = [record[name] for name in ("id", "status", "settings_hash", "question_hash")]
        texts += [record[name] for name in ("completion", "answer") if record[name] is not None]
        texts += order if isinstance(order, list) else []
        sound = isinstance(order, list | None) and all(isinstance(text, str) for text in texts)
        if not sound or type(record["repeat"]) is not int or not 0 <= record["repeat"] < MOST_REPEATS:
            return None
        return cls(**record | {"order": None if order is None else tuple(order)})

    def to_record(self) -> dict[str, Any]:
        """The JSON value of its line."""
        return {name: value for name, value in asdict(self).items() if name != "order" or value is not None}


def predict(
    question: AudioQuestion,
    completion: str | None,
    style: str,
    settings_hash: str,
    repeat: int = 0,
    permuted: bool = False,
) -> Prediction:
    """The record of a completion, or of an unreadable clip (None), to a question as it was asked."""
    answer = None if completion is None else answer_of(completion)
    status = "no_audio" if completion is None else "unparsed" if answer is None else "ok"
    return Prediction(
        id=question.id,
        repeat=repeat,
        completion=completion,
        answer=answer,
        status=status,
        settings_hash=settings_hash,
        question_hash=question_hash(question, style),
        order=question.choices if permuted else None,
    )


def by_question(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each question, in the order of their repeats."""
    grouped: dict[str, list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda one: one.repeat):
        grouped.setdefault(prediction.id, []).append(prediction)
    return grouped


def question_hash(question: AudioQuestion, style: str) -> str:
    """Hash of everything about a question that its prediction and its verdict depend on."""
    return digest([prompt_text(question, style), list(question.choices), question.answer, question.audio_path.name])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, as hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


class PredictionFile:
    """The predictions of one evaluation: those already recorded, and a way to append.

    A context manager that holds the file locked, so that two evaluations never write to the same folder. If several
    processes share the work, the main one has this and the others a `part_file` each.

    An answer stands only as long as its clip is the one that it is about (`clips.json`). A question whose clip could
    not be read, and can be now, is open again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        paths: Mapping[str, str],
        prompts: Sequence[AudioPrompt],
    ):
        """Open or create `folder`/predictions.jsonl and take in what other processes have left beside it.

        A half-written or damaged last line, as a kill leaves it, is cut off. Lines about clips that could not be read
        when they were due, or before, are taken out if they can be read now.

        Args:
            folder: where it is.
            settings: everything the predictions depend on; what is recorded already must have been made with the same.
            paths: where checkpoint and data were found; recorded, but free to change.
            prompts: what predictions may be about, in the order that the complete file is to have.

        Raises:
            Refused: the recorded predictions were made with other settings, for other questions or of other clips, a
                line is damaged, or another process is writing to the folder.
        """
        self._folder = Path(folder)
        self._settings, self._paths = dict(settings), dict(paths)
        self.settings_hash = digest(self._settings)
        style = str(settings["prompt_style"])
        self._expected = {
            key: (question_hash(one.question, style), one.question.choices if one.permuted else None)
            for one in prompts
            for key in one.keys
        }
        self._clip_of = {one.question.id: one.question.audio_path for one in prompts}
        self.recorded: dict[Key, Prediction] = {}
        self.batch_sizes: list[int] = []  # that were used: the first one, and what memory made of it
        self._file = RecordFile(self._folder / PREDICTIONS, _ELSEWHERE)
        try:
            for prediction in self._read(self._file):
                if prediction.key in self.recorded:
                    what = f"repeat {prediction.repeat} of the id {prediction.id!r} is repeated"
                    raise Refused.because(str(self._file.path), what, _REMEDY)
                self.recorded[prediction.key] = prediction
            self.take_in_parts()
            self._match_clips()
            if self.recorded:
                self.batch_sizes = self._recorded_batch_sizes()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # which also gives the lock back

    @property
    def is_complete(self) -> bool:
        return len(self.recorded) == len(self._expected)

    def use_batch_size(self, size: int) -> None:
        """Write settings.json, with this batch size as the one in use. Due before anything is appended.

        If several processes share the work, it is the main one's: each lowers its own.
        """
        if self.batch_sizes[-1:] != [size]:
            self.batch_sizes.append(size)
        record = {
            "settings_hash": self.settings_hash,
            "settings": self._settings,
            "paths": self._paths,
            "batch_sizes": self.batch_sizes,
        }
        write_json(self._folder / SETTINGS, record)

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Record those predictions that are not recorded yet, and flush them to disk."""
        new = [one for one in predictions if one.key not in self.recorded]
        self._file.append(one.to_record() for one in new)
        self.recorded.update((one.key, one) for one in new)

    def take_in_parts(self) -> None:
        """Move what other processes have recorded into the file.

        Raises:
            Refused: as on opening.
        """
        for path in sorted(self._folder.glob(_PARTS)):
            with RecordFile(path, _ELSEWHERE) as part:
                self.append(self._read(part))
                path.unlink()

    def sort(self) -> None:
        """Bring the lines into the order of the prompts."""
        if list(self.recorded) != [key for key in self._expected if key in self.recorded]:
            self._keep(self.recorded)

    def _keep(self, predictions: Mapping[Key, Prediction]) -> None:
        """Put these in place of all that is recorded, in the order of the prompts."""
        self.recorded = {key: predictions[key] for key in self._expected if key in predictions}
        self._file.replace(one.to_record() for one in self.recorded.values())

    def _match_clips(self) -> None:
        """Hold what is recorded against the clips as they are, and record these.

        Raises:
            Refused: the clip of an answer is no longer the same; nothing tells which clips the answers are about.
        """
        now, before = clip_hashes(self._clip_of), recorded_clips(self._folder)
        if self.recorded and before is None:
            what = f"its {CLIPS} is missing or damaged, so nothing tells which clips its predictions are about"
            raise Refused.because(str(self._folder), what, _REMEDY)
        before = before or {}
        lost = {one.id for one in self.recorded.values() if one.status == "no_audio"}
        answered = dict.fromkeys(one.id for one in self.recorded.values() if one.status != "no_audio")
        changed = [one for one in answered if before.get(one) not in (None, now[one])]
        if changed:
            what = (
                f"of the {len(answered)} answered clips, {len(changed)} are no longer the same, "
                f"the first being {self._clip_of[changed[0]]} of question {changed[0]!r}"
            )
            raise Refused.because(str(self._folder), what, f"Put them back. {_REMEDY}")
        found = {one for one in lost if is_readable(self._clip_of[one])}
        unknown = {one for one in answered if before.get(one) is None}  # put there while it was running
        if found or unknown:
            say(f"asked again, as their clips can be read now: {len(found | unknown)} of the questions")
            again = {"no_audio": found}
            self._keep({key: one for key, one in self.recorded.items() if one.id not in again.get(one.status, unknown)})
        if now != before:  # only now: with the new hashes, answers to the old clips would pass for answers to these
            write_json(self._folder / CLIPS, now)

    def _recorded_batch_sizes(self) -> list[int]:
        sizes = read_json(self._folder / SETTINGS, _REMEDY).get("batch_sizes")
        if not isinstance(sizes, list) or not sizes or not all(type(one) is int and one > 0 for one in sizes):
            raise Refused.because(str(self._folder / SETTINGS), f"batch_sizes is {sizes!r:.60}", _REMEDY)
        return sizes

    def _read(self, file: RecordFile) -> list[Prediction]:
        """The predictions in a file, each checked against the prompts."""
        values = file.read()
        if values and not check_claim(self._folder / SETTINGS, self._settings, _REMEDY, part="settings"):
            what = f"its {SETTINGS} is missing, so nothing tells how its predictions were made"
            raise Refused.because(str(self._folder), what, _REMEDY)
        predictions = []
        for number, value in enumerate(values, start=1):
            prediction = Prediction.of_record(value)
            if prediction is None:
                fault = "the line is damaged"
            elif prediction.settings_hash != self.settings_hash:
                fault = "the prediction was made with other settings"
            elif (prediction.question_hash, prediction.order) != self._expected.get(prediction.key):
                fault = f"the prediction is about another question than {prediction.id!r} of the data"
            else:
                predictions.append(prediction)
                continue
            raise Refused.because(f"{file.path}:{number}", fault, _REMEDY)
        return predictions


def part_file(folder: str | os.PathLike[str], rank: int) -> RecordFile:
    """What one of several processes records until the main one takes it in: `predictions.rank-N.jsonl`."""
    return RecordFile(Path(folder) / _PARTS.replace("*", str(rank)), _ELSEWHERE)


def clip_hashes(clips: Mapping[str, Path]) -> ClipHashes:
    """The content of clips.json for the clips, by question id, as they are now."""
    different = list(dict.fromkeys(clips.values()))
    with ThreadPoolExecutor() as pool:  # reading and hashing both let other threads run
        hashes = dict(zip(different, pool.map(_hash_of, different), strict=True))
    return {question_id: hashes[path] for question_id, path in clips.items()}


def recorded_clips(folder: Path) -> ClipHashes | None:
    """The clips.json of an evaluation; None if it is absent or damaged."""
    try:
        return read_json(folder / CLIPS, _REMEDY)
    except Refused:
        return None


def is_readable(clip: Path) -> bool:
    """Whether a clip can be decoded, to its end, and is not too short for any model."""
    from r1_aqa_repro.data.audio import AudioError, check_audio, load_audio  # slow to import, and seldom needed

    try:
        load_audio(clip)
    except AudioError:
        return False
    return check_audio(clip, _SHORTEST) is None


def _hash_of(path: Path) -> str | None:
    from r1_aqa_repro.data.audio import MOST_BYTES  # slow to import, and not needed to read what is there

    try:
        return None if os.path.getsize(path) > MOST_BYTES else sha256_of(path)
    except OSError:
        return None
