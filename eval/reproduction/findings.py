"""The paper's findings, and the verdict of a study on each: what follows from figures by a stated rule, no more.

A difference has its interval over questions, clips where they share some, of the mean over seeds; the seeds are paired
in their order. The interval takes the seeds as they are: the spread over them is another figure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmarks import MMAU
from eval.compare import difference
from eval.reproduction.power import needed
from eval.reproduction.reading import BASE, COIN, MAIN, NO_SEED, THINKING, Arm, Study, accuracy_of, mean_of
from r1_aqa_repro.common.intervals import paired_gain

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = "reproduced", "not reproduced", "undecided", "not run"
PAPER = "arXiv 2503.11197"
HUMAN, HUMAN_SOURCE = 82.23, "the MMAU leaderboard's human figure on test-mini, as R1-AQA's README prints it"
SMALL = 1.0  # points: thinking that brings less does not help
_ABOVE_0 = "reproduced if the interval is above 0, not reproduced if it is below, undecided if it holds 0"


@dataclass(frozen=True)
class Answers:
    """What a row of the table said to the test questions.

    Attributes:
        arm: the row.
        shares: by seed, of each question the share of its answers that are right, 0-1; `NO_SEED` is the base's seed.
    """

    arm: Arm
    shares: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Part:
    """A comparison that a verdict rests on.

    Attributes:
        figures: as they stand in figures.json.
        gains: in points, [seeds][questions].
    """

    figures: dict[str, Any]
    gains: list[list[float]]

    @property
    def low(self) -> float:
        return self.figures["ci95"][0]

    @property
    def high(self) -> float:
        return self.figures["ci95"][1]

    @property
    def above_0(self) -> str:
        """The verdict on a claim that the difference is above 0."""
        return REPRODUCED if self.low > 0 else NOT_REPRODUCED if self.high < 0 else UNDECIDED


def findings_of(
    study: Study,
    answers: Mapping[str, Answers],
    clips: Sequence[Hashable],
    version: str,
    trained_on: float | None,
) -> list[dict[str, Any]]:
    """Every finding with its verdict, the figures that decide it, and, where none does, what would.

    Args:
        study: what was studied.
        answers: of the rows that were evaluated on the test questions, by name.
        clips: the clip of each test question.
        version: of the test questions.
        trained_on: number of training questions; None if it is not known.
    """
    return _Findings(study, answers, clips, version, trained_on).all()


@dataclass(frozen=True)
class _Findings:
    study: Study
    answers: Mapping[str, Answers]
    clips: Sequence[Hashable]
    version: str
    trained_on: float | None

    def all(self) -> list[dict[str, Any]]:
        return [
            self.rl_beats_sft(),
            self.data_suffice(),
            self.thinking_does_not_help(),
            self.far_from_human(),
            self.reward_matters(),
        ]

    def rl_beats_sft(self) -> dict[str, Any]:
        about = self._about("rl_beats_sft", "Reinforcement learning outperforms supervised fine-tuning.", PAPER)
        about["rule"] = f"GRPO minus the better SFT arm: {_ABOVE_0}"
        part = self._against_sft()
        if part is None:
            return self._not_run(about, "GRPO and an SFT arm are needed")
        return self._decided(about, [part], part.above_0, [abs(part.figures["difference"])], self._sft_not_run())

    def data_suffice(self) -> dict[str, Any]:
        number = "The study's" if self.trained_on is None else f"{self.trained_on:,}"
        claim = f"{number} training questions are enough for reinforcement learning to be ahead (the paper: 38k)."
        about = self._about("data_suffice", claim, PAPER)
        about["rule"] = f"GRPO minus the better SFT arm, and GRPO minus the base, both: {_ABOVE_0}"
        parts = [self._against_sft(), self._pair(self._main, self._base)]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return self._not_run(about, "GRPO, an SFT arm and the base are needed")
        verdicts = [part.above_0 for part in there]
        worst = next((one for one in (NOT_REPRODUCED, UNDECIDED) if one in verdicts), REPRODUCED)
        return self._decided(
            about, there, worst, [abs(part.figures["difference"]) for part in there], self._sft_not_run()
        )

    def thinking_does_not_help(self) -> dict[str, Any]:
        about = self._about("thinking_does_not_help", "Explicit thinking before the answer does not help.", PAPER)
        about["rule"] = (
            f"GRPO with thinking minus GRPO: reproduced if the interval's upper end is below +{SMALL:g} point, else "
            "not reproduced if the interval is above 0, else undecided"
        )
        part = self._pair(self._of(self.study.with_role(THINKING)), self._main)
        if part is None:
            return self._not_run(about, "GRPO with and without thinking are needed")
        verdict = REPRODUCED if part.high < SMALL else NOT_REPRODUCED if part.low > 0 else UNDECIDED
        gain = part.figures["difference"]
        return self._decided(about, [part], verdict, [max(SMALL - gain, gain)])

    def far_from_human(self) -> dict[str, Any]:
        about = self._about("far_from_human", "Large audio language models still lag far behind humans.", PAPER)
        about["rule"] = f"{HUMAN} ({HUMAN_SOURCE}, a figure without an interval) minus GRPO: {_ABOVE_0}"
        if self.version not in {one.name for one in MMAU.versions}:
            return self._not_run(about, f"people have answered MMAU, not questions of the version {self.version}")
        if self._main is None:
            return self._not_run(about, "GRPO is needed")
        shares = list(self._main.shares.values())
        mean, low, high = (100 * value for value in paired_gain([0.0] * len(self.clips), mean_of(shares), self.clips))
        figures = {
            "comparison": f"humans - {self._main.arm.label}",
            "rows": [None, self._main.arm.name],
            "seeds": len(shares),
            "difference": HUMAN - mean,
            "ci95": [HUMAN - high, HUMAN - low],
        }
        part = Part(figures, [[HUMAN - 100 * share for share in row] for row in shares])
        note = "" if self.version == MMAU.versions[0].name else "People answered the version before this one."
        return self._decided(about, [part], part.above_0, [abs(HUMAN - mean)], note)

    def reward_matters(self) -> dict[str, Any]:
        claim = "It is the reward that teaches: GRPO with a coin for a reward does not do as well."
        about = self._about("reward_matters", claim, "this study's control")
        about["rule"] = f"GRPO minus GRPO with a coin for a reward: {_ABOVE_0}"
        part = self._pair(self._main, self._of(self.study.with_role(COIN)))
        if part is None:
            return self._not_run(about, "GRPO with the reward and with a coin are needed")
        return self._decided(about, [part], part.above_0, [abs(part.figures["difference"])])

    def _of(self, arm: Arm | None) -> Answers | None:
        return None if arm is None else self.answers.get(arm.name)

    @property
    def _main(self) -> Answers | None:
        return self._of(self.study.with_role(MAIN))

    @property
    def _base(self) -> Answers | None:
        return self.answers.get(BASE)

    def _against_sft(self) -> Part | None:
        """GRPO minus that one of the SFT arms whose mean over seeds is higher, of equals the first."""
        arms = [self.answers[arm.name] for arm in self.study.arms if arm.kind == "sft" and arm.name in self.answers]
        best = max(arms, key=lambda one: accuracy_of(list(one.shares.values())), default=None)
        return self._pair(self._main, best)

    def _sft_not_run(self) -> str:
        absent = [arm.label for arm in self.study.arms if arm.kind == "sft" and arm.name not in self.answers]
        return f"Of the SFT arms {', '.join(absent)} was not run." if absent else ""

    def _pair(self, one: Answers | None, other: Answers | None) -> Part | None:
        """One minus another, on the seeds that both have; the base's answers pair with every seed's."""
        if one is None or other is None:
            return None
        seeds = [seed for seed in one.shares if seed in other.shares or NO_SEED in other.shares]
        if not seeds:
            return None
        after = [one.shares[seed] for seed in seeds]
        before = [other.shares.get(seed, other.shares.get(NO_SEED, ())) for seed in seeds]
        figures = {
            "comparison": f"{one.arm.label} - {other.arm.label}",
            "rows": [one.arm.name, other.arm.name],
            "seeds": len(seeds),
            **difference(mean_of(before), mean_of(after), self.clips),
        }
        gains = [[100 * (b - a) for a, b in zip(*columns, strict=True)] for columns in zip(before, after, strict=True)]
        return Part(figures, gains)

    def _about(self, name: str, claim: str, source: str) -> dict[str, Any]:
        return {"id": name, "claim": claim, "source": source}

    def _not_run(self, about: Mapping[str, Any], why: str) -> dict[str, Any]:
        empty = dict.fromkeys(("comparison", "rows", "seeds", "difference", "ci95"))
        said: dict[str, Any] = {"verdict": NOT_RUN, "why": f"{why[0].upper()}{why[1:]}.", "parts": [], "power": None}
        return {**about, "status": NOT_RUN, **empty, **said}

    def _decided(
        self,
        about: Mapping[str, Any],
        parts: Sequence[Part],
        verdict: str,
        margins: Sequence[float],
        note: str = "",
    ) -> dict[str, Any]:
        """The first part is the one that stands for the finding; `margins` are those of `power.needed`."""
        figures = [dict(part.figures) for part in parts]
        power = None
        if verdict == UNDECIDED:
            open_ones = [
                needed(part.gains, self.clips, margin)
                for part, margin in zip(parts, margins, strict=True)
                if len(parts) == 1 or part.above_0 == UNDECIDED
            ]
            power = max(open_ones, key=_takes)
        first = parts[0].figures
        said = [_told(one) for one in figures]
        return {
            **about,
            "status": self.study.status,
            **{key: first[key] for key in ("comparison", "rows", "seeds", "difference", "ci95")},
            "verdict": verdict,
            "why": f"{'; '.join(said)}.{f' {note}' if note else ''}",
            "parts": figures,
            "power": power,
        }


def _told(figures: Mapping[str, Any]) -> str:
    low, high = figures["ci95"]
    where = "above 0" if low > 0 else "below 0" if high < 0 else "which holds 0"
    difference = f"{figures['difference']:+.2f} points"
    return f"{figures['comparison']}: {difference}, 95 % interval {low:+.2f} to {high:+.2f}, {where}"


def _takes(power: Mapping[str, Any]) -> tuple[float, float]:
    """For which of several undecided comparisons most is needed."""
    questions, seeds = power["questions"], power["seeds"]
    return math.inf if questions is None else questions, math.inf if seeds is None else seeds
