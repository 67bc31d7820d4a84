"""`predictions.jsonl`: one line a question, appended as they come, and picked up again after any kind of end."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from r1_aqa_repro.answers import parse_completion
from r1_aqa_repro.errors import Problem, Refused
from r1_aqa_repro.files import write_json
from r1_aqa_repro.prompts import prompt_text
from r1_aqa_repro.schema import AudioQuestion


@dataclass(frozen=True)
class Prediction:
    """What a model said to one question.

    `completion` is the raw text, None where the clip could not be read; `answer` is what was parsed from it, None where
    nothing could be; `status` is `ok`, `unparsed` or `no_audio`.
    """

    id: str
    repeat: int
    completion: str | None
    answer: str | None
    status: str
    settings_hash: str
    question_hash: str


def predict(question: AudioQuestion, completion: str | None, style: str, settings_hash: str) -> Prediction:
    """The record of a completion, or of an unreadable clip (None)."""
    answer = None if completion is None else parse_completion(completion).answer
    status = "no_audio" if completion is None else "unparsed" if answer is None else "ok"
    return Prediction(question.id, 0, completion, answer, status, settings_hash, question_hash(question, style))


def question_hash(question: AudioQuestion, style: str) -> str:
    """Hash of everything about a question that its prediction and its verdict depend on."""
    return digest([prompt_text(question, style), list(question.choices), question.answer, question.audio_path.name])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, as hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


class PredictionFile:
    """The predictions of one evaluation: those already recorded, and a way to append.

    A context manager that holds the file locked, so that two processes never write to the same folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        paths: Mapping[str, str],
        questions: Sequence[AudioQuestion],
    ):
        """Open or create `folder`/predictions.jsonl and `folder`/settings.json.

        A half-written last line, as a kill leaves it, is cut off.

        Args:
            folder: where the two files are.
            settings: everything the predictions depend on; what is recorded already must have been made with the same.
            paths: where checkpoint and data were found; recorded, but free to change.
            questions: the questions that predictions may be about.

        Raises:
            Refused: the recorded predictions were made with other settings or for other questions, a line is damaged,
                or another process is writing to the folder.
        """
        self._folder = Path(folder)
        self._settings, self._paths = dict(settings), dict(paths)
        self.settings_hash = digest(self._settings)
        self._path = self._folder / "predictions.jsonl"
        self._style = str(settings["prompt_style"])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b")  # noqa: SIM115 (locked until __exit__ closes it)
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise Refused.because(str(self._folder), what, "Choose another --out.") from None
        try:
            self._lock()
            self.recorded = self._read({question.id: question_hash(question, self._style) for question in questions})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # which also gives the lock back

    def append(self, batch: Iterable[tuple[AudioQuestion, str | None]]) -> None:
        """Record the completions (None: no audio) of those questions that have none yet, and flush them to disk."""
        if not self.recorded:
            write_json(
                self._folder / "settings.json",
                {"settings_hash": self.settings_hash, "settings": self._settings, "paths": self._paths},
            )
        new = [
            predict(question, completion, self._style, self.settings_hash)
            for question, completion in batch
            if question.id not in self.recorded
        ]
        self._file.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in new).encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.recorded.update((one.id, one) for one in new)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another process is writing its predictions there"
            raise Refused.because(str(self._folder), what, "Wait for it or choose another --out.") from None

    def _read(self, question_hashes: Mapping[str, str]) -> dict[str, Prediction]:
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            self._file.truncate(len(complete))
        lines = complete.split(b"\n")[:-1]  # not splitlines(): other line separators may stand inside a line
        if lines:
            self._check_settings()
        recorded: dict[str, Prediction] = {}
        for number, line in enumerate(lines, start=1):
            prediction = _parse(line)
            if prediction is None:
                fault = "the line is damaged"
            elif prediction.id in recorded:
                fault = f"the id {prediction.id!r} is repeated"
            elif prediction.settings_hash != self.settings_hash:
                fault = "the prediction was made with other settings"
            elif prediction.question_hash != question_hashes.get(prediction.id):
                fault = f"the prediction is about another question than {prediction.id!r} of the data"
            else:
                recorded[prediction.id] = prediction
                continue
            remedy = "Choose another --out, or remove the folder."
            raise Refused.because(f"{self._path}:{number}", fault, remedy)
        return recorded

    def _check_settings(self) -> None:
        try:
            old = json.loads((self._folder / "settings.json").read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError):
            what = "its settings.json is missing or damaged, so nothing tells how its predictions were made"
            raise Refused.because(str(self._folder), what, "Choose another --out, or remove the folder.") from None
        problems = [
            Problem(
                str(self._folder),
                f"its predictions were made with {key} = {old.get(key)!r}, not {self._settings.get(key)!r}",
                "Use the same, choose another --out, or remove the folder.",
            )
            for key in {**old, **self._settings}
            if old.get(key) != self._settings.get(key)
        ]
        if problems:
            raise Refused(problems)


def _parse(line: bytes) -> Prediction | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or set(record) != {field.name for field in fields(Prediction)}:
        return None
    return Prediction(**record)
