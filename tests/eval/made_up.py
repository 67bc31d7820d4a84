"""Made-up questions, predictions and evaluations."""

from dataclasses import replace
from pathlib import Path

import pytest

from eval.evaluation import Evaluation
from eval.predictions import predict
from r1_aqa_repro.data.questions import AudioQuestion
from tests.conftest import SHARED_MMAU

CHOICES = ["Man", "Woman", "Child", "Robot"]
PUBLISHED = {"original": "mmau-test-mini.2025-03-25.json", "v05.15.25": "mmau-test-mini.v05.15.25.json"}


def make_questions(n, **fields):
    """Questions to which `cat`, the second of two choices, is right."""
    return [
        AudioQuestion(
            id=f"q{index}",
            audio_path=Path(f"/clips/{index}.wav"),
            question="What is it?",
            choices=("dog", "cat"),
            answer="cat",
            task=("sound", "music", "speech")[index % 3],
            difficulty=("hard", "easy")[index % 2],
            **fields,
        )
        for index in range(n)
    ]


def about_clips(questions, each):
    """The questions, so many in a row about one clip."""
    return [replace(one, audio_path=Path(f"/clips/{index // each}.wav")) for index, one in enumerate(questions)]


def predictions_of(questions, completions, orders=()):
    """Predictions by question and repeat.

    Args:
        questions: those asked; the last ones may have no completions.
        completions: of each question one, or a list of them; None is that of a clip that cannot be read.
        orders: of the choices, one a repeat, if they were asked in several.
    """
    found = {}
    for question, texts in zip(questions, completions, strict=False):
        for repeat, text in enumerate(texts if isinstance(texts, list) else [texts]):
            asked = replace(question, choices=tuple(orders[repeat])) if orders else question
            found[question.id, repeat] = predict(asked, text, "answer", "settings", repeat, bool(orders))
    return found


def evaluation_of(questions, predictions, settings, version="unknown", paths=None, folder=Path("out"), **more):
    paths = {"checkpoint": "model", "data": "data.json"} if paths is None else paths
    return Evaluation(folder, questions, predictions, settings, paths, version, **more)


def mmau_records(n=6, **fields):
    """Questions as the benchmark publishes them; the right answer is `Woman`, the second of four choices."""
    return [
        {
            "id": f"q{index}",
            "audio_id": f"./test-mini-audios/q{index}.wav",
            "question": f"Who speaks in clip {index}?",
            "choices": CHOICES,
            "answer": "Woman",
            "dataset": "AudioSet",
            "task": ("sound", "music", "speech")[index % 3],
            "split": "test-mini",
            "category": ["Reasoning"] if index == 0 else "Reasoning",
            "sub-category": ("Counting", "Melody")[index % 2],
            "difficulty": "easy",
            **fields,
        }
        for index in range(n)
    ]


def words(text):
    """Runs of alphanumeric characters and underscores, character by character."""
    found, word = [], ""
    for character in text.lower() + " ":
        if character.isalnum() or character == "_":
            word += character
        elif word:
            found.append(word)
            word = ""
    return found


def is_right(prediction, gold, choices):
    """The official rule in the words of the benchmark's description, one condition at a time."""
    if len(words(prediction)) == 0:
        return False
    for word in words(gold):
        if word not in words(prediction):
            return False
    for choice in choices:
        if sorted(set(words(choice))) == sorted(set(words(gold))):
            continue
        for word in words(choice):
            if word not in words(gold) and word in words(prediction):
                return False
    return True


def published(version):
    """The published file of a version of MMAU's test-mini."""
    file = SHARED_MMAU / PUBLISHED[version]
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return file
