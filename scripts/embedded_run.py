"""The embedded run: from nothing to a trained model and a table that shows it learned, on one CPU core.

    python scripts/embedded_run.py [--num_train N] [--num_held_out N] [--any key of configs/grpo_embedded.yaml]

Stages: question set -> small Qwen2-Audio -> SFT warm start -> evaluation -> GRPO -> evaluation, also with silence in
place of the clips -> learning curve. Each stage keeps what it has done; the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the model is too small for a GPU
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `eval` and `r1_aqa_repro` also without an installation

from eval.run import EvalSettings, evaluate  # noqa: E402
from r1_aqa_repro import train_grpo, train_sft  # noqa: E402
from r1_aqa_repro.common.console import Options, say  # noqa: E402
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_REFUSED, Refused, command  # noqa: E402
from r1_aqa_repro.common.files import write_json  # noqa: E402
from r1_aqa_repro.common.stopwatch import Stages  # noqa: E402
from r1_aqa_repro.data.prompts import prompt_text  # noqa: E402
from r1_aqa_repro.data.questions import read_questions  # noqa: E402
from r1_aqa_repro.embedded.question_set import write_question_set  # noqa: E402
from r1_aqa_repro.embedded.tiny_model import build_tiny_qwen2_audio  # noqa: E402
from r1_aqa_repro.grpo.divergence import kl_to_start  # noqa: E402
from r1_aqa_repro.model import loading  # noqa: E402
from r1_aqa_repro.rewards.registry import check_names  # noqa: E402
from r1_aqa_repro.rewards.rules import REWARDS  # noqa: E402
from r1_aqa_repro.run.checkpoints import FINAL  # noqa: E402
from r1_aqa_repro.run.checks import check_free_space, check_grpo, check_settings  # noqa: E402
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config  # noqa: E402
from r1_aqa_repro.run.folder import update_run  # noqa: E402
from scripts.embedded_report import plot_learning_curve, print_results, results  # noqa: E402

PROMPT_STYLE = "answer"
EVAL_BATCH = 50
KL_QUESTIONS = 120
BYTES_A_QUESTION = 250_000  # two 3-s clips of 16-bit samples, and the checkpoints' share


@command
def main(argv: list[str]) -> int:
    """Carry out every stage that is not done yet. Returns the exit code."""
    own, overrides = _parser().parse_known_args(argv)
    grpo_argv = ["--config", str(own.grpo_config), *overrides]
    data_settings, training, model = parse_config(AudioGRPOConfig, grpo_argv)
    folder = Path(str(training.output_dir))
    data, start, sft = folder / "data", folder / "start", folder / "sft"
    manifest, held_out = data / "train" / "manifest.jsonl", data / "held_out" / "mmau_format.json"
    problems = check_settings(training, model) + check_grpo(training, model)
    problems += check_names(training.reward_funcs, training.reward_weights, REWARDS)
    if not folder.exists():
        problems += check_free_space(folder, own.num_train * BYTES_A_QUESTION, "clips and checkpoints")
    if problems:
        raise Refused(problems)
    if data_settings.overwrite and (data / "question_set.json").is_file():
        for made in (data, start, sft, folder / "eval"):
            shutil.rmtree(made, ignore_errors=True)
        for name in ("stages.json", "results.json", "learning_curve.png"):
            (folder / name).unlink(missing_ok=True)
    stages = Stages(folder / "stages.json")
    say(f"embedded run in {folder}, seed {training.seed}")

    with stages("data"):
        write_question_set(data, seed=training.seed, num_train=own.num_train, num_held_out=own.num_held_out)
    with stages("model"):
        if not start.is_dir():
            texts = [prompt_text(question, PROMPT_STYLE) for question in read_questions(manifest).records]
            build_tiny_qwen2_audio(start, texts=texts, seed=training.seed)
    common = ["--train_file", str(manifest), "--seed", str(training.seed)]
    with stages("sft"):
        sft_argv = ["--config", str(own.sft_config), "--model_name_or_path", str(start), "--output_dir", str(sft)]
        code = _train(train_sft, [*sft_argv, *common], sft, held_out)
    if code != EXIT_DONE:
        return code
    scores = {}
    with stages("eval_before"):
        scores["before"] = _evaluate(sft / FINAL, held_out, folder / "eval" / "before")
    with stages("grpo"):
        argv = [*grpo_argv, *common, "--model_name_or_path", str(sft / FINAL)]
        code = _train(train_grpo, argv, folder, held_out)
    if code != EXIT_DONE:
        return code
    with stages("eval_after"):
        scores["after"] = _evaluate(folder / FINAL, held_out, folder / "eval" / "after")
        scores["blind"] = _evaluate(folder / FINAL, held_out, folder / "eval" / "blind_after", no_audio=True)
    with stages("learning_curve"):
        points = _curve(folder, sft / FINAL, held_out, own.curve_questions, training.seed)
        last = json.loads((points[-1]["checkpoint"] / "trainer_state.json").read_text(encoding="utf-8"))
        plot_learning_curve(folder / "learning_curve.png", last["log_history"], points)

    update_run(folder, seconds=stages.seconds)
    verdicts = (folder / "eval" / "before" / "verdicts.jsonl", folder / "eval" / "after" / "verdicts.jsonl")
    summary = results(scores["before"], scores["after"], scores["blind"], verdicts, training.seed, stages.seconds)
    summary["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    write_json(folder / "results.json", summary)
    print_results(summary, scores["before"], scores["after"], folder)
    say(f"{sum(stages.seconds.values()):.0f} s in all, set-up aside")
    return EXIT_DONE


def _parser() -> Options:
    parser = Options(__doc__)
    parser.add_argument("--num-train", type=int, default=5400, help="training questions")
    parser.add_argument("--num-held-out", type=int, default=900, help="held-out questions")
    parser.add_argument("--curve-questions", type=int, default=300, help="held-out questions a point of the curve")
    parser.add_argument("--sft-config", type=Path, default=ROOT / "configs" / "sft_embedded.yaml")
    parser.add_argument("--grpo-config", type=Path, default=ROOT / "configs" / "grpo_embedded.yaml")
    return parser


def _train(entry: Any, argv: list[str], run: Path, held_out: Path) -> int:
    """Train, and note in the run's run.json on what `eval.mmau` evaluates it unless told otherwise."""
    code = _run_entry(entry, argv)
    if code != EXIT_REFUSED:
        relative = {"data": os.path.relpath(held_out, run), "audio_dir": os.path.relpath(held_out.parent, run)}
        update_run(run, embedded_held_out=relative | {"prompt_style": PROMPT_STYLE})
    return code


def _run_entry(entry: Any, argv: list[str]) -> int:
    """Run a training entry point here, or in NPROC processes if the environment asks for several."""
    processes = os.environ.get("NPROC", "1")
    if processes == "1":
        return entry.main(argv)
    launcher = [sys.executable, "-m", "r1_aqa_repro.launch", "--standalone", "--nproc-per-node", processes]
    with subprocess.Popen([*launcher, "-m", entry.__name__, *argv]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # it reached the children too: wait for the checkpoint they are saving
                continue


def _evaluate(checkpoint: Path, held_out: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return evaluate(
        EvalSettings(
            ckpt=str(checkpoint),
            data=held_out,
            out=out,
            prompt_style=PROMPT_STYLE,
            batch_size=EVAL_BATCH,
            max_new_tokens=16,
            device="cpu",
            **settings,
        )
    )


def _curve(folder: Path, start: Path, held_out: Path, limit: int, seed: int) -> list[dict[str, Any]]:
    """Scores and KL to the start of the warm start (step 0) and of every checkpoint, in order of steps."""
    checkpoints = {0: start} | {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")}
    questions = read_questions(held_out).records[: min(limit, KL_QUESTIONS)]
    start_model, processor = loading.load(start)
    points = []
    for step, checkpoint in sorted(checkpoints.items()):
        out = folder / "eval" / "curve" / f"step-{step}"
        scores = _evaluate(checkpoint, held_out, out, limit=limit)
        kl_file = out / "kl.json"
        if not kl_file.is_file():
            policy = loading.load_model(checkpoint)
            kl = kl_to_start(policy, start_model, processor, questions, PROMPT_STYLE, max_new_tokens=16, seed=seed)
            write_json(kl_file, {"kl": kl, "questions": len(questions)})
        kl = json.loads(kl_file.read_text(encoding="utf-8"))["kl"]
        points.append({"step": step, "checkpoint": checkpoint, "scores": scores, "kl": kl})
    return points


if __name__ == "__main__":
    main()
