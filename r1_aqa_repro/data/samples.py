"""Several answers to each prompt and what they are worth: their file, and the preference pairs that they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import write_json, write_lines
from r1_aqa_repro.common.record_file import RecordFile
from r1_aqa_repro.data.conversations import TextPrompt, answer

PAIRS, SAMPLES, SUMMARY = "pairs.jsonl", "samples.jsonl", "summary.json"  # beside each other in a folder
_REMEDY = "Choose another --out, or remove what is there."


@dataclass(frozen=True)
class Sampled:
    """The n answers to one prompt. The fields are those of a line."""

    id: str  # of the prompt
    completions: list[str]
    finished: list[bool]  # whether they came to their end before they were cut off
    rewards: dict[str, list[float]]  # what each is worth by each reward, 0 if one does not apply
    scores: list[float]  # the weighted sums

    def whole(self) -> list[int]:
        """Which answers can be one of a pair: not one that was cut off or is empty, to which a trainer would add an end
        that the model did not write."""
        return [i for i, text in enumerate(self.completions) if self.finished[i] and text.strip()]

    def best_and_worst(self) -> tuple[int, int] | None:
        """Which whole answers have the highest and the lowest score, the first of equals; None if nothing tells
        them apart."""
        whole = self.whole()
        if not whole:
            return None
        best, worst = max(whole, key=self.scores.__getitem__), min(whole, key=self.scores.__getitem__)
        # a reward model may score one text twice with a difference in the last bits
        same_text = self.completions[best].strip() == self.completions[worst].strip()
        return None if same_text or self.scores[best] == self.scores[worst] else (best, worst)


def pair_of(prompt: TextPrompt, sampled: Sampled) -> dict[str, Any] | None:
    """The best answer against the worst as a preference pair (see `conversations`); None if there are no such two."""
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
        "score_chosen": sampled.scores[best],
        "score_rejected": sampled.scores[worst],
    }


def kl_bound(n: int) -> float:
    """Nats by which picking the best of n answers departs from the model that wrote them, at most: log n - (n - 1) / n.

    The formula is that of arXiv 2112.09332; arXiv 2401.01879 proves that it is an upper bound, reached if no two
    answers are equally good.
    """
    return math.log(n) - (n - 1) / n


def write_results(
    out: Path, settings: Mapping[str, Any], prompts: Sequence[TextPrompt], samples: Sequence[Sampled]
) -> dict[str, Any]:
    """Write the pairs and the summary of complete samples to a folder; returns the summary."""
    found = [pair_of(prompt, sampled) for prompt, sampled in zip(prompts, samples, strict=True)]
    pairs = [pair for pair in found if pair is not None]
    write_lines(out / PAIRS, pairs)
    too_few = sum(len(sampled.whole()) < 2 for sampled in samples)
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
        "kl_bound": kl_bound(len(samples[0].scores)),
        "kl_bound_of": "log n - (n - 1) / n nats an answer, arXiv 2112.09332 and 2401.01879",
    }
    write_json(out / SUMMARY, summary)
    return summary


class SampleFile(RecordFile):
    """The samples of a run, a line a prompt in the prompts' order; what was there before is in `recorded`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], ids: Sequence[str]):
        """Open or create the file in a folder, whose summary tells all that the samples depend on.

        Raises:
            Refused: what is there was made with other settings or for prompts of other ids, a line is damaged, another
                process is writing to it, or it cannot be written.
        """
        super().__init__(out / SAMPLES, "Choose another --out.")
        try:
            self.recorded = [
                _sampled(record, f"{self.path}:{number}", ids[number - 1 : number])
                for number, record in enumerate(self.read(), start=1)
            ]
            if not self.recorded:
                write_json(out / SUMMARY, {"settings": dict(settings)})
            elif not check_claim(out / SUMMARY, settings, _REMEDY, part="settings"):
                what = "missing, so that nothing tells how the samples beside it were made"
                raise Refused.because(str(out / SUMMARY), what, _REMEDY)
        except BaseException:
            self.close()
            raise

    def add(self, samples: Sequence[Sampled]) -> None:
        """Record the samples of the next prompts; see `RecordFile.append`."""
        self.append(map(asdict, samples))
        self.recorded += samples


def _sampled(record: Any, where: str, due: Sequence[str]) -> Sampled:
    if record is None or set(record) != {field.name for field in fields(Sampled)}:
        raise Refused.because(where, "the line is damaged", _REMEDY)
    if [record["id"]] != list(due):
        raise Refused.because(where, f"{record['id']!r} is not the prompt due there", _REMEDY)
    return Sampled(**record)
