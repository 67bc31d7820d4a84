"""The stages of a reproduction: what each needs, what it depends on besides, and what it leaves.

Nothing here is carried out, and nothing heavy imported: Snakemake reads it at every start, and `--status` in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reproduction import reading
from r1_aqa_repro.common.files import sha256_of, unreadable
from r1_aqa_repro.data.prompts import PROMPT_STYLES, prompt_text, target_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.yaml_file import read_yaml
from scripts.reproduce.settings import ROOT, Arm, Study

DONE = "done"  # folder of the marks of stages that are done, which tell what came out
TRAIN, HELD_OUT, TEST = (Path("data") / f"{name}.jsonl" for name in ("train", "held_out", "test"))
MADE, MODEL, DATA, TEST_DATA, OVERLAP = "embedded", "model", "train_data", "test_data", "overlap"
BASE, SUITE, MATRIX, REPORT = reading.BASE, reading.SUITE, "matrix", "report"
OVERLAP_FILE = "data/overlap.json"
# the evaluations of a model on the test set, by their folders
CONTROLS = (reading.TEST, reading.WITHOUT_AUDIO, reading.PERMUTED)
WARM = "warm.jsonl"  # of the embedded questions, what the base model learns from
# keys of a training on which its result does not depend
_FREE = ("output_dir", "report_to", "logging_steps", "save_only_model", "keep_optimizer", "dataloader_pin_memory")
_EXAMPLE = AudioQuestion("id", Path("clip.wav"), "What video is it?", ("One", "Two"), "One", dataset="AVQA")


@dataclass(frozen=True)
class Stage:
    """A node of the graph. Files are relative to the study's folder, or absolute.

    Attributes:
        name: such as `train/grpo/seed-42`.
        own: folders and files that are the stage's own: what it works in.
        needs: files that others leave, or that are there.
        depends: what else decides what comes out, by name.
        leaves: files that it leaves beside its mark.
        keeps: the same, but an earlier one is not deleted before the stage begins: it may be a user's.
        processes: that it takes.
    """

    name: str
    own: tuple[Path, ...]
    needs: tuple[Path, ...]
    depends: Mapping[str, Any]
    leaves: tuple[Path, ...] = ()
    keeps: tuple[Path, ...] = ()
    processes: int = 1

    @property
    def mark(self) -> Path:
        return mark(self.name)

    @property
    def rule(self) -> str:
        """Its name as Snakemake takes it."""
        return self.name.replace("/", "_").replace("-", "_")


def mark(stage: str) -> Path:
    """The file, relative to the study's folder, that tells that a stage is done."""
    return Path(DONE) / f"{stage}.json"


def stages_of(study: Study) -> dict[str, Stage]:
    """Every stage by name, each behind those that it needs."""
    keys = study.keys
    split = {"held_out": keys.held_out, "held_out_seed": keys.held_out_seed}
    of_base = prompt_digests([keys.base["prompt_style"]]) | {"orders": keys.orders}
    main, first = study.main().name, keys.seeds[0]
    of_matrix = tuple(asked_in(*one) for one in asked_otherwise(study))
    found = [
        *_preparations(study),
        Stage(MODEL, (Path(MODEL),), (study.made / WARM,) if study.embedded else (), _of_model(study)),
        Stage(DATA, (TRAIN.with_name("split.json"),), (study.train_file,), split, leaves=(TRAIN, HELD_OUT)),
        Stage(TEST_DATA, (), (study.test_file,), {}, leaves=(TEST,)),
        Stage(OVERLAP, (Path(OVERLAP_FILE),), (TRAIN, TEST), {}),
        _asking(study, BASE, _below(BASE, CONTROLS), (mark(MODEL), TEST), of_base),
        *(stage for arm in study.arms.values() for seed in keys.seeds for stage in _of_run(study, arm, seed)),
        _asking(study, MATRIX, of_matrix, (mark(MODEL), _chosen(main, first), TEST), prompt_digests(PROMPT_STYLES)),
    ]
    if keys.suite is not None:
        best = [_chosen(main, seed) for seed in keys.seeds]
        content = json.dumps(read_yaml(ROOT / keys.suite), sort_keys=True)
        suite = {"content of suite": content}
        found.append(Stage(SUITE, (Path(SUITE),), (mark(MODEL), *best), suite, processes=keys.processes))
    tested = [mark(f"test/{arm}/seed-{seed}") for arm in study.arms for seed in keys.seeds]
    others = [mark(name) for name in (BASE, MATRIX, OVERLAP, *([SUITE] if keys.suite is not None else []))]
    told = {key: json.dumps(value, sort_keys=True) for key, value in study.description().items()}
    found.append(Stage(REPORT, (Path("bundle"),), (*others, *tested), told))
    return {stage.name: stage for stage in found}


def asked_otherwise(study: Study) -> list[tuple[Path, str, str]]:
    """How the base model and a seed of the main arm are asked the test set beside the table, for the matrix of prompts
    and decodings: the folder of a model, style and decoding."""
    keys, main = study.keys, study.main()
    own = {Path(BASE): keys.base["prompt_style"]}
    own[study.of(main.name, keys.seeds[0]).relative_to(study.folder)] = main.prompt_style
    return [
        (place, style, decoding)
        for place, asked in own.items()
        for style in PROMPT_STYLES
        for decoding in ("greedy", "checkpoint")
        if (style, decoding) != (asked, keys.decoding)
    ]


def asked_in(place: Path, style: str, decoding: str) -> Path:
    """The folder of such an evaluation."""
    return place / f"test-{style}-{decoding}"


def _of_run(study: Study, arm: Arm, seed: int) -> list[Stage]:
    """Training a seed of an arm, choosing a checkpoint on held-out questions, and asking it the test set."""
    run, folder = f"{arm.name}/seed-{seed}", study.of(arm.name, seed).relative_to(study.folder)
    train, choose, test = (f"{what}/{run}" for what in ("train", "choose", "test"))
    prompt, orders = prompt_digests([arm.prompt_style]), {"orders": study.keys.orders}
    of_choice = (folder / reading.HELD_OUT, folder / reading.CHOSEN)
    of_test = _below(folder, (*CONTROLS, reading.ON_TEST))
    depends = training_depends(arm, seed)
    return [
        Stage(train, (folder / "run",), (mark(MODEL), TRAIN), depends, processes=arm.processes),
        _asking(study, choose, of_choice, (mark(train), HELD_OUT), prompt),
        _asking(study, test, of_test, (mark(choose), TEST), prompt | orders | {"published": arm.published is not None}),
    ]


def _asking(study: Study, name: str, own: tuple[Path, ...], needs: tuple[Path, ...], more: dict[str, Any]) -> Stage:
    """A stage that asks a model questions."""
    keys = study.keys
    asked = {"max_new_tokens": keys.max_new_tokens, "decoding": keys.decoding, "dtype": keys.dtype}
    return Stage(name, own, needs, asked | more, processes=keys.processes)


def _below(folder: Path | str, names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(folder) / name for name in names)


def _chosen(arm: str, seed: int) -> Path:
    return mark(f"choose/{arm}/seed-{seed}")


def _preparations(study: Study) -> list[Stage]:
    """What makes the questions, where they are to be made; otherwise they are there."""
    if study.embedded is not None:
        made = {key: getattr(study.embedded, key) for key in ("seed", "num_train", "num_test", "num_warm")}
        return [Stage(MADE, (Path(MADE),), (), made, keeps=(study.made / WARM, study.train_file, study.test_file))]
    return [
        Stage(f"prepare/{command}", (), (), {"options": options}, keeps=(prepared(options),))
        for command, options in study.keys.prepare.items()
    ]


def prepared(options: str) -> Path:
    """The manifest that a command of data_prep with these options leaves."""
    given = shlex.split(options)
    return Path(given[given.index("--out") + 1]).absolute() / "manifest.jsonl"


def training_depends(arm: Arm, seed: int) -> dict[str, Any]:
    """Every key of a training by its name, with the wording of its prompt."""
    settings = {key: value for key, value in arm.settings().items() if key not in _FREE}
    files = {f"content of {key}": sha256_of(ROOT / file) for key, file in _named_files(settings)}
    prompt = {f"prompt of {arm.prompt_style}": prompt_digest(arm.prompt_style, taught=arm.kind == "sft")}
    return settings | files | prompt | {"seed": seed, "data_seed": seed, "processes": arm.processes}


def prompt_digests(styles: Iterable[str]) -> dict[str, str]:
    """Of the wording of prompts, by name."""
    return {f"prompt of {style}": prompt_digest(style) for style in styles}


def prompt_digest(style: str, taught: bool = False) -> str:
    """Of the wording of a prompt, and of what SFT is taught to answer."""
    wording = prompt_text(_EXAMPLE, style) + (target_text(_EXAMPLE, style) if taught else "")
    return hashlib.sha256(wording.encode()).hexdigest()[:12]


def as_parameters(depends: Mapping[str, Any]) -> list[str]:
    """What a stage depends on as Snakemake keeps it: `name: value`, a text each."""
    return [f"{name}: {value}" for name, value in sorted(depends.items())]


def _named_files(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Keys that name a file of settings."""
    return [(key, settings[key]) for key in ("deepspeed",) if settings.get(key)]


def _of_model(study: Study) -> dict[str, Any]:
    embedded, style = study.embedded, study.keys.base["prompt_style"]
    if embedded is None:
        return {"model": study.keys.model} | _digest_of(Path(study.keys.model) / "config.json", "its config.json")
    warm = {f"warm start: {key}": value for key, value in read_yaml(embedded.warm_file).items() if key not in _FREE}
    prompt = {f"prompt of {style}": prompt_digest(style, taught=True)}
    return warm | prompt | {"seed": embedded.seed, "warm_steps": embedded.warm_steps}


def _digest_of(file: Path, name: str) -> dict[str, str]:
    """Of a file, if it is there: what a hub id names is not."""
    return {} if unreadable(file) else {name: sha256_of(os.fspath(file))[:12]}
