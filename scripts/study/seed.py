"""One seed of a small study: its questions, its warm start, each arm from there, and what all of them are worth."""

from __future__ import annotations

import ctypes
import gc
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data_prep import labelled
from data_prep.folder import REPORT
from eval.evaluation import NO_AUDIO, is_complete
from eval.predictions import PREDICTIONS
from eval.run import carry_out, prepare
from eval.scores import read_verdicts
from eval.settings import EvalSettings
from r1_aqa_repro import align, train_grpo, train_sft
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.common.stopwatch import Stages
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from r1_aqa_repro.run.checkpoints import FINAL
from scripts.study.flops import Meter, steps_for
from scripts.study.processes import Tell
from scripts.study.settings import ARMS, HALVES, Settings
from scripts.workshop import ROOT, Interrupted, Workshop, keep_model_alone, log_of

WARM_START = "warm_start"
POOL = "arms"  # the part of the recordings that the arms learn from; the warm start has another
MODELS = (WARM_START, *ARMS)
SETS = ("held_out", f"held_out{NO_AUDIO}", "held_out_sources")
STYLES = {"grpo_think": "think"}  # of an arm that is not asked with R1-AQA's prompt 2, `answer`
SPENT = "spent.json"


@dataclass(frozen=True)
class Study:
    """What a study is about.

    folder: of everything that it makes; each seed has one in it.
    table, audio, preset: the recordings, as `data_prep.labelled` takes them.
    half: of the held-out recordings, one of `HALVES`.
    dtype: of evaluations, as `eval.mmau` takes it.
    """

    folder: Path
    settings: Settings
    table: Path | None
    audio: Path
    preset: str | None
    half: str
    dtype: str

    @property
    def base(self) -> Path:
        """The composed model, with a fresh projector."""
        return self.folder / "base"

    def of_seed(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"


class ToldStages(Stages):
    """Stages that say when they begin and what they took, and leave no memory to those after them."""

    def __init__(self, file: Path, tell: Tell):
        super().__init__(file)
        self.tell = tell

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        self.tell(f"{stage} ...")
        with super().__call__(stage):
            yield
        # seeds run beside each other, and each would keep a gigabyte or more of what its stages are done with
        gc.collect()
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        self.tell(f"{stage}: {time.perf_counter() - began:.0f} s")


def carry_out_seed(study: Study, seed: int, tell: Tell) -> int:
    """Carry out every stage of a seed that is not done yet. Returns the exit code."""
    workshop = Workshop(study.of_seed(seed), seed)
    workshop.stages = ToldStages(workshop.stages.file, tell)
    try:
        questions = make_questions(study, workshop)
        warm = warm_start(study, workshop, questions)
        compare(study, workshop, questions, warm)
        evaluate_all(study, workshop, questions)
    except Interrupted as interrupted:
        return interrupted.code
    return EXIT_DONE


# --- Questions


@dataclass(frozen=True)
class Manifests:
    """Those of a seed.

    warm: what the projector is aligned with. warm_start: the same and `partly_unheard`, for SFT.
    pool: what every arm learns from, on recordings that the warm start has not heard: of those that it has it knows the
        answers by heart.
    held_out: of the half that is asked.
    sources: on held-out sources, all together; None in the half for tuning, and if no source is held out.
    """

    warm: Path
    warm_start: Path
    pool: Path
    held_out: Path
    sources: Path | None


def manifests_of(study: Study, seed: int) -> Manifests:
    """Where they are."""
    questions = study.of_seed(seed) / "questions"
    warm, pool, held_out = (questions / part / "manifest.jsonl" for part in (WARM_START, POOL, study.half))
    asks_sources = study.half == "report" and study.settings.held_out_sources
    sources = questions / "held_out_sources.jsonl" if asks_sources else None
    return Manifests(warm, questions / "warm_start.jsonl", pool, held_out, sources)


def drawing_of(study: Study, seed: int) -> list[str]:
    """The arguments of `data_prep.labelled`."""
    settings, size = study.settings, study.settings.size
    argv = ["--audio", str(study.audio), "--families", labelled.listing(settings.families)]
    argv += ["--out", str(study.of_seed(seed) / "questions"), "--seed", str(seed)]
    argv += ["--table", str(study.table)] if study.table else []
    argv += ["--preset", study.preset] if study.preset else []
    argv += ["--min-recordings", str(settings.min_recordings), "--choices", str(settings.choices)]
    argv += ["--seconds", str(settings.seconds), "--questions-a-clip", str(settings.questions_a_clip)]
    argv += ["--train-parts", labelled.listing((WARM_START, POOL)), "--per-family", str(size.per_family)]
    argv += ["--hold-out", str(settings.hold_out), "--held-out-parts", labelled.listing(HALVES)]
    argv += ["--held-out-per-family", str(size.held_out_per_family)]
    for family, labels in settings.labels.items():
        argv += ["--labels", f"{family}={labelled.listing(labels)}"]
    for source in settings.held_out_sources:
        argv += ["--hold-out-source", source]
    return argv


def make_questions(study: Study, workshop: Workshop) -> Manifests:
    """Draw questions about each part of what is trained on and of what is held out, and about each held-out source."""
    size, manifests = study.settings.size, manifests_of(study, workshop.seed)
    folder = manifests.warm.parent.parent
    if not (folder / REPORT).is_file():  # which comes last
        workshop.run_apart("questions", labelled, drawing_of(study, workshop.seed))
    heard, silence = read_all(manifests.warm), folder / "silence.wav"
    asked = partly_unheard(heard, size.unheard_per_family, silence, study.settings.seconds)
    write_manifest(manifests.warm_start, asked)
    if manifests.sources is not None:
        own = (WARM_START, POOL, *HALVES)
        elsewhere = [path for path in folder.glob("*/manifest.jsonl") if path.parent.name not in own]
        per_source = [read_all(path)[: size.held_out_per_source] for path in sorted(elsewhere)]  # drawn in random order
        write_manifest(manifests.sources, [question for questions in per_source for question in questions])
    return manifests


def partly_unheard(
    questions: Sequence[AudioQuestion], per_family: int, silence: Path, seconds: float
) -> list[AudioQuestion]:
    """The questions, and the first `per_family` of each family once more, with silence in place of their clips.

    Whoever learns from them learns to answer with one of the choices where it hears nothing, and whatever a text may
    tell: accuracy without audio is then that of a model that was taught to do without.

    Args:
        silence: the file that is written, of so many `seconds`.
    """
    soundfile.write(silence, np.zeros(round(seconds * SAMPLING_RATE), np.float32), SAMPLING_RATE)
    number: Counter[str | None] = Counter()
    unheard = []
    for question in questions:
        number[question.category] += 1
        if number[question.category] <= per_family:
            unheard.append(replace(question, id=f"{question.id}-unheard", audio_path=silence))
    return [*questions, *unheard]


def read_all(manifest: Path) -> list[AudioQuestion]:
    """The questions of a manifest that this study has made."""
    return read_questions(manifest).records


# --- The warm start


def warm_start(study: Study, workshop: Workshop, questions: Manifests) -> Path:
    """Set the projector in closed form, then fine-tune; the checkpoint."""
    settings, aligned = study.settings, workshop.folder / "aligned"
    if not aligned.is_dir():
        argv = ["--config", str(ROOT / "configs" / f"{settings.align}.yaml"), "--model", str(study.base)]
        workshop.run("align", align, [*argv, "--data", str(questions.warm), "--out", str(aligned)])
    config, keys = training_of(settings, WARM_START, settings.size.warm_start_steps)
    warm = workshop.train(train_sft, config, workshop.folder / WARM_START, aligned, questions.warm_start, keys)
    keep_model_alone(workshop.folder / WARM_START)
    return warm


# --- The arms


def compare(study: Study, workshop: Workshop, questions: Manifests, warm: Path) -> None:
    """Train every arm from the warm start on the same pool of questions; GRPO first, for the others get its FLOPs.

    What each training has taken is kept in `SPENT`: `steps`, `flops`, and what of these the pilot took, `pilot`.
    """
    settings, size, folder = study.settings, study.settings.size, workshop.folder
    if (folder / SPENT).is_file():
        return
    pilot, ordered = folder / "pilot", folder / "questions" / "signal_first.jsonl"
    with workshop.stages("pilot"):
        pool = read_all(questions.pool)
        evaluate(study, warm, questions.pool, pilot, decoding="sample", repeats=size.pilot_samples)
        rates = {name: one["official"] for name, one in read_verdicts(pilot / "verdicts.jsonl").items()}
        write_manifest(ordered, signal_first(pool, rates))

    def grpo(arm: str, steps: int, out: Path, *further: str) -> float:
        """Train an arm of GRPO, with `further` keys; its FLOPs."""
        config, keys = training_of(settings, arm, steps)
        keys += further
        workshop.train(train_grpo, config, out, warm, ordered, keys)
        keep_model_alone(out)
        return meter.grpo(arguments(config, keys, out), log_of(out))

    meter = Meter(warm, pool, settings.seconds)
    learned = grpo("grpo", size.grpo_steps, folder / "grpo")
    config, keys = training_of(settings, "grpo", size.grpo_steps)
    asked = meter.answering(arguments(config, keys, folder), size.pilot_samples, pilot / PREDICTIONS)
    probe = folder / "grpo_think_probe"
    # it measures alone; a step that were the first of a warm-up would be refused, as nothing is learned from it
    a_step = grpo("grpo_think", size.think_probe_steps, probe, "--warmup_steps", "0") / size.think_probe_steps
    thinking_steps = steps_for(learned, lambda steps: steps * a_step)
    thinking = grpo("grpo_think", thinking_steps, folder / "grpo_think")

    of_sft = meter.sft(arguments(*training_of(settings, "sft", 1), folder))
    sft_steps = steps_for(asked + learned, of_sft)
    config, keys = training_of(settings, "sft", sft_steps)
    workshop.train(train_sft, config, folder / "sft", warm, questions.pool, keys)
    keep_model_alone(folder / "sft")

    of_warm_start = meter.sft(arguments(*training_of(settings, WARM_START, 1), folder))
    spent = {
        WARM_START: {"steps": size.warm_start_steps, "flops": of_warm_start(size.warm_start_steps), "pilot": 0.0},
        "sft": {"steps": sft_steps, "flops": of_sft(sft_steps), "pilot": 0.0},
        "grpo": {"steps": size.grpo_steps, "flops": asked + learned, "pilot": asked},
        "grpo_think": {"steps": thinking_steps, "flops": asked + thinking, "pilot": asked},
    }
    write_json(folder / SPENT, spent)
    shutil.rmtree(probe, ignore_errors=True)


def training_of(settings: Settings, arm: str, steps: int) -> tuple[str, list[str]]:
    """The name of the config of a training and its further keys."""
    keys = settings.overrides(arm, prompt_style=STYLES.get(arm, "answer"), max_steps=steps)
    if arm in ("sft", WARM_START):
        return settings.sft, keys
    config = settings.grpo_think if arm == "grpo_think" else settings.grpo
    return config, [*keys, "--shuffle_dataset", "false"]  # those with signal come first


def arguments(config: str, keys: Sequence[str], out: Path) -> list[str]:
    """Those of a training, but for its model and data."""
    return ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--output_dir", str(out), *keys]


def signal_first(questions: Sequence[AudioQuestion], rates: Mapping[str, float]) -> list[AudioQuestion]:
    """Questions that were answered both right and wrong, of which a group of completions has something to tell; then
    those that were never right, and at the end those that always were. Equal ones stay in their order.

    Args:
        rates: by id, which share of the answers was right.
    """
    last = {0.0: 1, 1.0: 2}
    return sorted(questions, key=lambda question: last.get(rates[question.id], 0))


# --- Evaluations


def evaluate(study: Study, model: Path, data: Path, out: Path, **settings: Any) -> None:
    """Evaluate a checkpoint unless that is done."""
    if is_complete(out):
        return
    size = study.settings.size
    wanted: dict[str, Any] = {"prompt_style": "answer", "max_new_tokens": size.answer_tokens} | settings
    wanted |= {"batch_size": size.eval_batch_size, "dtype": study.dtype}
    carry_out(prepare(EvalSettings(ckpt=str(model), data=data, out=out, **wanted)))


def evaluate_all(study: Study, workshop: Workshop, questions: Manifests) -> None:
    """The warm start and every arm on held-out recordings, also without audio, and on held-out sources."""
    size = study.settings.size
    for name in MODELS:
        style = STYLES.get(name, "answer")
        tokens = size.think_tokens if style == "think" else size.answer_tokens
        asked = {"prompt_style": style, "max_new_tokens": tokens}
        model, scored = workshop.folder / name / FINAL, workshop.folder / "eval" / name
        with workshop.stages(f"eval/{name}"):
            held_out, blind, sources = (scored / one for one in SETS)
            evaluate(study, model, questions.held_out, held_out, permute_choices=size.orders, **asked)
            evaluate(study, model, questions.held_out, blind, no_audio=True, **asked)
            if questions.sources is not None:
                evaluate(study, model, questions.sources, sources, **asked)
