"""The embedded audio run: from nothing to a trained model and a table that shows it learned, on one CPU core.

    python scripts/embedded_run.py [--num_train N] [--num_held_out N] [--any key of configs/grpo_embedded.yaml]

Stages: question set -> small Qwen2-Audio -> SFT warm start -> evaluation -> GRPO -> evaluation, also with silence in
place of the clips -> learning curve. Each stage keeps what it has done; after an interruption the same command goes on.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import pandas
import torch

from eval.run import carry_out, prepare
from eval.scores import read_verdicts
from eval.settings import EvalSettings
from eval.targets import EMBEDDED_HEADING
from r1_aqa_repro import train_grpo, train_sft
from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_REFUSED, Refused
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import read_questions
from r1_aqa_repro.embedded.question_set import write_question_set
from r1_aqa_repro.embedded.tiny_model import build_tiny_qwen2_audio
from r1_aqa_repro.grpo.divergence import token_kls
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import question_inputs
from r1_aqa_repro.rewards.registry import check_names
from r1_aqa_repro.rewards.rules import REWARDS
from r1_aqa_repro.run.checks import check_free_space, check_grpo, check_settings
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config
from r1_aqa_repro.run.folder import RUN, update_run
from scripts.shown import plotted
from scripts.workshop import (
    ROOT,
    Block,
    Interrupted,
    Workshop,
    command_of_stages,
    log_of,
    outcome,
    results,
)

TRAIN, HELD_OUT = Path("train", "manifest.jsonl"), Path("held_out", "mmau_format.json")  # of the question set
GRPO = ROOT / "configs" / "grpo_embedded.yaml"
PROMPT_STYLE = "answer"
EVAL_BATCH = 50
KL_QUESTIONS = 120
BYTES_A_QUESTION = 250_000  # two 3-s clips of 16-bit samples, and the checkpoints' share


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out every stage that is not done yet. Returns the exit code."""
    parser = Options(__doc__)
    parser.add_argument("--num-train", type=positive, default=5400, help="training questions")
    parser.add_argument("--num-held-out", type=positive, default=900, help="held-out questions")
    parser.add_argument("--curve-questions", type=positive, default=300, help="held-out questions a point of the curve")
    parser.add_argument("--sft-config", type=Path, default=ROOT / "configs" / "sft_embedded.yaml")
    own, overrides = parser.parse_known_args(argv)
    data_settings, training, model = parse_config(AudioGRPOConfig, ["--config", str(GRPO), *overrides])
    folder = Path(str(training.output_dir))
    data, start, sft, scored = folder / "data", folder / "start", folder / "sft", folder / "eval"
    held_out = data / HELD_OUT
    problems = check_settings(training, model) + check_grpo(training, model)
    problems += check_names(training.reward_funcs, training.reward_weights, REWARDS)
    if not folder.exists():
        problems += check_free_space(folder, own.num_train * BYTES_A_QUESTION, "clips and checkpoints")
    if problems:
        raise Refused(problems)
    workshop = Workshop(folder, training.seed)
    if data_settings.overwrite and (data / "question_set.json").is_file():
        for made in (data, start, sft, scored):
            shutil.rmtree(made, ignore_errors=True)
        for made in (folder / "results.json", folder / "learning_curve.png", workshop.stages.file):
            made.unlink(missing_ok=True)
    say(f"embedded run in {folder}, seed {training.seed}")

    with workshop.stages("data"):
        write_question_set(data, seed=training.seed, num_train=own.num_train, num_held_out=own.num_held_out)
    with workshop.stages("model"):
        if not start.is_dir():
            texts = [prompt_text(question, PROMPT_STYLE) for question in read_questions(data / TRAIN).records]
            build_tiny_qwen2_audio(start, texts=texts, seed=training.seed)
    warm = _train(workshop, train_sft, own.sft_config, sft, start, data)
    with workshop.stages("eval_before"):
        # read now: --overwrite lets GRPO delete the folder's evaluations
        before = block_of(_evaluate(warm, held_out, scored / "before"), scored / "before")
    final = _train(workshop, train_grpo, GRPO, folder, warm, data, overrides)
    with workshop.stages("eval_after"):
        after = _evaluate(final, held_out, scored / "after")
        without_audio = _evaluate(final, held_out, scored / "blind_after", no_audio=True)
    with workshop.stages("learning_curve"):
        points = _curve(folder, warm, held_out, own.curve_questions, training.seed)
        plot_learning_curve(folder / "learning_curve.png", log_of(folder), points)

    update_run(folder, seconds=workshop.stages.asked_for)
    chance, first = (after["baselines"][name] / 100 for name in ("chance", "always_first"))
    summary = results(
        workshop,
        {"accuracy": chance, "ci95": [chance, chance], "n": after["n"]},
        before,
        block_of(after, scored / "after"),
        blind_after=_share(without_audio["total"]),
        controls={"always_first": {"accuracy": first, "ci95": [first, first], "n": after["n"]}},
    )
    summary["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    workshop.report(
        folder,
        summary,
        outcome(EMBEDDED_HEADING, summary),
        f"Accuracy on held-out questions, greedy decoding; format {100 * summary['after']['format_rate']:.1f} %.",
        f"Results: {folder}/results.json, {folder}/learning_curve.png; model: {folder}/final",
    )
    return EXIT_DONE


def _train(
    workshop: Workshop, entry: Any, config: Path, run: Path, model: Path, data: Path, overrides: Sequence[str] = ()
) -> Path:
    """Train in NPROC processes, and note in run.json on what `eval.mmau` evaluates the checkpoints unless told
    otherwise."""
    held_out, processes = data / HELD_OUT, int(os.environ.get("NPROC", "1"))
    stage = "sft" if entry is train_sft else "grpo"
    refused = False
    try:
        return workshop.train(entry, config, run, model, data / TRAIN, overrides, stage, processes)
    except Interrupted as interrupted:
        refused = interrupted.code == EXIT_REFUSED
        raise
    finally:
        if not refused and (run / RUN).is_file():
            relative = {"data": os.path.relpath(held_out, run), "audio_dir": os.path.relpath(held_out.parent, run)}
            update_run(run, embedded_held_out=relative | {"prompt_style": PROMPT_STYLE})


def _evaluate(checkpoint: Path, held_out: Path, out: Path, **settings: Any) -> dict[str, Any]:
    wanted = EvalSettings(
        ckpt=str(checkpoint),
        data=held_out,
        out=out,
        prompt_style=PROMPT_STYLE,
        batch_size=EVAL_BATCH,
        max_new_tokens=16,
        device="cpu",
        **settings,
    )
    return carry_out(prepare(wanted))


def _curve(folder: Path, start: Path, held_out: Path, limit: int, seed: int) -> list[dict[str, Any]]:
    """Scores and KL to the start of the warm start (step 0) and of every checkpoint, in order of steps."""
    checkpoints = {0: start} | {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")}
    questions = read_questions(held_out).records[: min(limit, KL_QUESTIONS)]
    start_model, processor = loading.load(start)
    inputs = question_inputs(processor, questions, PROMPT_STYLE)
    points = []
    for step, checkpoint in sorted(checkpoints.items()):
        out = folder / "eval" / "curve" / f"step-{step}"
        scores = _evaluate(checkpoint, held_out, out, limit=limit)
        kl_file = out / "kl.json"
        if not kl_file.is_file():
            policy = loading.load_model(checkpoint)
            kls = token_kls(policy, start_model, processor, inputs, 16, seed)
            write_json(kl_file, {"kl": float(torch.cat(kls).mean()), "questions": len(questions)})
        kl = json.loads(kl_file.read_text(encoding="utf-8"))["kl"]
        points.append({"step": step, "scores": scores, "kl": kl})
    return points


def block_of(scores: Mapping[str, Any], folder: Path) -> Block:
    """What results.json says of an evaluation, in fractions; `rewards` are the verdicts, question by question."""
    return _share(scores["total"]) | {
        "format_rate": scores["format_rate"],
        "by_task": {task: _share(tally) for task, tally in scores["task"].items()},
        "rewards": [verdict["official"] for verdict in read_verdicts(folder / "verdicts.jsonl").values()],
    }


def _share(tally: Mapping[str, Any]) -> Block:
    """A tally in percent as fractions."""
    return {"accuracy": tally["accuracy"] / 100, "ci95": [bound / 100 for bound in tally["ci95"]], "n": tally["n"]}


def plot_learning_curve(path: Path, log: pandas.DataFrame, points: list[dict[str, Any]]) -> None:
    """Draw a PNG of the trainer's log, and of evaluated checkpoints: `step`, `scores` (of scores.json) and `kl`."""
    steps, scores = [point["step"] for point in points], [point["scores"] for point in points]
    titles = ("reward", "reward_std", "entropy", "KL to the start (nats a token)")
    with plotted(path, f"held-out accuracy, % of {scores[0]['n']}", *titles) as (accuracy, *logged, kl):
        for axis in logged:
            axis.plot(log[axis.get_title()].dropna(), linewidth=0.9)
        for task in scores[0]["task"]:
            accuracy.plot(steps, [each["task"][task]["accuracy"] for each in scores], marker=".", label=task)
        accuracy.plot(steps, [each["total"]["accuracy"] for each in scores], color="black", label="total")
        accuracy.axhline(scores[0]["baselines"]["chance"], color="grey", linestyle=":", label="chance")
        kl.plot(steps, [point["kl"] for point in points], marker=".")


if __name__ == "__main__":
    main()
