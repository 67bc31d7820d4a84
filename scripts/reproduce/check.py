"""Everything that is wrong with a reproduction and can be known before it starts, without a GPU, said at once."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Qwen2AudioForConditionalGeneration
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig, get_peft_config

from data_prep.fingerprints import video_of
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import sha256_of
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, with_answers
from r1_aqa_repro.planning.choice import gigabytes
from r1_aqa_repro.planning.estimate import Engine, strategies
from r1_aqa_repro.planning.job import make_job, model_config
from r1_aqa_repro.rewards.registry import check_names
from r1_aqa_repro.rewards.rules import REWARDS
from r1_aqa_repro.run.arguments import batch_plan
from r1_aqa_repro.run.checkpoints import FINAL
from r1_aqa_repro.run.checks import (
    check_contribution,
    check_free_space,
    check_grpo,
    check_tools,
    count_parameters,
    disk_needed,
    offloads_optimizer,
)
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioGRPOConfig, AudioSFTConfig, parse_config
from r1_aqa_repro.run.kinds import AudioQuestions
from scripts.reproduce.settings import Arm, Study


def check(study: Study) -> None:
    """Refuse what would fail later; of a rehearsal, or of data that `prepare` makes, what is not there is left out.

    Raises:
        Refused: with everything that is wrong.
    """
    problems: list[Problem] = []
    training: list[AudioQuestion] = []
    test: list[AudioQuestion] = []
    makes = {Path(study.train_file), Path(study.test_file)} if study.embedded or study.keys.prepare else set()
    for file, questions in ((study.train_file, training), (study.test_file, test)):
        if file in makes and not file.is_file():
            continue
        with collecting(problems):
            read = read_questions(file)
            questions += read.records
            problems += read.problems + with_answers(read.records, file)
    problems += _check_preparations(study)
    if study.embedded is None:
        problems += check_overlap(training, test)
        problems += _check_model(study, training)
    problems += _check_arms(study, len(training))
    if problems:
        raise Refused(list(dict.fromkeys(problems)))


def _check_preparations(study: Study) -> list[Problem]:
    """What `prepare` reads must be there."""
    problems = []
    for name, options in study.keys.prepare.items():
        given = shlex.split(str(options))
        out = given.index("--out") + 1
        if (Path(given[out]) / "manifest.jsonl").is_file():
            continue
        problems += [
            Problem(
                f"{study.file}: prepare.{name}", f"{one} is not there", "Get it as docs/data.md says, or correct it."
            )
            for at, one in enumerate(given)
            if "/" in one and at != out and not Path(one).exists()
        ]
    return problems


def check_overlap(training: Sequence[AudioQuestion], test: Sequence[AudioQuestion]) -> list[Problem]:
    """A problem for each clip, or its video, that is trained on and asked. Files are the same if their bytes are; what
    the stage `overlap` finds by ear takes longer."""
    by_video = {video: one.id for one in training if (video := video_of(one)) is not None}
    clips = {path: one.id for one in training for path in [one.audio_path] if path.is_file()}
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in clips:
        of_size[path.stat().st_size].append(path)
    digests: dict[Path, str] = {}

    def digest(path: Path) -> str:
        return digests.setdefault(path, sha256_of(path))

    problems = []
    for one in test:
        remedy = "Take it out of the training questions."
        if (video := video_of(one)) is not None and video in by_video:
            problems.append(Problem(one.id, f"its video is trained on ({by_video[video]})", remedy))
        elif one.audio_path.is_file():
            alike = of_size.get(one.audio_path.stat().st_size, [])
            same = next(
                (path for path in alike if path == one.audio_path or digest(path) == digest(one.audio_path)), None
            )
            if same is not None:
                problems.append(Problem(one.id, f"its clip is trained on ({clips[same]}: {same})", remedy))
    return problems


def _check_model(study: Study, training: Sequence[AudioQuestion]) -> list[Problem]:
    """The base model, and the clips as it hears them."""
    problems: list[Problem] = []
    room = max(int(arm.settings().get("max_completion_length", 1)) for arm in study.arms.values())
    kind = AudioQuestions(Clips(study.folder / "none", check="headers"), study.main().prompt_style, room)
    with collecting(problems):
        kind.check_model(ModelConfig(model_name_or_path=study.model))
    if training:
        with collecting(problems):
            problems += kind.usable(str(study.train_file))[1]
    return problems


def _check_arms(study: Study, examples: int) -> list[Problem]:
    """Settings, batches, memory of the GPUs, and the disk that all runs together take: every checkpoint of all of them,
    and what one is resumed from."""
    problems: list[Problem] = []
    weights = state = 0
    for arm in study.arms.values():
        own: list[Problem] = []
        with collecting(own):
            training, model = read_training(study, arm, own)
            own += (wrong := _check_batch(training, arm))
            if study.embedded is None and not wrong:  # a rehearsal's model is no burden
                sizes, _ = model_config(study.keys.model)
                own += _check_memory(study, arm, training, model, sizes)
                parameters = count_parameters(training, model, partial(Qwen2AudioForConditionalGeneration, sizes))
                left = [seed for seed in study.keys.seeds if not (study.of(arm.name, seed) / "run" / FINAL).is_dir()]
                whole, _ = disk_needed(training, *parameters, examples)
                training.save_only_model = True
                alone, _ = disk_needed(training, *parameters, examples)
                weights += alone * len(left)
                state = max(state, whole - alone if left else 0)
        problems += [Problem(f"{arm.name} ({arm.config}): {one.where}", one.what, one.remedy) for one in own]
    runs = len(study.arms) * len(study.keys.seeds)
    return problems + check_free_space(study.folder, weights + state, f"the checkpoints of {runs} runs")


def _check_batch(training: Any, arm: Arm) -> list[Problem]:
    key = "prompts" if arm.kind == "grpo" else "examples"
    per_step, at_once = getattr(training, f"{key}_per_step"), getattr(training, f"max_{key}_per_device")
    try:
        batch_plan(per_step, at_once, arm.processes)
    except ValueError as error:
        return [Problem(f"{key}_per_step", str(error), "Choose a multiple of `processes`, or other `processes`.")]
    return []


def _check_memory(study: Study, arm: Arm, training: Any, model: ModelConfig, sizes: Any) -> list[Problem]:
    """A problem if a step does not fit into a GPU, as the planner counts (docs/planning.md)."""
    job = make_job(training, model, sizes, arm.processes, None, None, None)
    zero = training.hf_deepspeed_config if training.deepspeed else None
    stage = 0 if zero is None else zero.get_value("zero_optimization.stage", 0)
    offloads = stage == 3 and offloads_optimizer(training)
    engines: dict[int, Engine] = {0: "ddp", 1: "zero2", 2: "zero2", 3: "zero3_offload" if offloads else "zero3"}
    found = strategies(job, [get_peft_config(model)], [engines[stage]])[0]
    if found.fits(study.keys.gpu_memory * 1e9):
        return []
    what = f"{found.name(arm.processes)} takes {gigabytes(found.memory.peak)} GB of a GPU at the peak of a step"
    return [Problem("gpu_memory", what, f"python -m r1_aqa_repro.plan says what fits {study.keys.gpu_memory:g} GB.")]


def read_training(study: Study, arm: Arm, problems: list[Problem]) -> tuple[Any, ModelConfig]:
    """The settings of an arm, as they would be on the machine that trains; what is wrong with them goes to `problems`.

    Raises:
        Refused: see `parse_config`.
    """
    kind: Any = AudioGRPOConfig if arm.kind == "grpo" else AudioSFTConfig
    folder = study.of(arm.name, study.keys.seeds[0]) / "run"
    argv = ["--config", str(arm.file), *arm.overrides(), "--output_dir", str(folder)]
    # bf16 is refused on a machine without a GPU, where a check is made as well
    argv += ["--model_name_or_path", study.model, "--use_cpu", "true"]
    data, training, model = parse_config(kind, argv)
    unset_hf_deepspeed_config()  # ZeRO-3 would shard the model that is only counted
    if arm.kind == "grpo":
        problems += check_names(training.reward_funcs, training.reward_weights, REWARDS)
        problems += check_grpo(training, model)
    problems += check_contribution(data)
    # what it compiles with is a matter of the machine that trains
    problems += [one for one in check_tools(training) if one.where == "report_to"]
    return training, model
