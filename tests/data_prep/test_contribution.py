"""Labels of what the audio contributes: by hand, from answers that are known beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.contribution import contribution_of, label, main, weak_by_guessing
from eval.generation import Generator
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from tests.conftest import make_questions
from tests.files import contents, read_json, read_lines

RIGHT, WRONG, FIRST, SECOND = "right", "wrong", "the first choice", "the second choice"
# q0 and q3 have the choices low and high, whose two orders come in turn: low is first in the first and the third. q1
# has three choices and q2 four, of which high and a rising tone are right.
WAYS = {"q0": FIRST, "q1": RIGHT, "q2": WRONG, "q3": FIRST}
LABELS = {"q0": "weak", "q1": "weak", "q2": "strong", "q3": "strong"}  # q0 right in 2 of 3, q3 in 1 of 3


@pytest.mark.parametrize(
    ("right", "answers", "expected"),
    [(0, 3, "strong"), (1, 3, "strong"), (2, 3, "weak"), (3, 3, "weak"),
     (1, 2, "strong"), (2, 2, "weak"), (0, 1, "strong"), (1, 1, "weak"), (3, 5, "weak"), (2, 5, "strong")],
)  # fmt: skip
def test_weak_is_what_more_than_half_of_the_answers_get_right(right: int, answers: int, expected: str) -> None:
    assert contribution_of(right / answers) == expected


@pytest.mark.parametrize(
    ("choices", "answers", "expected"),
    [(4, 3, 10 / 64), (2, 3, 1 / 2), (4, 1, 1 / 4), (2, 2, 1 / 4), (3, 3, 7 / 27)],
)
def test_what_guessing_would_label_weak(choices: int, answers: int, expected: float) -> None:
    assert weak_by_guessing(choices, answers) == pytest.approx(expected, rel=1e-12)  # rounding of a few products


def test_every_question_is_accounted_for(tmp_path: Path) -> None:
    questions = [replace(one, contribution="weak") for one in make_questions(tmp_path, 4)]  # of an earlier model
    labelled, report = label(questions, {"q0": 1.0, "q1": 1 / 3, "q2": 0.0, "q3": 2 / 3}, ["q2"], 3)
    assert [(one.id, one.contribution) for one in labelled] == [("q0", "weak"), ("q1", "strong"), ("q3", "weak")]
    assert (report.records_in, report.kept, report.dropped) == (4, 3, {"no readable clip": ["q2"]})
    assert report.labels == {"weak": 2, "strong": 1}
    assert report.by_task == {"sound": {"weak": 2, "strong": 0}, "music": {"weak": 0, "strong": 1}}
    assert report.weak_by_guessing == pytest.approx(1 / 2 + 7 / 27 + 1 / 2)  # of 2, 3 and 2 choices


class Scripted:
    """Answers as `WAYS` says; `interrupt` is the number of the batch before which Ctrl-C comes."""

    window_seconds = 30.0

    def __init__(self, interrupt: int | None = None):
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.batches, self.interrupt = 0, interrupt

    def answer(self, prompts: Any, warn: Any) -> list[list[str | None]]:
        self.batches += 1
        if self.batches == self.interrupt:
            raise KeyboardInterrupt
        return [[self._completion(one.question)] for one in prompts]

    def _completion(self, question: AudioQuestion) -> str | None:
        if not question.audio_path.is_file():
            return None
        self.asked.append((question.id, question.choices))
        choices, way = question.choices, WAYS[question.id]
        wrong = next(choice for choice in choices if choice != question.answer)
        said = {RIGHT: question.answer, WRONG: wrong, FIRST: choices[0], SECOND: choices[1]}[way]
        return f"<answer>{said}</answer>"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    manifest = tmp_path / "data" / "manifest.jsonl"
    write_manifest(manifest, make_questions(tmp_path / "data" / "clips", 4))
    return manifest


@pytest.fixture
def command(model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command: `command(answering, ...)` gives the exit code."""

    def of(answering: Scripted | None, *more: str, out: Path = tmp_path / "out") -> int:
        def load(settings: Any, own_decoding: Any) -> Any:
            assert answering is not None, "nothing is left to ask"
            assert settings.no_audio
            return answering

        monkeypatch.setattr(Generator, "load", load)
        asked = ["--ckpt", str(model_folder), "--data", str(data), "--out", str(out), "--device", "cpu"]
        return int(main([*asked, "--batch-size", "5", *more]))

    return of


def test_labels_follow_from_the_answers(command: Any, data: Path, tmp_path: Path) -> None:
    answering, out = Scripted(), tmp_path / "out"
    assert command(answering) == 0
    assert sorted(id for id, _ in answering.asked) == sorted([*WAYS] * 3)
    assert len({order for id, order in answering.asked if id == "q2"}) == 3  # four choices, three orders
    labelled, before = read_questions(out / "manifest.jsonl").records, read_questions(data).records
    assert [replace(one, audio_path=one.audio_path.resolve()) for one in labelled] == [
        replace(one, contribution=LABELS[one.id]) for one in before
    ]
    report = read_json(out / "prep_report.json")
    assert (report["records_in"], report["kept"], report["dropped"]) == (4, 4, {})
    assert (report["answers"], report["labels"]) == (3, {"weak": 2, "strong": 2})
    assert read_json(out / "without_audio" / "settings.json")["settings"]["no_audio"] is True

    made = contents(out)
    assert command(None) == 0  # complete: it is only labelled again
    assert contents(out) == made


def test_an_interrupted_labelling_goes_on(command: Any, tmp_path: Path) -> None:
    first, rest, whole = Scripted(interrupt=2), Scripted(), tmp_path / "whole"
    assert command(first) == 130
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert command(rest) == 0
    assert len(first.asked) == 5 and len(rest.asked) == 12 - 5
    assert command(Scripted(), out=whole) == 0
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == (whole / "manifest.jsonl").read_bytes()


def test_a_question_without_a_clip_is_left_out_and_listed(command: Any, data: Path, tmp_path: Path) -> None:
    (data.parent / "clips" / "clip-1.wav").unlink()
    assert command(Scripted()) == 3
    assert [line["id"] for line in read_lines(tmp_path / "out" / "manifest.jsonl")] == ["q0", "q2", "q3"]
    assert read_json(tmp_path / "out" / "prep_report.json")["dropped"] == {"no readable clip": ["q1"]}


def test_other_numbers_of_answers_and_other_folders_are_refused(
    command: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data.parent)
    assert command(None, out=data.parent) == 2  # it would overwrite what it reads
    assert "holds manifest.jsonl from elsewhere" in capsys.readouterr().err
    assert contents(data.parent) == before
    assert command(Scripted()) == 0
    assert command(None, "--answers", "5") == 2
    assert "answers was 3, now it is 5" in capsys.readouterr().err


def test_a_question_without_an_answer_is_refused(
    command: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(data, [replace(one, answer=None) for one in read_questions(data).records])
    assert command(None) == 2
    assert f"{data}: q0: the question has no answer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
