"""How much of everything a small study takes: `configs/small_study.yaml`, checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.label_questions import CHOICES
from data_prep.media import MAX_SECONDS, MIN_SECONDS
from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.yaml_file import NAMES, are_texts, as_argument, problems_of, read_yaml

ARMS = ("sft", "grpo", "grpo_think")  # what is compared, each from the warm start
HALVES = ("report", "tune")  # of the held-out recordings
# keys of the settings and options of the study that `compose` and `data_prep.labelled` have as options of their own
_KEYS = {
    "--families": "families",
    "--labels": "labels",
    "--hold-out-source": "held_out_sources",
    "--min-recordings": "min_recordings",
    "--choices": "choices",
    "--window-seconds": "window_seconds",
}
_OPTIONS = {"--table": "--data", "--seed": "--first-seed", "--out": "--output-dir"}


@dataclass(frozen=True)
class Size:
    """The numbers of a setting, all of them counts.

    per_family: questions of the warm start in each family, and as many, on other recordings, of all arms.
    unheard_per_family: of the warm start's, asked once more with silence in place of the clip.
    held_out_per_family: questions on each half of the held-out recordings.
    held_out_per_source: questions of each held-out source that are asked.
    warm_start_steps, grpo_steps: of these two trainings; the others' follow from GRPO's compute.
    pilot_samples: answers of the warm start to each further question, from which GRPO's order follows.
    think_probe_steps: of the run that measures what a step of GRPO with thoughts takes.
    orders: in which each held-out question is asked.
    answer_tokens, think_tokens: longest completion of an evaluation.
    eval_batch_size: questions at once.
    completions_shown: in the report, of each family.
    """

    per_family: int
    unheard_per_family: int
    held_out_per_family: int
    held_out_per_source: int
    warm_start_steps: int
    grpo_steps: int
    pilot_samples: int
    think_probe_steps: int
    orders: int
    answer_tokens: int
    think_tokens: int
    eval_batch_size: int
    completions_shown: int


@dataclass(frozen=True)
class Settings:
    """A study.

    families, labels, min_recordings, choices, seconds, questions_a_clip, hold_out, held_out_sources: of the questions,
        see `python -m data_prep.labelled --help`; `labels` lists those of a family, of which otherwise all are asked.
    window_seconds: of the encoder.
    align, sft, grpo, grpo_think: names of files in configs/, without .yaml.
    arms: further keys of these files by arm; the warm start is an arm of its own here.
    size: the numbers of the setting.
    """

    families: list[str]
    labels: dict[str, Any]
    min_recordings: int
    choices: int
    seconds: float
    questions_a_clip: int
    hold_out: float
    held_out_sources: list[str]
    window_seconds: int
    align: str
    sft: str
    grpo: str
    grpo_think: str
    arms: dict[str, Any]
    size: Size

    def overrides(self, arm: str, **more: Any) -> list[str]:
        """The keys of an arm as the arguments of a training command."""
        keys = (self.arms.get(arm) or {}) | more
        return [part for name, value in keys.items() for part in (f"--{name}", as_argument(value))]


def read_settings(path: Path, size: str) -> Settings:
    """The settings in a YAML file, with the numbers under the key `size`.

    Raises:
        Refused: the file cannot be read; or with every key that is absent, unknown or of another kind.
    """
    content = read_yaml(path)
    problems: list[Problem] = []
    sizes = {name: content.pop(name, None) for name in ("small", "quick")}
    for name, numbers in sizes.items():
        problems += problems_of(Size, numbers, f"{path}: {name}")
    problems += problems_of(Settings, content | {"size": {}}, str(path))
    if not problems:
        for arm, keys in content["arms"].items():
            if arm not in ("warm_start", *ARMS) or not isinstance(keys, dict):
                remedy = f"Give keys of a training under warm_start, {', '.join(ARMS)}."
                problems.append(Problem(f"{path}: arms.{arm}", "it is no arm with keys of its own", remedy))
        for family, labels in content["labels"].items():
            if not labels or not are_texts(labels):
                problems.append(Problem(f"{path}: labels.{family}", f"{labels!r:.80}", f"Give {NAMES}."))
        for source in content["held_out_sources"]:
            if not source.rpartition("=")[2] or source.startswith("="):
                what = f"{source!r:.80} is no source"
                problems.append(Problem(f"{path}: held_out_sources", what, "Give `source` or `family=source`."))
        if not content["families"]:
            problems.append(Problem(f"{path}: families", "there is none", f"Give {NAMES}."))
        if content["choices"] not in CHOICES:
            remedy = f"Give a number from {CHOICES[0]} to {CHOICES[-1]}."
            problems.append(Problem(f"{path}: choices", str(content["choices"]), remedy))
        if not MIN_SECONDS <= content["seconds"] <= MAX_SECONDS:
            remedy = f"Give a number from {MIN_SECONDS} to {MAX_SECONDS:.0f}."
            problems.append(Problem(f"{path}: seconds", f"{content['seconds']:g}", remedy))
        if content["window_seconds"] < content["seconds"]:
            what = f"clips of {content['seconds']:g} s do not fit into {content['window_seconds']} s"
            problems.append(Problem(f"{path}: window_seconds", what, "Give whole seconds, at least those of a clip."))
        if not 0 < content["hold_out"] < 1:
            problems.append(Problem(f"{path}: hold_out", f"{content['hold_out']}", "Give a share between 0 and 1."))
    if problems:
        raise Refused(problems)
    return Settings(**content, size=Size(**sizes[size]))


@contextmanager
def in_words_of_the_study(config: Path) -> Iterator[None]:
    """What `compose` and `data_prep.labelled` refuse inside names the keys of `config` in place of their options.

    Raises:
        Refused: with the same problems.
    """

    def named(text: str) -> str:
        return re.sub(r"(?<![\w-])--[a-z-]+", lambda option: (_KEYS | _OPTIONS).get(option[0], option[0]), text)

    def told(one: Problem) -> Problem:
        file = f"{config}: " if one.where.startswith(tuple(_KEYS)) else ""
        return Problem(file + named(one.where), one.what, named(one.remedy))

    try:
        yield
    except Refused as refusal:
        raise Refused([told(one) for one in refusal.problems]) from None
