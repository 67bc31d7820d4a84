"""What learning from questions that can be guessed does, and what leaving them out saves: embedded set, half guessable.

    python -m scripts.contribution_study [--seeds 0 1 2] [--output-dir runs/contribution_study]

Half of the questions give their answer away in their text ("The file is called two."), and their clip, which is that of
another question, adds nothing. A small Qwen2-Audio that has been warmed up on questions of the other kind is trained by
SFT twice, for equally many steps: on all questions, and on those that `data_prep.contribution` labels strong. The model
that is asked for the labels has learned from the same questions with silence in place of every clip, so that what it
knows is what their texts give away; its answers are sampled, so that a guess is right as often as a guess. Both are
evaluated with and without audio on held-out questions, half of them guessable (`eval_no_audio`). Writes results.json.

After an interruption the same command goes on. On one CPU core, some 4 minutes a seed; several seeds can be begun
apart, in processes of their own, and pooled by the whole command afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import numpy as np
import soundfile
from rich.table import Table

from data_prep import contribution
from eval.evaluation import NO_AUDIO
from eval.scores import read_verdicts
from r1_aqa_repro import train_sft
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import Options, not_negative, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.common.intervals import paired_gain, wilson
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from r1_aqa_repro.embedded.families import FAMILIES
from r1_aqa_repro.embedded.question_set import write_question_set
from r1_aqa_repro.embedded.tiny_model import build_tiny_qwen2_audio
from scripts.workshop import Workshop, command_of_stages, show, table

FOLDER = Path("runs") / "contribution_study"
STYLE = "answer"
ROUND = sum(map(len, FAMILIES.values()))  # questions until every family has come once
WARM, TRAIN, BLIND, HELD_OUT = "warm.jsonl", "train.jsonl", "blind.jsonl", "held_out.jsonl"  # of a seed
SILENCE_SECONDS = 2.75  # as clips are on average
START, ALL, STRONG = "warm start", "trained on all", "trained on strong"
ASKED = ("--batch-size", "50", "--max-new-tokens", "16", "--prompt-style", STYLE, "--device", "cpu")
Verdicts = dict[str, bool]  # by question id


@command_of_stages
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--output-dir", type=Path, default=FOLDER, help=f"folder of the study (default: {FOLDER})")
    add("--seeds", type=not_negative, nargs="+", default=[0, 1, 2], help="of data and models (default: 0 1 2)")
    add("--num-train", type=positive, default=3000, help="questions to train on, beside 2400 of the warm start")
    add("--num-held-out", type=positive, default=900, help="questions to evaluate on (default: 900)")
    add("--steps", type=positive, default=160, help="of each of the two trainings (default: 160)")
    own = parser.parse_args(argv)
    sizes = {"num_train": own.num_train, "num_held_out": own.num_held_out, "steps": own.steps}
    claim(own.output_dir / "settings.json", sizes, "Choose another --output-dir, or delete this one.")
    seeds = [of_seed(own.output_dir / f"seed-{seed}", seed, **sizes) for seed in own.seeds]
    results = {"seeds": own.seeds, **sizes, **pooled(seeds)}
    write_json(own.output_dir / "results.json", results)
    show(*figures(results))
    say(f"Results: {own.output_dir}/results.json")
    return EXIT_DONE


def of_seed(folder: Path, seed: int, num_train: int, num_held_out: int, steps: int) -> dict[str, Any]:
    """Train the two models of a seed; the verdicts on held-out questions, and how many were labelled how.

    Raises:
        Interrupted: a part ended before it was done, and has said why.
    """
    workshop = Workshop(folder, seed)
    say(f"seed {seed} in {folder}")
    with workshop.stages("data"):
        compose(folder, seed, num_train, num_held_out)
    start = folder / "start"
    with workshop.stages("model"):
        if not start.is_dir():
            texts = [prompt_text(one, STYLE) for one in read_questions(folder / TRAIN).records]
            build_tiny_qwen2_audio(start, texts=texts, seed=seed)
    warm = workshop.train(train_sft, "sft_embedded", folder / "warm", start, folder / WARM)
    evaluation = ["--eval_file", str(folder / HELD_OUT), "--eval_no_audio", "true", "--max_completion_length", "16"]
    evaluation += ["--per_device_eval_batch_size", "50", "--save_steps", str(steps), "--max_steps", str(steps)]
    further = [*evaluation, "--stop_at_loss", "0"]
    first = [*further, "--eval_on_start", "true"]
    workshop.train(train_sft, "sft_embedded", folder / "all", warm, folder / TRAIN, first)
    twice = str(2 * steps)  # until it knows what texts give away: what is left of it is learned from
    asked_about = ["--max_steps", twice, "--save_steps", twice, "--stop_at_loss", "0"]
    blind = workshop.train(train_sft, "sft_embedded", folder / "blind", warm, folder / BLIND, asked_about)
    labels = folder / "labels"
    asked = ["--ckpt", str(blind), "--data", str(folder / TRAIN), "--out", str(labels), "--answers", "5"]
    asked += ["--decoding", "sample", *ASKED]
    workshop.run("labels", contribution, asked)
    labelled = labels / contribution.MANIFEST
    only = [*further, "--contribution", "strong"]
    workshop.train(train_sft, "sft_embedded", folder / "strong", warm, labelled, only)
    runs = {START: folder / "all" / "eval" / "step-0"}
    runs |= {name: folder / name.split()[-1] / "eval" / f"step-{steps}" for name in (ALL, STRONG)}
    return {
        "labels": [(is_guessable(one), one.contribution) for one in read_questions(labelled).records],
        "guessable": {one.id: is_guessable(one) for one in read_questions(folder / HELD_OUT).records},
        "verdicts": {name: (verdicts(run), verdicts(run.with_name(run.name + NO_AUDIO))) for name, run in runs.items()},
    }


def compose(folder: Path, seed: int, num_train: int, num_held_out: int) -> None:
    """Write the questions of a seed: those of the warm start as they are, half of the others guessable."""
    num_warm, data = 2400, folder / "data"
    write_question_set(data, seed=seed, num_train=num_warm + num_train, num_held_out=num_held_out)
    questions = read_questions(data / "train" / "manifest.jsonl").records
    held_out = read_questions(data / "held_out" / "mmau_format.json").records
    write_manifest(folder / WARM, questions[:num_warm])
    asked = half_guessable(questions[num_warm:])
    write_manifest(folder / TRAIN, asked)
    soundfile.write(folder / "silence.wav", np.zeros(int(SILENCE_SECONDS * SAMPLING_RATE), np.float32), SAMPLING_RATE)
    write_manifest(folder / BLIND, [replace(one, audio_path=folder / "silence.wav") for one in asked])
    write_manifest(folder / HELD_OUT, half_guessable(held_out))


def half_guessable(questions: Sequence[AudioQuestion]) -> list[AudioQuestion]:
    """The questions in their order; of every second round of families the text says the answer, and the clip is that
    of the next of these, which asks about something else."""
    chosen = [number for number in range(len(questions)) if number // ROUND % 2]
    made = list(questions)
    for number, following in zip(chosen, [*chosen[1:], *chosen[:1]], strict=True):
        one, clip = questions[number], questions[following].audio_path
        made[number] = replace(one, question=f"{one.question} {hint(one)}", audio_path=clip)
    return made


def hint(question: AudioQuestion) -> str:
    """What gives the answer away."""
    return f"The file is called {question.answer}."


def is_guessable(question: AudioQuestion) -> bool:
    """Whether the text says the answer."""
    return question.question.endswith(hint(question))


def verdicts(folder: Path) -> Verdicts:
    """Which questions an evaluation has right, by the official rule."""
    return {name: bool(verdict["official"]) for name, verdict in read_verdicts(folder / "verdicts.jsonl").items()}


def pooled(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Labels, accuracies and gains over all seeds, whose questions all differ. Intervals are of 95 %."""
    counts = {
        kind: {label: sum(seed["labels"].count((guessable, label)) for seed in seeds) for label in ("weak", "strong")}
        for kind, guessable in (("guessable", True), ("others", False))
    }
    parts: dict[str, list[list[str]]] = {  # of each seed the ids
        "all": [list(seed["guessable"]) for seed in seeds],
        "guessable": [[name for name, is_so in seed["guessable"].items() if is_so] for seed in seeds],
        "others": [[name for name, is_so in seed["guessable"].items() if not is_so] for seed in seeds],
    }

    def right(model: str, audio: bool, part: str) -> list[bool]:
        found = (seed["verdicts"][model][0 if audio else 1] for seed in seeds)
        return [verdict[name] for verdict, names in zip(found, parts[part], strict=True) for name in names]

    def accuracy(*what: Any) -> dict[str, Any]:
        values = right(*what)
        share = sum(values) / len(values)
        return {"accuracy": share, "ci95": list(wilson(sum(values), len(values))), "n": len(values)}

    def gain(before: str, after: str, audio: bool, part: str) -> dict[str, Any]:
        mean, low, high = paired_gain(right(before, audio, part), right(after, audio, part))
        return {"accuracy": mean, "ci95": [low, high]}

    return {
        "labels": counts,
        "models": {
            model: {
                f"{part}, {'with' if audio else 'without'} audio": accuracy(model, audio, part)
                for part in ("guessable", "others")
                for audio in (True, False)
            }
            for model in (START, ALL, STRONG)
        },
        "gains": {
            "trained on all, without audio": gain(START, ALL, False, "all"),
            "trained on strong, without audio": gain(START, STRONG, False, "all"),
            "strong instead of all, with audio, others": gain(ALL, STRONG, True, "others"),
        },
    }


def figures(results: Mapping[str, Any]) -> list[Table | str]:
    """What a person is shown."""
    accuracies = {
        model: {part: f"{block['accuracy']:.3f}" for part, block in parts.items()}
        for model, parts in results["models"].items()
    }
    gains = {
        name: {"gain": f"{block['accuracy']:+.3f}", "95 % interval": "{:+.3f} to {:+.3f}".format(*block["ci95"])}
        for name, block in results["gains"].items()
    }
    labels = ", ".join(f"{kind}: {of['weak']} weak, {of['strong']} strong" for kind, of in results["labels"].items())
    title = f"accuracy on held-out questions, seeds {' '.join(map(str, results['seeds']))}"
    return [table(title, accuracies), table("paired gains", gains), f"Labels of the questions trained on: {labels}."]


if __name__ == "__main__":
    main()
