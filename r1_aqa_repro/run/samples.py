"""What a model makes of eight held-out prompts before and after training: `samples.json` of a run's folder.

A policy's greedy answers, or a reward model's scores of the two answers of a pair (`callbacks.SampleKeeper`). Nothing
heavy is imported: a report on a laptop needs no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.data.conversations import Message, TextPrompt

SAMPLES = "samples.json"
NUM = 8
_SHOWN = 160  # characters of a text on the terminal


@dataclass(frozen=True)
class Sampled:
    """The records that are looked at, of the file that they come from; `scored` if a reward model scores their
    answers."""

    file: str
    records: Sequence[TextPrompt]
    scored: bool = False


def shown_prompt(messages: Sequence[Message]) -> str:
    """A prompt as one text: what the user says, or, of several messages, each with its role before it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def samples_of(run: Path) -> list[dict[str, Any]]:
    """The samples in a run's folder: `prompt`, `before` and `after`, which are null as long as they are not known;
    empty if the run keeps none."""
    file = run / SAMPLES
    return read_json(file, "Delete it.")["samples"] if file.is_file() else []


def parts_of(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is to be shown of a sample below its prompt, each with its name."""
    before, after = sample["before"], sample["after"]
    if "chosen" not in sample:
        yield "before", "(not known)" if before is None else before
        yield "after", "(not known)" if after is None else after
        return
    for name in ("chosen", "rejected"):
        scores = (f"{made[name]:.2f}" if made else "not known" for made in (before, after))
        yield f"{name}, score {' -> '.join(scores)}", sample[name]


def say_samples(run: Path) -> None:
    """Show the samples of a run at the terminal, long texts cut."""
    samples = samples_of(run)
    if not samples:
        return
    say(f"{len(samples)} held-out prompts before and after training, whole in {run / SAMPLES}:")
    for sample in samples:
        say(f"  {_cut(sample['prompt'])}")
        for name, text in parts_of(sample):
            say(f"    {name}: {_cut(text)}")


def _cut(text: str) -> str:
    line = visible_line(text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
