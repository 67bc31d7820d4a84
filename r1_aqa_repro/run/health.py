"""A doctor for GRPO runs: signs in the log that a run is ill, each with its cause and the key to turn.

A figure of a single step jumps: what is judged is the mean of the last `WINDOW` logged steps. Thresholds stand in
`SIGNS` with their sources; docs/training.md has the table.
"""

from __future__ import annotations

import math
import operator
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from r1_aqa_repro.common.distributed import is_main_process
from r1_aqa_repro.common.escaping import visible
from r1_aqa_repro.rewards.rules import ACCURACY_FIGURES, FORMAT_FIGURES
from r1_aqa_repro.run.arguments import BEST_METRIC
from r1_aqa_repro.run.folder import update_run

WINDOW = 20  # logged steps
_SETTLED = 5 * WINDOW  # logged steps after which accuracy should have moved
_LEARNED = 0.9  # share of completions
_REWARD_ROSE = 0.05  # of a sum that is 2 at most in R1-AQA's runs

Figures = Mapping[str, Sequence[float]]  # what has been logged, by name, in order


@dataclass(frozen=True)
class Sign:
    """Something that a run's log shows.

    name: of the illness.
    value: what is judged, of everything logged so far; None while that says nothing, such as of too few steps.
    limit: the value from which on the run is ill.
    sentence: what is said of a value: cause, and the key to turn.
    is_ill: compares a value with the limit.
    limit_in_16_bits: the limit where weights are computed with in bfloat16 or float16, if another.
    """

    name: str
    value: Callable[[Figures], float | None]
    limit: float
    sentence: str
    is_ill: Callable[[float, float], bool] = operator.ge
    limit_in_16_bits: float | None = None


def _mean_of_last(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: fmean(figures[name][-WINDOW:]) if len(figures[name]) >= WINDOW else None


def _entropy_left(figures: Figures) -> float | None:
    """Share of the entropy of the first steps, once these have passed, if they had any."""
    entropy = figures["entropy"]
    first = fmean(entropy[:WINDOW]) if len(entropy) >= 2 * WINDOW else 0.0
    return fmean(entropy[-WINDOW:]) / first if first > 0 else None


def _evaluations_without_gain(figures: Figures) -> float | None:
    """Evaluations since the best one, if training's reward has risen since it; 0 otherwise."""
    accuracy, reward_steps, reward = figures[BEST_METRIC], figures[_REWARDS_BEFORE], figures["reward"]
    if not accuracy or len(reward) < WINDOW:
        return None
    best = accuracy.index(max(accuracy))
    then = max(int(reward_steps[best]), WINDOW)  # before training the first steps stand for it
    has_risen = fmean(reward[-WINDOW:]) - fmean(reward[then - WINDOW : then]) >= _REWARD_ROSE
    return len(accuracy) - 1 - best if has_risen else 0


def _accuracy_gained(figures: Figures) -> float | None:
    """By the accuracy reward since the first steps, if by now the format is learned and what it is for is not."""
    accuracy, form = (
        [figures[name] for name in names if figures[name]] for names in (ACCURACY_FIGURES, FORMAT_FIGURES)
    )
    if not accuracy or not form or len(accuracy[-1]) < _SETTLED:
        return None
    lately, well_formed = fmean(accuracy[-1][-WINDOW:]), fmean(form[-1][-WINDOW:])
    return lately - fmean(accuracy[-1][:WINDOW]) if lately < _LEARNED <= well_formed else None


def _logp_difference(figures: Figures) -> float | None:
    """Of the last step: already a mean over all its tokens."""
    return figures[_LOGP][-1] if figures[_LOGP] else None


_LOGP = "sampling/logp_difference"
_REWARDS_BEFORE = "rewards logged before each evaluation"  # our own count, not a figure of the log
_FIGURES = {
    *("reward", "entropy", "frac_reward_zero_std", "completions/clipped_ratio", "completions/letter_only"),
    *(_LOGP, BEST_METRIC, *ACCURACY_FIGURES, *FORMAT_FIGURES),
}

SIGNS = (
    Sign(
        "zero-variance groups",
        _mean_of_last("frac_reward_zero_std"),
        # ours: a tenth of the batch is left. R1-AQA: reward std 0-0.05 after 50-100 steps; why it matters: 2503.14476
        0.9,
        "{value:.0%} of the groups got equal rewards, and nothing is learned from these: set dynamic_sampling; if all "
        "their answers are wrong, start from a model that is right at times",
    ),
    Sign(
        "entropy collapse",
        _entropy_left,
        0.1,  # ours; 2505.22617: 76 % of the gain lay behind runs when 73 % of their entropy was gone
        "entropy is {value:.0%} of that of the first steps, and hardly anything new is tried: lower learning_rate, or "
        "raise beta or entropy_coef",
        operator.le,
    ),
    Sign(
        "clipped lengths",
        _mean_of_last("completions/clipped_ratio"),
        0.1,  # ours; 2503.14476, 3.4: the rewards of cut completions are noise
        "{value:.0%} of the completions are cut at max_completion_length and judged by what is there: raise it, or set "
        "mask_truncated_completions",
    ),
    Sign(
        "reward without held-out accuracy",
        _evaluations_without_gain,
        3,  # ours; 2210.10760: the reward goes on rising while what is meant falls; r1-aqa#14: the best came early
        "reward has risen, but the last {value:.0f} evaluations were no better than one before: what is learned is the "
        "reward, not to answer; take the best checkpoint, and raise beta or lower max_steps",
    ),
    Sign(
        "sampling and scoring disagree",
        _logp_difference,
        1e-4,  # ours: a hundred times what rounding does in float32
        "log-probs as sampled and as scored are {value:.1e} apart, more than rounding: the model in training is not "
        "the one that was sampled from; set cuda_graphs: false, then sharing: off, and report which one helps",
        limit_in_16_bits=0.05,  # ours: five times the most that rounding does in bfloat16
    ),
    Sign(
        "format without accuracy",
        _accuracy_gained,
        0.0,  # ours: after 100 logged steps nothing of the reward that is hard to get
        "the format is right, but accuracy has changed by {value:+.2f} since the first steps, only the easier reward "
        "is collected: lower its reward_weights, or start from a model that is right more often",
        operator.le,
    ),
    Sign(
        "drift to letters",
        _mean_of_last("completions/letter_only"),
        0.1,  # ours: that much of the benchmark's accuracy is at stake
        "{value:.0%} of the answers are the letter of a choice alone, which the benchmark counts as wrong: reward by "
        "accuracy or r1_aqa_accuracy instead of lenient_accuracy",
    ),
)


@dataclass
class Finding:
    """What is known of a sign: its latest value, the steps at which it was reported, and whether it still shows."""

    limit: float
    value: float | None = None
    alarms: list[int] = field(default_factory=list)
    shows: bool = False
    healthy_for: int = 0  # entries of the log

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.value is None:
            return "not judged"
        steps = ", ".join(map(str, self.alarms))
        return f"reported at step {steps}" + ("" if self.shows else ", recovered") if steps else "well"


class Doctor(TrainerCallback):
    """Reports each of `SIGNS` when it shows, and again only after it had gone for `WINDOW` entries of the log.

    At the end of training, or when it is interrupted, all findings are shown and kept in run.json as `health`. They
    depend on the log alone, which a resumed run restores.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        in_16_bits = args.bf16 or args.fp16 or model.dtype != torch.float32
        self._figures: dict[str, list[float]] = defaultdict(list)
        self.findings = {sign.name: Finding((in_16_bits and sign.limit_in_16_bits) or sign.limit) for sign in SIGNS}
        for entry in state.log_history:
            self._examine(entry)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        for sign in self._examine(state.log_history[-1]):
            said = sign.sentence.format(value=self.findings[sign.name].value)
            _tell(f"step {state.global_step}, {sign.name}: {said}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not is_main_process():
            return
        _tell("health of the run (docs/training.md):")
        for name, found in self.findings.items():
            value = "" if found.value is None else f"{found.value:.2g}"
            _tell(f"  {name:33} {value:>8}  limit {found.limit:<7g} {found.verdict}")
        kept = {
            name: {"value": found.value, "limit": found.limit, "alarms": found.alarms, "shows": found.shows}
            for name, found in self.findings.items()
        }
        update_run(self.folder, health=kept)

    def _examine(self, entry: Mapping[str, float]) -> list[Sign]:
        """Take up an entry of the log; the signs to report."""
        logged = [name for name in _FIGURES & entry.keys() if entry[name] is not None and math.isfinite(entry[name])]
        if BEST_METRIC in logged:
            self._figures[_REWARDS_BEFORE].append(len(self._figures["reward"]))
        for name in logged:
            self._figures[name].append(entry[name])
        return [sign for sign in SIGNS if logged and self._is_news(sign, self.findings[sign.name], int(entry["step"]))]

    def _is_news(self, sign: Sign, found: Finding, step: int) -> bool:
        found.value = sign.value(self._figures)
        if found.value is None or not sign.is_ill(found.value, found.limit):
            found.healthy_for += 1
            found.shows = found.shows and found.healthy_for < WINDOW
            return False
        found.healthy_for, was_there, found.shows = 0, found.shows, True
        if not was_there:
            found.alarms.append(step)
        return not was_there


def _tell(line: str) -> None:
    if is_main_process():
        tqdm.write(visible(line), sys.stderr)  # above the progress bar of a terminal
