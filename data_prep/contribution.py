"""Label every question by what its audio contributes: weak if a model answers it without, otherwise strong.

    python -m data_prep.contribution --ckpt BASE --data data/avqa/manifest.jsonl --out data/avqa_labelled

Each question is put to the model --answers times, with silence of the clip's length in its place and its choices in
another order each time. It is weak if more than half of the answers are right. That is the rule of AudioMCQ (arXiv
2509.21060): weak are the questions that at least two of three models answer right without the audio. There the three
are Audio Flamingo 2, R1-AQA and Kimi-Audio with one answer each, and the silence lasts 30 s.

A model that has learned to listen hears something in silence too ("flat", "no knock") and is right wherever that is the
answer, so that an answer may be gone from the strong questions altogether: ask one that has learned from the texts
alone, or a pretrained one. And a guess that is always the same looks like knowledge: with --decoding sample a guess
among four is right one time in four.

Writes manifest.jsonl, the same questions with `contribution`; prep_report.json; and without_audio/, the evaluation that
the labels come from, as `python -m eval.mmau --no-audio --permute-choices` leaves it. The same command goes on with
what was interrupted. Several GPUs share the questions:

    python -m r1_aqa_repro.launch --standalone --nproc-per-node 8 -m data_prep.contribution --ckpt ...

`contribution: strong` in a training configuration learns from the strong ones alone, `contribution_weight` weighs.

Exit codes: 0 done; 2 refused before anything was asked; 3 done, but questions without a readable clip are left out and
listed; 130 interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.folder import REMEDY, REPORT, SETTINGS, Account, check_own
from eval.settings import EvalSettings, add_options
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.files import output_folder, write_json
from r1_aqa_repro.data.questions import CONTRIBUTIONS, AudioQuestion, with_answers, write_manifest

if TYPE_CHECKING:
    from eval.run import Plan

WEAK, STRONG = CONTRIBUTIONS
MANIFEST, EVALUATION = "manifest.jsonl", "without_audio"  # in the folder
_ASKED_WITH = (
    "adapter",
    "prompt_style",
    "decoding",
    "batch_size",
    "max_new_tokens",
    "audio_channel",
    "dtype",
    "device",
)


@dataclass
class Report(Account):
    """The account of the questions and their labels; the content of prep_report.json."""

    answers: int = 0  # to each question
    labels: dict[str, int] = field(default_factory=dict)
    by_task: dict[str, dict[str, int]] = field(default_factory=dict)  # {task: {label: questions}}
    weak_by_guessing: float = 0.0  # questions that would be weak if every answer were drawn from the choices

    def summary(self, out: Path) -> str:
        """A few lines for the person at the terminal."""
        return "\n".join(
            [
                f"{self.kept:,} of {self.records_in:,} questions labelled: {out / MANIFEST}",
                f"  {self.labels[WEAK]:,} weak ({self.weak_by_guessing:,.0f} would be by guessing), "
                f"{self.labels[STRONG]:,} strong",
                *self.losses(out),
            ]
        )


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = vars(_parser().parse_args(argv))
    out, answers = arguments.pop("out"), arguments.pop("answers")

    from eval.processes import joined  # after the arguments: --help and mistakes are answered at once
    from eval.run import carry_out
    from eval.scores import read_verdicts

    asked = EvalSettings(**arguments, out=out / EVALUATION, no_audio=True, permute_choices=answers)
    with joined() as processes:
        plan = processes.from_main(lambda: _plan(asked, out))
        scores = carry_out(plan, processes)
    if not processes.is_main:
        return EXIT_DONE
    verdicts = read_verdicts(plan.evaluation.folder / "verdicts.jsonl")
    shares = {question: float(verdict["official"]) for question, verdict in verdicts.items()}
    labelled, report = label(plan.evaluation.questions, shares, scores["no_audio"], answers)
    write_json(out / REPORT, asdict(report))
    write_manifest(out / MANIFEST, labelled)
    say(report.summary(out))
    return EXIT_LOSSES if report.dropped else EXIT_DONE


def _plan(settings: EvalSettings, out: Path) -> Plan:
    """The evaluation without audio, once it is known that its questions can be labelled in this folder.

    Raises:
        Refused: see `eval.run.prepare`; a question has no answer; `out` holds something else.
    """
    from eval.run import prepare

    plan = prepare(settings)
    evaluation = plan.evaluation
    if problems := with_answers(evaluation.questions, evaluation.paths["data"]):
        raise Refused(problems)
    made_with = {
        "command": "data_prep.contribution",
        "answers": settings.permute_choices,
        **{name: evaluation.settings[name] for name in ("checkpoint_sha256", "data_sha256")},
    }
    check_own(out, made_with, [out / MANIFEST])
    claim(out / SETTINGS, made_with, REMEDY)
    return plan


def label(
    questions: Sequence[AudioQuestion], shares: Mapping[str, float], lost: Sequence[str], answers: int
) -> tuple[list[AudioQuestion], Report]:
    """The questions with their `contribution`, and the account.

    Args:
        questions: those that were asked.
        shares: by question id, the share of its answers without audio that are right.
        lost: ids of the questions whose clip cannot be read, so that nobody was asked.
        answers: to each question.
    """
    report = Report(records_in=len(questions), answers=answers)
    without, labelled = set(lost), []
    for question in questions:
        if question.id in without:
            report.lose(question.id, "no readable clip", str(question.audio_path))
            continue
        labelled.append(replace(question, contribution=contribution_of(shares[question.id])))
        report.weak_by_guessing += weak_by_guessing(len(question.choices), answers)
    report.kept = len(labelled)
    counted = Counter((question.task or "", str(question.contribution)) for question in labelled)
    tasks = dict.fromkeys(task for task, _ in counted)
    report.by_task = {task: {name: counted[task, name] for name in CONTRIBUTIONS} for task in tasks}
    report.labels = {name: sum(of_task[name] for of_task in report.by_task.values()) for name in CONTRIBUTIONS}
    return labelled, report


def contribution_of(share: float) -> str:
    """The label of a question of whose answers without audio this share is right: weak if it is more than half, as at
    least two of three are in AudioMCQ (arXiv 2509.21060)."""
    return WEAK if share > 0.5 else STRONG


def weak_by_guessing(choices: int, answers: int) -> float:
    """The probability that more than half of the answers are right if each is one of the choices, drawn by itself."""
    right = 1 / choices
    numbers = range(answers // 2 + 1, answers + 1)
    return sum(comb(answers, number) * right**number * (1 - right) ** (answers - number) for number in numbers)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.contribution")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR", help="checkpoint folder or hub id of the model that is asked")
    add("--data", required=True, type=Path, metavar="FILE", help="manifest, or another file that training reads")
    add(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="where to write: a new folder, or an interrupted run's",
    )
    add("--answers", type=positive, default=3, metavar="K", help="to each question (default: 3, as AudioMCQ)")
    add_options(parser, _ASKED_WITH)
    return parser


if __name__ == "__main__":
    main()
