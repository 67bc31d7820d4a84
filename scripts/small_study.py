"""The paper's question at small size: does GRPO teach more than supervised fine-tuning, from one start and equal data?

    python scripts/small_study.py --encoder WHISPER --language-model QWEN2 --data clips.csv --audio clips/

composes a Qwen2-Audio and then, for each seed, draws questions about labelled recordings, aligns the projector, warms
the model up by SFT, and trains it further in three ways with the same FLOPs and the same questions: SFT, GRPO, and GRPO
with thoughts. All of them answer questions about held-out recordings and sources, with audio and without. Every number
is in configs/small_study.yaml.

Seeds run at the same time in processes of their own, whose output is in DIR/seed-N/log.txt. The same command goes on
after an interruption of any kind.
"""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the project also without an installation

from data_prep.label_tables import PRESETS
from r1_aqa_repro.common.console import Options, not_negative, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, answer_at_once, collecting, command
from r1_aqa_repro.common.files import output_folder, sha256_of, unreadable
from scripts.study.settings import HALVES, Settings, in_words_of_the_study, read_settings

CONFIG = ROOT / "configs" / "small_study.yaml"


def _arguments(argv: list[str]) -> tuple[Namespace, Settings]:
    own = _parser().parse_args(argv)
    return own, read_settings(own.config, "quick" if own.quick else "small")


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("--encoder", required=True, metavar="WHISPER", help="a Whisper: folder or hub id, such as openai/whisper-base")
    add("--language-model", required=True, metavar="QWEN2",
        help="a Qwen2 or Qwen2.5: folder or hub id, such as Qwen/Qwen2-0.5B-Instruct")  # fmt: skip
    add("--data", type=Path, metavar="FILE", help="the table of labelled clips, see data_prep.labelled")
    add("--audio", type=Path, required=True, metavar="DIR", help="the folder that the clips' paths are below")
    add("--preset", choices=sorted(PRESETS), help="the published layout of a collection, see data_prep.labelled")
    add("--seeds", type=positive, default=3, metavar="N", help="how many (default: 3)")
    add("--first-seed", type=not_negative, default=1, metavar="N", help="(default: 1)")
    add("--half", choices=HALVES, default=HALVES[0],
        help="of the held-out recordings; tune a recipe on the other one, with seed 0 (default: report)")  # fmt: skip
    add("--jobs", type=positive, metavar="N",
        help="seeds at the same time (default: as many as there are cores for OMP_NUM_THREADS each)")  # fmt: skip
    add("--config", type=Path, default=CONFIG, metavar="FILE", help="YAML of every number (default: the project's)")
    add("--quick", action="store_true", help="the config's smaller numbers, for a first look")
    add("--output-dir", type=output_folder, default=Path("runs/small_study"), metavar="DIR",
        help="(default: runs/small_study)")  # fmt: skip
    return parser


answer_at_once(__name__, _arguments)

import torch

from data_prep import labelled
from r1_aqa_repro import compose
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.distributed import num_cores
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config
from scripts.study.figures import results
from scripts.study.processes import run_all
from scripts.study.report import sentences, tables, write_report
from scripts.study.seed import (
    MODELS,
    WARM_START,
    Study,
    arguments,
    carry_out_seed,
    drawing_of,
    manifests_of,
    training_of,
)
from scripts.workshop import Interrupted, Workshop, table


@command
def main(argv: list[str]) -> int:
    """Carry out what is not done yet. Returns the exit code."""
    own, settings = _arguments(argv)
    dtype = "bfloat16" if check(own, settings) else "float32"
    study = Study(own.output_dir, settings, own.data, own.audio, own.preset, own.half, dtype)
    seeds = list(range(own.first_seed, own.first_seed + own.seeds))
    if not study.base.is_dir():  # nothing is made yet; all of it is checked again as it is made
        with in_words_of_the_study(own.config):
            compose.check_parts(own.encoder, own.language_model, settings.window_seconds, study.base)
            labelled.check(drawing_of(study, own.first_seed))
    jobs = own.jobs or max(1, min(own.seeds, num_cores() // torch.get_num_threads()))
    workshop = Workshop(study.folder, own.first_seed)
    asked = claimed(own, settings)
    claim(study.folder / "settings.json", asked, "Choose another --output_dir, or delete this one.")
    say(f"small study in {study.folder}: seeds {', '.join(map(str, seeds))}, {jobs} at a time")

    try:
        if not study.base.is_dir():
            parts = ["--encoder", own.encoder, "--language-model", own.language_model, "--out", str(study.base)]
            workshop.run("compose", compose, [*parts, "--window-seconds", str(settings.window_seconds)])
    except Interrupted as interrupted:
        return interrupted.code
    with workshop.stages("seeds"):
        work = functools.partial(carry_out_seed, study)
        code = run_all(work, seeds, jobs, log_of=lambda seed: study.of_seed(seed) / "log.txt")
    if code != EXIT_DONE:
        return code

    with workshop.stages("results"):
        found = results(study, {seed: manifests_of(study, seed) for seed in seeds})
        write_report(study.folder, found)
    found |= {"settings": asked, "seconds": workshop.stages.asked_for}
    shown = [table(title, rows) for title, rows in tables(found, complete=False).items()]
    files = f"Results: {study.folder}/results.md, results.html, results.json, accuracy.png"
    workshop.report(study.folder, found, *shown, *sentences(found), files)
    return EXIT_DONE


def check(own: Namespace, settings: Settings) -> bool:
    """Refuse, before anything is made, what no stage could use.

    Returns:
        Whether the trainings compute in bfloat16 here, as evaluations then do too.

    Raises:
        Refused: with everything that is wrong.
    """
    problems: list[Problem] = []
    if own.preset is None and own.data is None:
        problems.append(Problem("--data", "it is not given", "Give the table that names the clips, or a --preset."))
    if own.data is not None and (reason := unreadable(own.data)) is not None:
        problems.append(Problem(str(own.data), reason, "Give the table that names the clips."))
    if not own.audio.is_dir():
        problems.append(Problem(str(own.audio), "there is no such folder", "Give the folder of the clips."))
    bf16 = False
    for name in MODELS:
        kind: Any = AudioGRPOConfig if name.startswith("grpo") else AudioSFTConfig
        config, keys = training_of(settings, name, 1)
        wrong: list[Problem] = []
        with collecting(wrong):
            of_machine = [] if name == WARM_START else ["--bf16", "false"]  # `auto` is asked, and said, once
            _, training, _ = parse_config(kind, [*arguments(config, keys, own.output_dir), *of_machine])
            bf16 = bf16 or bool(training.bf16)
            if training.trained_parts == "all":
                what = "trained_parts is all: the study counts on an encoder that stays as it is"
                wrong.append(Problem(f"{config}, {name}", what, "Choose no_encoder, language_model or projector."))
        if settings.arms.get(name):  # its keys may be what is wrong
            wrong = [replace(one, where=f"{own.config}: arms.{name}, {one.where}") for one in wrong]
        problems += wrong
    if problems:
        raise Refused(list(dict.fromkeys(problems)))  # those of a config are found once an arm
    return bf16


def claimed(own: Namespace, settings: Settings) -> dict[str, Any]:
    """What the results in a study's folder depend on, but for its seeds, of which there may be more later."""
    table = f"{own.data.name}, sha256 {sha256_of(own.data)}" if own.data else None
    parts = {name: getattr(own, name) for name in ("encoder", "language_model", "preset", "half")}
    return parts | {"data": table} | asdict(settings)


if __name__ == "__main__":
    main()
