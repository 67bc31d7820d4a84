"""The folder of a study as its stages leave it, made by hand: who was right on which question decides everything."""

from pathlib import Path
from typing import Any

from eval.evaluation import times_asked
from eval.grid import prompts_of
from eval.predictions import digest, predict
from eval.scores import score
from r1_aqa_repro.common.files import sha256_of, write_json, write_lines
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest

SETTINGS = {
    "prompt_style": "answer", "decoding": "greedy", "repeats": 1, "permute_choices": 1, "max_new_tokens": 256,
    "batch_size": "auto", "audio_channel": "first", "no_audio": False, "dtype": "float32",
}  # fmt: skip
PUBLISHED = {"total": 64.5, "sound": 69.37, "music": 66.77, "speech": 57.36}
ARMS = {
    "sft_full": {"label": "SFT, full", "kind": "sft", "prompt_style": "answer", "role": None, "published": None},
    "sft_lora": {"label": "SFT, LoRA", "kind": "sft", "prompt_style": "answer", "role": None, "published": None},
    "grpo": {"label": "GRPO", "kind": "grpo", "prompt_style": "answer", "role": "main", "published": PUBLISHED},
    "grpo_think": {
        "label": "GRPO, thinking", "kind": "grpo", "prompt_style": "think", "role": "thinking", "published": None,
    },
    "grpo_coin": {"label": "GRPO, coin", "kind": "grpo", "prompt_style": "answer", "role": "coin", "published": None},
}  # fmt: skip
PRICE = {"value": 2.5, "currency": "USD", "source": "made up"}
N = 12
# By evaluation below OUT: 1 where the answer to the question is right, 0 where it is not.
RIGHT = {
    "base/test": "110000000000",
    "base/test-no-audio": "100000000000",
    "arms/sft_full/seed-1/test": "111100000000",
    "arms/sft_full/seed-2/test": "111000000000",
    "arms/sft_lora/seed-1/test": "111110000000",
    "arms/sft_lora/seed-2/test": "111100000000",
    "arms/grpo/seed-1/test": "011111111110",
    "arms/grpo/seed-2/test": "101111111100",
    "arms/grpo/seed-1/test-no-audio": "110000000000",
    "arms/grpo/seed-2/test-no-audio": "100000000000",
    "arms/grpo/seed-1/test-permuted": "110011111111111111111100",  # in two orders: two digits a question
    "arms/grpo_think/seed-1/test": "111111100000",
}
SWEEPS = {  # the same of checkpoints
    "arms/grpo/seed-1/held_out": {"checkpoint-100": "110000", "checkpoint-200": "111100", "checkpoint-300": "111100"},
    "arms/grpo/seed-2/held_out": {"checkpoint-100": "111000", "checkpoint-200": "110000"},
    "arms/grpo/seed-1/on_test": {"checkpoint-100": "111111111111", "checkpoint-200": "011111111110"},
}
CHOSEN = {"arms/grpo/seed-1": ("checkpoint-200", 200), "arms/grpo/seed-2": ("checkpoint-100", 100)}


def make_questions(folder: Path, n: int = N, prefix: str = "q", clips: int | None = None) -> list[AudioQuestion]:
    """Questions to which `cat` is right, the second of two choices, about as many `clips` (default: one each)."""
    return [
        AudioQuestion(
            id=f"{prefix}{index}",
            audio_path=folder / "clips" / f"{prefix}{index % (clips or n)}.wav",
            question="What is it?",
            choices=("dog", "cat"),
            answer="cat",
            dataset="embedded",
            task=("sound", "music", "speech")[index % 3],
            sub_category=("Counting", "Melody")[index % 2],
        )
        for index in range(n)
    ]


def write_evaluation(folder: Path, data: Path, right: str, **settings) -> Path:
    """The folder of a complete evaluation, in which the answers are right where a 1 stands.

    With several orders of the choices there are as many digits a question.
    """
    questions = read_questions(data).records
    made: dict[str, Any] = {**SETTINGS, "checkpoint_sha256": "weights", "data_sha256": sha256_of(data)}
    made |= {"questions": len(questions), **settings}
    prompts = prompts_of(questions, made["repeats"], made["permute_choices"])
    keys = [(one, repeat) for one in prompts for _, repeat in one.keys]
    predictions = [
        predict(
            one.question,
            f"<answer>{'cat' if digit == '1' else 'dog'}</answer>",
            made["prompt_style"],
            digest(made),
            repeat,
            one.permuted,
        )
        for (one, repeat), digit in zip(keys, right, strict=True)
    ]
    found = {one.key: one for one in predictions}
    scores, _ = score(questions, found, made["prompt_style"], "embedded", times_asked(made))
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "predictions.jsonl", [one.to_record() for one in predictions])
    content = {"settings_hash": digest(made), "settings": made, "paths": {"checkpoint": "m", "data": str(data)}}
    write_json(folder / "settings.json", content)
    write_json(folder / "scores.json", scores)
    return folder


def write_study(
    out: Path,
    right=RIGHT,
    sweeps=SWEEPS,
    arms=ARMS,
    seeds=(1, 2),
    rehearsed: bool = True,
    clips: int | None = None,
    price=None,
) -> Path:
    """The folder of a study, complete where something is said to have been done."""
    (out / "data").mkdir(parents=True)
    n = len(next(iter(right.values())))
    test, held_out = out / "data" / "test.jsonl", out / "data" / "held_out.jsonl"
    write_manifest(test, make_questions(out, n, clips=clips))
    write_manifest(held_out, make_questions(out, 6, prefix="h"))
    base = {"label": "no training", "prompt_style": "answer", "published": None}
    study = {"name": "by hand", "rehearsed": rehearsed, "version": "embedded", "seeds": list(seeds), "base": base}
    write_json(out / "study.json", {**study, "arms": arms, "price_per_gpu_hour": price})
    write_json(out / "data" / "split.json", {"train": 40, "held_out": 6})
    for place, digits in right.items():
        more = {"prompt_style": "think" if "think" in place else "answer", "no_audio": place.endswith("no-audio")}
        more["permute_choices"] = len(digits) // n
        weights, _ = CHOSEN.get(str(Path(place).parent), ("weights", None))
        write_evaluation(out / place, test, digits, checkpoint_sha256=weights, **more)
    for place, checkpoints in sweeps.items():
        data = held_out if place.endswith("held_out") else test
        for name, digits in checkpoints.items():
            write_evaluation(out / place / name, data, digits, checkpoint_sha256=name)
        points = [{"name": name, "step": int(name[11:]), "folder": name} for name in checkpoints]
        write_json(out / place / "sweep.json", {"points": points})
    for place, (name, step) in CHOSEN.items():
        if place + "/held_out" in sweeps:
            write_json(out / place / "chosen.json", {"checkpoint": name, "step": step, "held_out": 0.0})
    return out


def write_training(folder: Path, seconds: float, gpus: int, log, **measured) -> None:
    """What a training leaves in `folder`/run, and cost.json if something was measured."""
    state = folder / "run" / "checkpoint-200" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    write_json(state, {"log_history": log})
    hardware = {"gpus": ["H800"] * gpus}
    write_json(folder / "run" / "run.json", {"seconds": {"grpo": seconds}, "processes": gpus, "hardware": hardware})
    (folder / "run" / "config.resolved.yaml").write_text("training:\n  seed: 1\n", encoding="utf-8")
    if measured:
        write_json(folder / "cost.json", measured)
