"""Best of n, DPO, PPO and GRPO side by side: the same start, the same task, the same number of samples.

    python -m scripts.compare_algorithms [--output-dir runs/compare_algorithms] [--seed 0]

The task is the part of the embedded text set that has to be learned from preferences (lists and safety); all four go
by one reward model. Each may sample the same number of completions: GRPO and PPO while they train; DPO before, as the
pairs of best of n; best of n itself learns nothing and samples n completions for every answer that it gives. Writes
comparison.json and comparison.png. Every training runs in a process of its own, whose memory is measured.

Interrupted, the same command goes on. On one CPU core, with a model too small for a GPU.

Exit codes: 0 done; 1 a training failed; 2 refused; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Refused, command
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.common.memory import peak_memory, reset_peak_memory
from r1_aqa_repro.data.conversations import TextPrompt, read_prompts
from r1_aqa_repro.data.samples import Sampled, kl_bound

if TYPE_CHECKING:
    from scripts.workshop import Workshop

NUM = 8  # completions of a group and of best of n
GRPO_PROMPTS, PPO_PROMPTS = 16, 64  # of a step
STEP = max(NUM * GRPO_PROMPTS, PPO_PROMPTS)  # samples; the larger is a multiple of the other
BEST_OF_N, DPO, PPO, GRPO = "best of n", "DPO", "PPO", "GRPO"
_LIBRARIES = ("datasets", "trl", "r1_aqa_repro.rewards.registry")  # what the measured commands import, some of it late


@dataclass(frozen=True)
class Known:
    """What is known of an algorithm beforehand.

    models: in memory while it samples or trains.
    trained: those of them that are trained, `policy` and `critic`.
    literature: what is said of it.
    """

    models: str
    trained: tuple[str, ...]
    literature: str


KNOWN = {
    BEST_OF_N: Known(
        "policy, reward model",
        (),
        "No training. A strong baseline for its divergence, at n samples for every answer (arXiv 2112.09332); gains "
        "level off, and turn, as n grows against a learned reward (arXiv 2210.10760).",
    ),
    DPO: Known(
        "sampling: policy, reward model; training: policy, reference",
        ("policy",),
        "No reward model and no sampling while it trains; simple and stable (arXiv 2305.18290). Offline: it may favour "
        "answers that the pairs do not cover, and fell behind a well-tuned PPO (arXiv 2404.10719).",
    ),
    PPO: Known(
        "policy, critic, reference, reward model",
        ("policy", "critic"),
        "The method of InstructGPT (arXiv 2203.02155). Four models and many settings that matter (arXiv 2403.17031).",
    ),
    GRPO: Known(
        "policy, reference, reward model",
        ("policy",),
        "No critic: the other completions of a group are the baseline, which saves memory and computation "
        "(arXiv 2402.03300).",
    ),
}


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    _check_samples(arguments.samples)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also of the processes that are started
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from scripts.workshop import Interrupted, Workshop

    folder: Path = arguments.output_dir
    workshop = Workshop(folder.parent, arguments.seed)
    say(f"comparison in {folder}, seed {arguments.seed}, {arguments.samples} samples each")
    try:
        contest = Contest(workshop, folder, arguments.samples)
        contest.carry_out()
    except Interrupted as interrupted:
        return interrupted.code
    with workshop.stages(f"{folder.name}: evaluation"):
        comparison = contest.evaluate()
    write_json(folder / "comparison.json", comparison)
    plot(folder / "comparison.png", comparison)
    print_comparison(comparison, folder)
    say(f"{sum(workshop.stages.asked_for.values()):.0f} s in all, set-up aside")
    return EXIT_DONE


def _check_samples(samples: int) -> None:
    """Refuse a budget that is not whole steps of everybody."""
    if samples % STEP:
        what = f"{samples} is no multiple of {STEP}"
        raise Refused.because("--samples", what, "Choose one: they make whole steps.")


class Contest:
    """The four algorithms, each with a folder of its own below the comparison's.

    Args:
        workshop: gives what they start from.
        folder: of the comparison.
        samples: that each may draw.

    Raises:
        Refused: there are too few prompts for so many.
    """

    def __init__(self, workshop: Workshop, folder: Path, samples: int):
        self.workshop, self.folder, self.samples = workshop, folder, samples
        self.data = workshop.data()
        prompts = len(read_prompts(self.data / "assist_prompts_train.jsonl").records)
        if samples > NUM * prompts:
            what = f"DPO could not use {samples}: there are {NUM} for each of the {prompts} prompts to train on"
            raise Refused.because("--samples", what, f"Choose at most {NUM * prompts // STEP * STEP}.")
        self.start, self.reward_model = workshop.policy(), workshop.reward_model()

    def carry_out(self) -> None:
        """Sample and train what is not done yet.

        Raises:
            Interrupted: a part ended before it was done, and has said why.
        """
        prompts = self.data / "assist_prompts_train.jsonl"
        judge = ["--reward_model_name_or_path", str(self.reward_model)]
        self._best_of_n("best_of_n", self.data / "assist_prompts_held_out.jsonl", ["--rewards", "true"], [1, 0])
        self._best_of_n("pairs", prompts, ["--limit", str(self.samples // NUM)], [1])
        self._train(DPO, "train_dpo", "dpo_embedded", self.folder / "pairs" / "pairs.jsonl", [])
        for name, entry, config, per_step in (
            (PPO, "train_ppo_text", "ppo_text_embedded", PPO_PROMPTS),
            (GRPO, "train_grpo_text", "grpo_text_embedded", NUM * GRPO_PROMPTS),
        ):
            sizes = ["--max_steps", str(self.samples // per_step), "--prompts_per_step"]
            sizes += [str(PPO_PROMPTS)] if name == PPO else [str(GRPO_PROMPTS), "--num_generations", str(NUM)]
            self._train(name, entry, config, prompts, [*judge, *sizes])

    def _best_of_n(self, name: str, prompts: Path, more: Sequence[str], weights: Sequence[float]) -> None:
        from scripts.workshop import MAX_NEW_TOKENS

        argv = ["--model", str(self.start), "--reward-model", str(self.reward_model), "--prompts", str(prompts)]
        argv += ["--out", str(self.folder / name), "--num", str(NUM), "--max-new-tokens", str(MAX_NEW_TOKENS), *more]
        argv += ["--reward-weights", *map(str, weights), "--batch-size", "16", "--seed", str(self.workshop.seed)]
        self._measured(name, "best_of_n", argv, self.folder / name / "pairs.jsonl")

    def _train(self, name: str, entry: str, config: str, data: Path, more: Sequence[str]) -> None:
        from r1_aqa_repro.run.checkpoints import FINAL
        from scripts.workshop import ROOT

        out = self.folder / name.lower()
        argv = ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--output_dir", str(out)]
        argv += ["--model_name_or_path", str(self.start), "--train_file", str(data)]
        self._measured(name.lower(), entry, [*argv, "--seed", str(self.workshop.seed), *more], out / FINAL)

    def _measured(self, name: str, module: str, argv: Sequence[str], done: Path) -> None:
        """Run a module's command where `done` is not there, and add what it took to `measured.json`."""
        from scripts.workshop import Interrupted

        file = self.folder / "measured.json"
        records = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if name in records and records[name]["argv"] != list(argv):
            what = f"its part {name} was made with other settings ({' '.join(records[name]['argv'])})"
            raise Refused.because(str(self.folder), what, "Choose another --output-dir, or delete this one.")
        if done.exists() and name in records:
            return
        with self.workshop.stages(f"{self.folder.name}: {name}"):
            code, seconds, memory = in_own_process(f"r1_aqa_repro.{module}", argv, _LIBRARIES)
        before = records.get(name, {"seconds": 0.0, "memory_mb": 0.0})  # of a part that was interrupted
        records[name] = {
            "seconds": before["seconds"] + seconds,
            "memory_mb": max(before["memory_mb"], memory),
            "argv": list(argv),
        }
        write_json(file, records)
        if code != EXIT_DONE:
            raise Interrupted(code)

    def evaluate(self) -> dict[str, Any]:
        """The content of comparison.json."""
        from r1_aqa_repro.common.intervals import mean_interval, paired_gain
        from r1_aqa_repro.run.checkpoints import FINAL
        from scripts.workshop import judged

        seed = self.workshop.seed
        prompts = read_prompts(self.data / "assist_prompts_held_out.jsonl").records
        measured = json.loads((self.folder / "measured.json").read_text(encoding="utf-8"))
        before = judged(self.start, prompts, seed, self.reward_model)
        parameters = {"policy": parameters_of(self.start), "critic": parameters_of(self.reward_model)}
        algorithms: dict[str, dict[str, Any]] = {}
        for name in (DPO, PPO, GRPO):
            final = self.folder / name.lower() / FINAL
            block = judged(final, prompts, seed, self.reward_model)
            block["kl"] = divergence(final, self.start, prompts, seed)
            algorithms[name] = block | self._costs(name.lower(), measured)
        chosen, scores = best_answers(self.folder / "best_of_n" / "samples.jsonl")
        mean, low, high = mean_interval(chosen)
        algorithms = {
            BEST_OF_N: {
                "true_reward": mean,
                "ci95": [low, high],
                "n": len(chosen),
                "rewards": chosen,
                "model_reward": sum(scores) / len(scores),
                "kl": {"nats_an_answer": kl_bound(NUM), "upper_bound": True},
                "seconds": measured["best_of_n"]["seconds"],
                "seconds_a_step": measured["best_of_n"]["seconds"] / len(chosen),
                "memory_mb": measured["best_of_n"]["memory_mb"],
            }
        } | algorithms
        algorithms[DPO]["sampling_seconds"] = measured["pairs"]["seconds"]
        algorithms[DPO]["memory_mb"] = max(measured[part]["memory_mb"] for part in ("pairs", "dpo"))
        for name, block in algorithms.items():
            gain, low, high = paired_gain(before["rewards"], block.pop("rewards"))
            block |= {
                "gain": {"true_reward": gain, "ci95": [low, high]},
                "samples": 0 if name == BEST_OF_N else self.samples,
                "samples_an_answer": NUM if name == BEST_OF_N else 1,
                "models": KNOWN[name].models,
                "trainable_parameters": sum(parameters[part] for part in KNOWN[name].trained),
                "literature": KNOWN[name].literature,
            }
        del before["rewards"]
        return {
            "algorithms": algorithms,
            "start": before,
            "samples": self.samples,
            "seed": seed,
            "seconds": self.workshop.stages.asked_for,
            "how": {
                "true_reward": "held-out prompts, one answer each, sampled at temperature 1; 95 % intervals",
                "kl": "to the start, on held-out answers of the trained model; at each token exact over the vocabulary",
                "memory_mb": "highest resident memory of the process, over what it was after importing everything",
                "seconds": "of the whole process but its start and imports",
            },
        }

    def _costs(self, name: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        from r1_aqa_repro.run.checkpoints import last_checkpoint

        checkpoint = last_checkpoint(self.folder / name)
        assert checkpoint is not None, "a finished training leaves its last checkpoint"
        steps = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        run = json.loads((self.folder / name / "run.json").read_text(encoding="utf-8"))
        return {
            "seconds": measured[name]["seconds"],
            "memory_mb": measured[name]["memory_mb"],
            "steps": steps,
            "seconds_a_step": sum(run["seconds"].values()) / steps,
        }


def in_own_process(module: str, argv: Sequence[str], libraries: Sequence[str] = ()) -> tuple[int, float, float]:
    """Run the `main(argv)` of a module in a new process.

    Ctrl-C and SIGTERM reach it; it keeps its work, and this process waits for that.

    Args:
        module: its full name.
        argv: of its command.
        libraries: modules that are imported before the measuring begins, so that what `main` imports late is not
            counted.

    Returns:
        Exit code, seconds, and MB of memory over what the process took before it began.
    """
    context = multiprocessing.get_context("spawn")  # a forked one would begin with this one's memory
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(module, list(argv), list(libraries), sending))

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.terminate()

    earlier = signal.signal(signal.SIGTERM, pass_on)
    try:
        process.start()
        sending.close()
        while True:
            try:
                process.join()
                break
            except KeyboardInterrupt:  # it has reached the other process too
                continue
        code, seconds, memory = receiving.recv() if receiving.poll() else (EXIT_FAILED, 0.0, 0.0)
    except EOFError:  # it died without a word
        code, seconds, memory = (EXIT_INTERRUPTED if process.exitcode == -signal.SIGTERM else EXIT_FAILED), 0.0, 0.0
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return code, seconds, memory


def _run(module: str, argv: list[str], libraries: list[str], sending: Connection) -> None:
    entry = importlib.import_module(module)
    for library in libraries:
        importlib.import_module(library)
    began, memory = time.perf_counter(), reset_peak_memory()
    code = entry.main(argv)
    sending.send((code, time.perf_counter() - began, peak_memory() - memory))


def parameters_of(checkpoint: Path) -> int:
    """How many numbers the weights of a checkpoint are."""
    from safetensors import safe_open

    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                size = 1
                for length in opened.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def divergence(final: Path, start: Path, prompts: Sequence[TextPrompt], seed: int) -> dict[str, float]:
    """KL(final || start) in nats, a whole answer and a token."""
    import torch

    from r1_aqa_repro.grpo.divergence import token_kls
    from r1_aqa_repro.model.inputs import text_inputs
    from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
    from scripts.workshop import MAX_NEW_TOKENS

    tokenizer = load_tokenizer(final)
    inputs = text_inputs(tokenizer, [prompt.messages for prompt in prompts])
    answers = token_kls(load_policy(final), load_policy(start), tokenizer, inputs, MAX_NEW_TOKENS, seed)
    return {
        "nats_an_answer": float(torch.stack([answer.sum() for answer in answers]).mean()),
        "nats_a_token": float(torch.cat(answers).mean()),
    }


def best_answers(samples: Path) -> tuple[list[float], list[float]]:
    """True reward and score of the answer with the highest score to each prompt, from a samples.jsonl."""
    rewards, scores = [], []
    for line in samples.read_text(encoding="utf-8").splitlines():
        sampled = Sampled(**json.loads(line))
        best = max(range(len(sampled.scores)), key=sampled.scores.__getitem__)
        rewards.append(sampled.rewards["true"][best])
        scores.append(sampled.scores[best])
    return rewards, scores


def print_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """The table, and what the literature says."""
    algorithms, start = comparison["algorithms"], comparison["start"]
    table = Table(title=f"the same start, task and {comparison['samples']} samples", title_style="bold")
    table.add_column("")
    for name in algorithms:
        table.add_column(name, justify="right")
    for label, show in _ROWS.items():
        table.add_row(label, *(show(block) for block in algorithms.values()))
    console = Console(width=max(110, Console().width))
    console.print(table)
    low, high = start["ci95"]
    console.print(
        f"The start: true reward {start['true_reward']:.3f} ({low:.3f} to {high:.3f}), model reward "
        f"{start['model_reward']:.2f}. A step is an update of DPO, a rollout with its updates of PPO and GRPO, and an "
        "answer of best of n. Memory is over that of the imported libraries.",
        highlight=False,
    )
    said = Table(title="what the literature says", title_style="bold", show_lines=True)
    said.add_column("")
    said.add_column("")
    for name, block in algorithms.items():
        said.add_row(name, block["literature"])
    console.print(said)
    console.print(f"Results: {folder}/comparison.json, {folder}/comparison.png", highlight=False)


def _with_interval(block: Mapping[str, Any]) -> str:
    low, high = block["ci95"]
    return f"{block['true_reward']:.3f}\n{low:.3f} to {high:.3f}"


def _gain(block: Mapping[str, Any]) -> str:
    low, high = block["gain"]["ci95"]
    return f"{block['gain']['true_reward']:+.3f}\n{low:+.3f} to {high:+.3f}"


def _kl(block: Mapping[str, Any]) -> str:
    return f"{'at most ' if block['kl'].get('upper_bound') else ''}{block['kl']['nats_an_answer']:.2f}"


def _seconds(block: Mapping[str, Any]) -> str:
    sampling = f" + {block['sampling_seconds']:.0f} sampling" if "sampling_seconds" in block else ""
    return f"{block['seconds']:.0f}{sampling}"


_ROWS = {
    "models in memory": lambda block: block["models"].replace("; ", "\n"),
    "trainable parameters": lambda block: f"{block['trainable_parameters']:,}",
    "peak memory, MB": lambda block: f"{block['memory_mb']:.0f}",
    "seconds": _seconds,
    "seconds a step": lambda block: f"{block['seconds_a_step']:.3f}",
    "samples in training": lambda block: f"{block['samples']:,}",
    "samples an answer": lambda block: str(block["samples_an_answer"]),
    "true reward": _with_interval,
    "gain over the start": _gain,
    "model reward": lambda block: f"{block['model_reward']:.2f}",
    "KL to the start, nats an answer": _kl,
}


def plot(path: Path, comparison: Mapping[str, Any]) -> None:
    """Draw true reward over KL, and memory and seconds as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    algorithms, start = comparison["algorithms"], comparison["start"]
    figure, (reward, memory, seconds) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    points = {"start": start | {"kl": {"nats_an_answer": 0.0}}} | algorithms
    for name, block in points.items():
        low, high = block["ci95"]
        spread = [[block["true_reward"] - low], [high - block["true_reward"]]]
        reward.errorbar([block["kl"]["nats_an_answer"]], [block["true_reward"]], spread, fmt="o", capsize=3, label=name)
    reward.set(title="true reward, 95 % intervals", xlabel="KL to the start, nats an answer")
    reward.legend(fontsize="small")
    memory.bar(list(algorithms), [block["memory_mb"] for block in algorithms.values()])
    memory.set(title="peak memory over the libraries', MB")
    seconds.bar(list(algorithms), [block["seconds"] for block in algorithms.values()], label="training or answering")
    sampled = [block.get("sampling_seconds", 0.0) for block in algorithms.values()]
    seconds.bar(list(algorithms), sampled, bottom=[block["seconds"] for block in algorithms.values()], label="sampling")
    seconds.set(title="seconds")
    seconds.legend(fontsize="small")
    for axis in (reward, memory, seconds):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _parser() -> Options:
    parser = Options(__doc__, "python -m scripts.compare_algorithms")
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("runs") / "compare_algorithms", metavar="DIR",
        help="default: runs/compare_algorithms; start and reward model are kept beside it")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the text set and of everything else (default: 0)")
    add("--samples", type=positive, default=6400, metavar="N", help="completions that each may sample (default: 6400)")
    return parser


if __name__ == "__main__":
    main()
