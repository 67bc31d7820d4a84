"""Several answers to each prompt and what they are worth: their file, and the preference pairs that they give."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from r1_aqa_repro.common.errors import Failed, Problem, Refused
from r1_aqa_repro.common.files import open_locked, write_json, write_lines
from r1_aqa_repro.data.conversations import TextPrompt, answer

_REMEDY = "Choose another --out, or remove what is there."


@dataclass(frozen=True)
class Sampled:
    """The n answers to one prompt. The fields are those of a line.

    id: of the prompt.
    completions: as they were sampled.
    finished: whether they came to their end before they were cut off.
    rewards: what each is worth by each reward, 0 where one does not apply.
    scores: the weighted sums.
    """

    id: str
    completions: list[str]
    finished: list[bool]
    rewards: dict[str, list[float]]
    scores: list[float]

    def whole(self) -> list[int]:
        """Which answers can be one of a pair: to one that was cut off, or is empty, a trainer would add an end that
        the model did not write."""
        return [i for i, text in enumerate(self.completions) if self.finished[i] and text.strip()]

    def best_and_worst(self) -> tuple[int, int] | None:
        """Which whole answers have the highest and the lowest score, the first of equals; None where nothing tells
        them apart.
        """
        whole = self.whole()  # neither cut off nor empty
        if not whole:
            return None
        best, worst = max(whole, key=self.scores.__getitem__), min(whole, key=self.scores.__getitem__)
        # a reward model may score one text twice with a difference in the last bits
        same_text = self.completions[best].strip() == self.completions[worst].strip()
        return None if same_text or self.scores[best] == self.scores[worst] else (best, worst)


def pair_of(prompt: TextPrompt, sampled: Sampled) -> dict[str, Any] | None:
    """The best answer against the worst as a preference pair (`text_data`); None where there are no such two."""
    picked = sampled.best_and_worst()
    if picked is None:
        return None
    best, worst = picked
    return {
        "id": prompt.id,
        **({"task": prompt.columns["task"]} if "task" in prompt.columns else {}),
        "prompt": prompt.messages,
        "chosen": answer(sampled.completions[best]),
        "rejected": answer(sampled.completions[worst]),
        "chosen_score": sampled.scores[best],
        "rejected_score": sampled.scores[worst],
    }


def kl_bound(n: int) -> float:
    """Nats by which picking the best of n answers departs from the model that wrote them, at most: log n - (n - 1) / n.

    The formula is that of arXiv 2112.09332; arXiv 2401.01879 proves that it is an upper bound, reached where no two
    answers are equally good.
    """
    return math.log(n) - (n - 1) / n


@dataclass(frozen=True)
class Outputs:
    """The files of a run, all beside each other."""

    pairs: Path
    samples: Path
    summary: Path

    @classmethod
    def at(cls, out: Path) -> Outputs:
        """`pairs.jsonl`, `samples.jsonl` and `summary.json` in a folder; for `X.jsonl` that file, `X.samples.jsonl` and
        `X.summary.json`."""
        if out.suffix == ".jsonl":
            return cls(out, out.with_suffix(".samples.jsonl"), out.with_suffix(".summary.json"))
        return cls(out / "pairs.jsonl", out / "samples.jsonl", out / "summary.json")


def write_results(
    outputs: Outputs, settings: Mapping[str, Any], prompts: Sequence[TextPrompt], samples: Sequence[Sampled]
) -> dict[str, Any]:
    """Write the pairs and the summary of complete samples; returns the summary."""
    found = [pair_of(prompt, sampled) for prompt, sampled in zip(prompts, samples, strict=True)]
    pairs = [pair for pair in found if pair is not None]
    write_lines(outputs.pairs, pairs)
    too_few = sum(len(sampled.whole()) < 2 for sampled in samples)
    n = len(samples[0].scores)
    scores = [score for sampled in samples for score in sampled.scores]
    summary = {
        "settings": dict(settings),
        "prompts": len(samples),
        "pairs": len(pairs),
        "ties": len(samples) - len(pairs) - too_few,
        "without_two_whole_answers": too_few,
        "samples": len(scores),
        "cut_off": sum(not finished for sampled in samples for finished in sampled.finished),
        "empty": sum(not text.strip() for sampled in samples for text in sampled.completions),
        "mean_score": sum(scores) / len(scores),
        "mean_best_score": sum(max(sampled.scores) for sampled in samples) / len(samples),
        "mean_rewards": {
            name: sum(value for sampled in samples for value in sampled.rewards[name]) / len(scores)
            for name in samples[0].rewards
        },
        "kl_bound": kl_bound(n),
        "kl_bound_of": "log n - (n - 1) / n nats an answer, arXiv 2112.09332 and 2401.01879",
    }
    write_json(outputs.summary, summary)
    return summary


class SampleFile:
    """The samples of a run, a line a prompt in the prompts' order; what was there before is in `recorded`.

    A context manager that holds the file locked, so that two runs never write to it at once.
    """

    def __init__(self, outputs: Outputs, settings: Mapping[str, Any], ids: Sequence[str]):
        """Open or create the file. A last line that a kill has left half-written is cut off.

        Args:
            outputs: where it is; the summary beside it tells what it was made with.
            settings: everything that the samples depend on.
            ids: of the prompts.

        Raises:
            Refused: what is there was made with other settings or for other prompts, a line is damaged, another process
                is writing to it, or it cannot be written.
        """
        self._file = open_locked(outputs.samples, "Choose another --out.")
        try:
            self.recorded = self._read(outputs.samples, ids)
            if self.recorded:
                _check_settings(outputs.summary, settings)
            else:
                write_json(outputs.summary, {"settings": dict(settings)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # which also gives the lock back

    def append(self, samples: Iterable[Sampled]) -> None:
        """Record the samples of the next prompts and flush them to disk."""
        new = list(samples)
        lines = [json.dumps(asdict(sampled), ensure_ascii=False) + "\n" for sampled in new]
        try:
            self._file.write("".join(lines).encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            what = f"{self._file.name}: cannot be written ({error.strerror}); the earlier samples are kept"
            raise Failed(what) from error
        self.recorded += new

    def _read(self, path: Path, ids: Sequence[str]) -> list[Sampled]:
        self._file.seek(0)
        content = self._file.read()
        *lines, _ = content.split(b"\n")  # not splitlines(): other line separators may stand inside a line
        self._file.truncate(sum(len(line) + 1 for line in lines))
        recorded = []
        for number, line in enumerate(lines):
            sampled = _parse(line)
            if sampled is None:
                raise Refused.because(f"{path}:{number + 1}", "the line is damaged", _REMEDY)
            if number >= len(ids) or sampled.id != ids[number]:
                raise Refused.because(f"{path}:{number + 1}", f"{sampled.id!r} is not the prompt due there", _REMEDY)
            recorded.append(sampled)
        return recorded


def _check_settings(summary: Path, settings: Mapping[str, Any]) -> None:
    try:
        old = json.loads(summary.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        what = "missing or damaged, so that nothing tells how the samples beside it were made"
        raise Refused.because(str(summary), what, _REMEDY) from None
    problems = [
        Problem(str(summary), f"made with {key} = {old.get(key)!r}, not {settings.get(key)!r}", f"Use it. {_REMEDY}")
        for key in {**old, **settings}
        if old.get(key) != settings.get(key)
    ]
    if problems:
        raise Refused(problems)


def _parse(line: bytes) -> Sampled | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or set(record) != {field.name for field in fields(Sampled)}:
        return None
    return Sampled(**record)
