"""A study's folder as its report is written from: figures made up by hand, and the records that its card needs."""

import json
from pathlib import Path

import yaml

from eval.rules import RULES

TASKS = ("sound", "music", "speech")
PAPERS = {"sound": 69.37, "music": 66.77, "speech": 57.36, "total": 64.5}
GAINED = {"question": "What is heard first?", "choices": ["a dog", "a bell"], "answer": "a bell", "seed": "2"}


def tally(accuracy, n=1000, ci95=(50.0, 60.0)):
    return {"correct": accuracy * n / 100, "n": n, "accuracy": accuracy, "ci95": list(ci95)}


def difference(value, ci95, first=50.0, n=1000):
    return {
        "n": n,
        "first": first,
        "second": first + value,
        "difference": value,
        "ci95": list(ci95),
        "first_only": 11,
        "second_only": 42,
        "p": 0.01,
    }


def row(name, label, status, mean, seeds, kind="grpo", role=None, published=None, **more):
    """A row of the table: `seeds` are accuracies in total by seed; without any it was not run."""
    about = {"row": name, "label": label, "kind": kind, "role": role, "published": published}
    if not seeds:
        return about | {"status": "not run"}
    return {
        **about,
        "status": status,
        "settings": {"prompt_style": "answer", "decoding": "greedy", "max_new_tokens": 256, "repeats": 1},
        "settings_differ": [],
        "seeds": {
            seed: {
                "status": status,
                "total": tally(accuracy),
                "task": {task: tally(accuracy + place) for place, task in enumerate(TASKS)},
                "asked": 1000,
                "missing": 0,
                "unparsed": 3,
                "format_rate": 0.997,
                "chosen": None if name == "base" else f"checkpoint-{int(seed)}00",
                "step": None if name == "base" else 100 * int(seed),
                "held_out": None if name == "base" else accuracy + 2,
                "chosen_is_best": None if name == "base" else True,
                "chosen_is_tested": None if name == "base" else True,
            }
            for seed, accuracy in seeds.items()
        },
        "n_seeds": len(seeds),
        "mean": mean,
        "spread": 1.25 if len(seeds) > 1 else None,
        "ci95": [mean - 3, mean + 3],
        "task": {task: mean + place for place, task in enumerate(TASKS)},
        "over_base": None if name == "base" else difference(mean - 49, (mean - 52, mean - 46), first=49.0),
        "on_test": None,
        "on_test_mean": None,
        "on_test_difference": None,
        "controls": {"no_audio": {"status": "not run"}, "permuted": {"status": "not run"}},
        **more,
    }


def finding(name, verdict, value=None, ci95=None, **more):
    ran = value is not None
    return {
        "id": name,
        "claim": f"The claim of {name}.",
        "source": "arXiv 2503.11197",
        "rule": f"the rule of {name}",
        "comparison": f"GRPO - the other of {name}" if ran else None,
        "rows": ["grpo", "base"] if ran else None,
        "status": "run" if ran else "not run",
        "seeds": 2 if ran else None,
        "difference": value,
        "ci95": ci95,
        "verdict": verdict,
        "why": f"The reason of {name}.",
        "parts": [],
        "power": None,
        **more,
    }


def figures(status="run", version="original", n=1000):
    """Those of a study in which a GRPO arm, an SFT arm and everything beside them were run, and a thinking arm was
    not."""
    controls = {
        "no_audio": {
            "status": status,
            "mean": 33.25,
            "ci95": [30.0, 36.5],
            "seeds": {"1": 33.0, "2": 33.5},
            "difference": difference(-30.5, (-34.0, -27.0), first=63.75),
        },
        "permuted": {
            "status": status,
            "mean": 62.0,
            "ci95": [59.0, 65.0],
            "seeds": {"1": 62.0, "2": 62.0},
            "difference": difference(-1.75, (-2.5, -1.0), first=63.75),
            "orders": 4,
            "same_choice": 81.5,
        },
    }
    on_test = {"best": "checkpoint-300", "accuracy": 66.0, "chosen_accuracy": 63.0, "difference": 3.0}
    power = {
        "seeds": 5,
        "further_seeds": 3,
        "questions": 2400,
        "further_questions": 1400,
        "margin": 1.5,
        "components": {"question": 1.0, "seed": 1.0, "residual": 1.0},
        "method": "The method of power.",
        "notes": ["A note on power."],
    }
    not_read = {"status": "not read"}
    return {
        "format": 1,
        "name": "a study",
        "status": status,
        "version": version,
        "matcher": "official",
        "questions": {"n": n, "train": 38000, "held_out": 500},
        "seeds": ["1", "2"],
        "chance": 25.25,
        "labels": {"task": list(TASKS)},
        "table": [
            row("base", "before training", status, 49.0, {"-": 49.0}, kind=None),
            row("sft_full", "SFT, full", status, 52.5, {"1": 52.0}, kind="sft"),
            row(
                "grpo",
                "GRPO, prompt 2",
                status,
                63.75,
                {"1": 63.0, "2": 64.5125},
                role="main",
                published=PAPERS,
                controls=controls,
                on_test={"1": on_test},
                on_test_mean=66.0,
                on_test_difference=3.0,
            ),
            row("think", "GRPO, prompt 3", status, None, {}, role="thinking", published={"total": 61.1}),
        ],
        "findings": [
            finding("rl_beats_sft", "reproduced", 11.25, [8.5, 14.0]),
            finding(
                "data_suffice",
                "undecided",
                1.5,
                [-0.5, 3.5],
                power=power,
                parts=[
                    {"comparison": "GRPO - SFT", "seeds": 2, **difference(1.5, (-0.5, 3.5))},
                    {"comparison": "GRPO - before", "seeds": 2, **difference(14.75, (12.0, 17.5))},
                ],
            ),
            finding("thinking_does_not_help", "not run"),
        ],
        "curves": {
            "grpo": {
                "1": {"reward": [[10, 1.0], [20, 1.5]], "kl": [[10, 0.1]], "length": None, "held_out": [[100, 65.0]]},
                "2": {"reward": [[10, 0.9], [20, 1.4]], "kl": None, "length": None, "held_out": [[200, 66.5]]},
            }
        },
        "changes": {
            "status": status,
            "before": "base",
            "after": "grpo",
            "label": "GRPO, prompt 2",
            "group": "sub_category",
            "total": difference(14.75, (12.0, 17.5), first=49.0),
            "labels": {"Counting": difference(-2.0, (-9.0, 5.0), n=40)},
            "gained": [
                {"id": "q0", "label": "Counting", **GAINED, "before": "a dog", "after": "<answer>a bell</answer>"}
            ],
            "lost": [{"id": "q1", "label": "Counting", **GAINED, "before": "a bell", "after": None}],
        },
        "rules": list(RULES),
        "matrix": [
            {
                "row": "grpo",
                "evaluation": "test",
                "prompt_style": "answer",
                "decoding": "greedy",
                "repeats": 1,
                "orders": 1,
                "n_seeds": 2,
                "rules": {"official": {"mean": 63.75, "spread": 1.25, "seeds": {"1": tally(63.0)}}},
            }
        ],
        "overlap": {
            "status": status,
            "format": 1,
            "train": {"questions": 38000, "clips": 37000, "not_comparable": {"silent": ["a.wav", "b.wav"]}},
            "test": {"questions": 1000, "clips": 999, "not_comparable": {}},
            "method": {"name": "a fingerprint", "false_positives": {"expected": 1e-05}},
            "test_questions": {"samples": 1, "fingerprint": 2, "video": 0, "any": 2},
            "train_clips": {"samples": 1, "fingerprint": 3, "video": 0},
            "overlaps": [{"id": "q7", "train": []}, {"id": "q8", "train": []}],
        },
        "suite": {
            "status": status,
            "evaluations": [
                {
                    "name": "mmar",
                    "benchmark": "mmar",
                    "version": "published",
                    "part": None,
                    "after": tally(47.6),
                    "before": tally(30.0),
                    "missing": 0,
                    "unparsed": 4,
                    "comparison": {**difference(17.6, (14.0, 21.0), first=30.0), "verdict": "gained"},
                }
            ],
        },
        "cost": {
            "status": status,
            "price_per_gpu_hour": {"value": 2.5, "currency": "EUR", "source": "a price list"},
            "arms": {
                "grpo": {
                    "1": {
                        "seconds": 18000.0,
                        "gpus": 8,
                        "gpu_hours": 40.0,
                        "mfu": 0.375,
                        "energy_kwh": 21.5,
                        "price": 100.0,
                    },
                    "2": {
                        "seconds": 18000.0,
                        "gpus": 8,
                        "gpu_hours": 40.0,
                        "mfu": not_read,
                        "energy_kwh": not_read,
                        "price": 100.0,
                    },
                }
            },
            "total": {"seconds": 36000.0, "gpu_hours": 80.0, "energy_kwh": not_read, "price": 200.0},
        },
    }


def study(out: Path, content, base="Qwen/Qwen2-Audio-7B-Instruct", **model):
    """The folder of a study with these figures in its bundle; `model` are settings of its trainings."""
    bundle = out / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}", encoding="utf-8")
    (bundle / "figures.json").write_text(json.dumps(content), encoding="utf-8")
    config = {
        "data": {"prompt_style": "answer"},
        "training": {"seed": 1, "max_steps": 1000},
        "model": {"model_name_or_path": str(base), "use_peft": False, **model},
    }
    record = {
        "git_commit": "0123abcd",
        "dirty": False,
        "data": {"/somebody/data/train.jsonl": "f" * 64},
        "versions": {"torch": "2.13.0"},
        "seconds": {"train": 18000.0},
    }
    for one in content["table"]:
        for seed in one.get("seeds", {}):
            folder = bundle / "trainings" / one["row"] / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return out
