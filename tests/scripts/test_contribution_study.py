"""The study's own parts: which questions give themselves away, and what is made of verdicts. It trains nothing here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.contribution_study import ALL, ROUND, START, STRONG, half_guessable, is_guessable, pooled
from tests.conftest import make_questions


def test_every_second_round_says_its_answer_and_nothing_else_changes(tmp_path: Path) -> None:
    before = make_questions(tmp_path, 2 * ROUND + 1)
    after = half_guessable(before)
    assert [is_guessable(one) for one in after] == [False] * ROUND + [True] * ROUND + [False]
    untouched = [
        replace(new, question=old.question, audio_path=old.audio_path) for old, new in zip(before, after, strict=True)
    ]
    assert untouched == before
    clips, own = ([one.audio_path for one in questions] for questions in (after, before))
    assert clips == [*own[:ROUND], *own[ROUND + 1 : 2 * ROUND], own[ROUND], own[2 * ROUND]]
    assert after[ROUND].question.endswith(f"The file is called {before[ROUND].answer}.")


def test_verdicts_of_all_seeds_are_pooled() -> None:
    """Two seeds of two questions each, of which one is guessable."""

    def of_seed(seed: str, **rows: str) -> dict:
        names = [f"{seed}-guessable", f"{seed}-other"]
        read = {name: dict(zip(names, (mark == "1" for mark in marks), strict=True)) for name, marks in rows.items()}
        return {
            "labels": [(True, "weak"), (True, "strong"), (False, "strong")],
            "guessable": {names[0]: True, names[1]: False},
            "verdicts": {
                model: (read[f"{key}_with"], read[f"{key}_without"])
                for model, key in ((START, "start"), (ALL, "all"), (STRONG, "strong"))
            },
        }

    results = pooled(
        [
            of_seed("a", start_with="01", start_without="00", all_with="10", all_without="10", strong_with="01",
                    strong_without="00"),
            of_seed("b", start_with="00", start_without="01", all_with="11", all_without="11", strong_with="11",
                    strong_without="01"),
        ]
    )  # fmt: skip
    assert results["labels"] == {"guessable": {"weak": 2, "strong": 2}, "others": {"weak": 0, "strong": 2}}
    shares = {name: block["accuracy"] for name, block in results["models"][ALL].items()}
    assert shares == {
        "guessable, with audio": 1.0,
        "guessable, without audio": 1.0,
        "others, with audio": 0.5,
        "others, without audio": 0.5,
    }
    assert results["models"][START]["others, with audio"]["n"] == 2
    gains = {name: block["accuracy"] for name, block in results["gains"].items()}
    assert gains == {
        "trained on all, without audio": pytest.approx(3 / 4 - 1 / 4),
        "trained on strong, without audio": 0.0,
        "strong instead of all, with audio, others": pytest.approx(1 - 1 / 2),
    }
