"""Time, count and weigh optimizer steps of AudioGRPOTrainer, with and without sharing.

    python scripts/bench_grpo_step.py --geometry mid --mode compare --threads 1 --json mid.json

One step is rollout, rewards, reference log-probabilities, policy forward, backward and AdamW. Every completion is
forced to the same length, so both modes do identical work: `shared` is the trainer as it is configured by default,
`plain` computes prompt and clip (the encoder's whole window) once a completion.

Each mode runs in a process of its own that takes one step when it is told to; `compare` tells them in turn, so that
what else the machine does hits both, and gives the ratio of each pair: plain seconds / shared seconds.

    tiny   the embedded model and its questions, 16 prompts x 8 completions of 12 tokens; CPU
    mid    38 M parameters, 10-s clips, 351-token prompts, 2 prompts x 8 completions of 16 tokens, float32; CPU
    7b     Qwen2-Audio-7B's sizes with random weights in bfloat16, the prompts of mid, LoRA on q, k, v, o; GPU
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `eval` and `r1_aqa_repro` also without an installation

import numpy as np
import soundfile
import torch
import transformers
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2AudioConfig, Qwen2AudioProcessor, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Refused, command
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.common.memory import peak_memory, reset_peak_memory
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from r1_aqa_repro.embedded import tiny_model
from r1_aqa_repro.embedded.question_set import make_question
from r1_aqa_repro.grpo import monitor
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model import loading
from r1_aqa_repro.model.inputs import question_inputs
from r1_aqa_repro.planning.geometries import mid_config, qwen2_audio_7b_config
from r1_aqa_repro.run.config import AudioGRPOConfig

SHARING = {"shared": "auto", "plain": "off"}  # mode -> the trainer's `sharing`
NUM_GENERATIONS = 8
PROMPT_STYLE = "answer"
PROMPT_TOKENS, CLIP_SECONDS = 351, 10  # of mid and 7b; 250 of the tokens are audio
LORA_RANK = 16
PARTS = (*monitor.PARTS, monitor.OTHER)


@dataclass(frozen=True)
class Setup:
    """What is measured. `lora`: bfloat16 weights with adapters; otherwise every float32 weight is trained."""

    geometry: str
    prompts: int
    completion_tokens: int
    device: str = "cpu"
    lora: bool = False


SETUPS = {
    "tiny": Setup("tiny", prompts=16, completion_tokens=12),
    "mid": Setup("mid", prompts=2, completion_tokens=16),
    "7b": Setup("7b", prompts=2, completion_tokens=16, device="cuda", lora=True),
}


@command
def main(argv: list[str]) -> int:
    """Measure and report. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    setup = SETUPS[arguments.geometry]
    if setup.device == "cuda" and not torch.cuda.is_available():
        what = "it needs a GPU, and there is none here"
        raise Refused.because(f"--geometry {setup.geometry}", what, "Choose mid: it runs anywhere.")
    sizes = {name: getattr(arguments, name) for name in ("prompts", "completion_tokens")}
    setup = replace(setup, **{name: size for name, size in sizes.items() if size})
    modes = list(SHARING) if arguments.mode == "compare" else [arguments.mode]
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read by the processes that are started
    with tempfile.TemporaryDirectory() as folder:
        results, seconds = measure(
            setup, modes, Path(folder), arguments.warmup, arguments.steps, arguments.threads, arguments.peak_tflops
        )
    report: dict[str, Any] = results[arguments.mode] if len(modes) == 1 else {**results, "ratio": ratio_of(**seconds)}
    if arguments.json:
        write_json(arguments.json, report)
    print(summary(results, report.get("ratio")))
    return EXIT_DONE


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("--geometry", choices=list(SETUPS), default="tiny", help="default: tiny")
    add("--mode", choices=[*SHARING, "compare"], default="compare", help="default: compare")
    add("--threads", type=positive, default=1, metavar="N", help="threads of each process (default: 1)")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--steps", type=positive, default=5, metavar="N", help="timed steps of each mode (default: 5)")
    add("--warmup", type=positive, default=1, metavar="N", help="steps before them (default: 1)")
    add("--prompts", type=positive, metavar="N", help="prompts of a step (default: the geometry's)")
    add("--completion-tokens", type=positive, metavar="N", help="default: the geometry's")
    add("--peak-tflops", type=float, metavar="T", help="the device's peak, for its utilisation")
    return parser


# --- The measurement


def measure(
    setup: Setup,
    modes: Sequence[str],
    folder: Path,
    warmup: int,
    steps: int,
    threads: int,
    peak_tflops: float | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Run `modes` step by step in turn. Returns each mode's figures, and its seconds a step in the order taken.

    Raises:
        Failed: a process ended early; its own message stands on stderr.
    """
    say(f"{setup.geometry}: making model and clips")
    transformers.utils.logging.disable_progress_bar()
    _, questions = prepare(setup, folder)
    inputs = question_inputs(loading.load_processor(folder / "model"), questions, PROMPT_STYLE)
    prompt_tokens = [len(ids) for ids in inputs.prompt_ids]
    tokens_of_step = NUM_GENERATIONS * sum(length + setup.completion_tokens for length in prompt_tokens)
    with ExitStack() as running:
        workers: dict[str, Stepper] = {}
        for mode in modes:
            say(f"{mode}: loading")
            process = started(setup, mode, folder, warmup + steps + 1, threads, tokens_of_step)
            workers[mode] = running.enter_context(process)
        timed: dict[str, list[Step]] = {mode: [] for mode in modes}
        for number in range(warmup + steps):
            for mode, worker in workers.items():
                timed[mode].append(worker.take_step())
                kind = "warm-up step" if number < warmup else "step"
                say(f"{mode}: {kind} {number + 1}, {timed[mode][-1].total:.2f} s")
        results = {}
        for mode, worker in workers.items():
            say(f"{mode}: counting the operations of one more step")
            taken, counted = timed[mode][warmup:], worker.take_step(count=True)
            results[mode] = figures(setup, mode, prompt_tokens, worker.loaded, taken, counted, peak_tflops)
    return results, {mode: [step.total for step in timed[mode][warmup:]] for mode in modes}


@dataclass(frozen=True)
class Step:
    """What a step took: seconds (or FLOPs, if they were counted) by part of it, tokens seen, and memory at most."""

    parts: dict[str, float]
    tokens: int
    peak_mb: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def figures(
    setup: Setup,
    mode: str,
    prompt_tokens: Sequence[int],
    loaded: dict[str, Any],
    timed: Sequence[Step],
    counted: Step,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """The figures of one mode, from what its process said of each step."""
    seconds = statistics.median(step.total for step in timed)
    peak = max(step.peak_mb for step in timed)
    completions = len(prompt_tokens) * NUM_GENERATIONS
    breakdown = {name: statistics.median(step.parts[name] for step in timed) for name in PARTS}
    result = {
        "geometry": setup.geometry,
        "mode": mode,
        "parameters": loaded["parameters"],
        "prompts": len(prompt_tokens),
        "prompt_tokens": round(statistics.mean(prompt_tokens)),
        "completions": completions,
        "completion_tokens": setup.completion_tokens,
        "gflop_per_step": round(counted.total / 1e9, 3),
        "seconds_per_step": round(seconds, 4),
        "completions_per_second": round(completions / seconds, 3),
        "peak_memory_mb": round(peak, 1),
        "breakdown": {name: round(value, 4) for name, value in breakdown.items()},
        "gflop_breakdown": {name: round(value / 1e9, 3) for name, value in counted.parts.items()},
        "memory_over_models_mb": round(peak - loaded["memory_mb"], 1),
    }
    if peak_tflops is not None:
        work, time = (sum(of[name] for name in ("forward", "backward")) for of in (counted.parts, breakdown))
        result["model_flop_utilisation"] = round(work / time / (peak_tflops * 1e12), 4)
    return result


def ratio_of(shared: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """How many times longer a plain step takes than the shared step beside it: median, min and max over the pairs."""
    ratios = [slow / fast for fast, slow in zip(shared, plain, strict=True)]
    return {name: round(of(ratios), 3) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def summary(results: dict[str, dict[str, Any]], ratio: dict[str, float] | None) -> str:
    """The figures as a table for the terminal, one column a mode."""
    rows = [
        ("seconds a step", "seconds_per_step"),
        ("completions a second", "completions_per_second"),
        ("GFLOP a step", "gflop_per_step"),
        ("peak memory, MB", "peak_memory_mb"),
        ("  above the models", "memory_over_models_mb"),
    ]
    columns = list(results.values())
    first = columns[0]
    lines = [
        f"{first['geometry']}: {first['parameters'] / 1e6:.1f} M parameters, {first['prompts']} prompts of "
        f"{first['prompt_tokens']} tokens, {first['completions']} completions of {first['completion_tokens']}",
        f"{'':24}" + "".join(f"{mode:>12}" for mode in results),
        *(f"{text:24}" + "".join(f"{column[key]:12.2f}" for column in columns) for text, key in rows),
    ]
    for part in PARTS:
        lines.append(f"  {part + ', s':22}" + "".join(f"{column['breakdown'][part]:12.3f}" for column in columns))
    if ratio is not None:
        lines.append(f"plain / shared, seconds: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return "\n".join(lines)


# --- Model and questions


def prepare(setup: Setup, folder: Path) -> tuple[Qwen2AudioConfig, list[AudioQuestion]]:
    """Write `manifest.jsonl` with its clips and `model/` (under LoRA without weights: they are drawn on the device)."""
    model_folder = folder / "model"
    if setup.geometry == "tiny":
        questions, texts = _embedded_questions(folder, setup.prompts)
        tiny_model.build_tiny_qwen2_audio(model_folder, texts=texts, seed=0, geometry=tiny_model.TINY)
        config = Qwen2AudioConfig.from_pretrained(model_folder)
    else:
        config = mid_config() if setup.geometry == "mid" else qwen2_audio_7b_config()
        # the chat template's words too: without them the bare prompt alone would be too long
        text = prompt_text(_filled_question(Path("clip.wav"), 10), PROMPT_STYLE) + " You are a helpful assistant"
        geometry = tiny_model.Geometry(num_mel_bins=128, hop_length=160, window_seconds=30)
        processor = tiny_model.build_processor(geometry, [text] * 2)
        processor.save_pretrained(model_folder)
        model = tiny_model.with_random_weights(config, processor, seed=0, device="meta" if setup.lora else "cpu")
        if setup.lora:
            config.save_pretrained(model_folder)
        else:
            model.save_pretrained(model_folder)
        questions = _exact_questions(processor, folder, setup.prompts)
    write_manifest(folder / "manifest.jsonl", questions)
    return config, questions


def _embedded_questions(folder: Path, prompts: int) -> tuple[list[AudioQuestion], list[str]]:
    """Questions of the embedded set, and enough of its prompts to train a tokenizer like the embedded run's."""
    questions = []
    for index in range(max(300, prompts)):
        record, wave = make_question(0, "train", index)
        clip = folder / f"clip-{index}.wav"
        if index < prompts:
            soundfile.write(clip, wave, SAMPLING_RATE)
        questions.append(AudioQuestion(**record | {"audio_path": clip, "choices": tuple(record["choices"])}))
    return questions[:prompts], [prompt_text(question, PROMPT_STYLE) for question in questions]


def _exact_questions(processor: Qwen2AudioProcessor, folder: Path, prompts: int) -> list[AudioQuestion]:
    """Questions about 10 s of noise each, padded with words to exactly PROMPT_TOKENS tokens."""
    rng = np.random.default_rng(0)
    clips = [folder / f"clip-{index}.wav" for index in range(prompts)]
    for clip in clips:
        soundfile.write(clip, 0.1 * rng.standard_normal(CLIP_SECONDS * SAMPLING_RATE), SAMPLING_RATE)
    bare = question_inputs(processor, [_filled_question(clips[0], 0)], PROMPT_STYLE)
    filler = PROMPT_TOKENS - len(bare.prompt_ids[0])
    return [_filled_question(clip, filler) for clip in clips]


def _filled_question(clip: Path, filler: int) -> AudioQuestion:
    text = "Which sound is heard in the clip?" + " sound" * filler
    return AudioQuestion(clip.stem, clip, text, ("a dog", "rain", "an engine", "a bell"), "rain")


def build_trainer(setup: Setup, mode: str, folder: Path, max_steps: int) -> AudioGRPOTrainer:
    """The real trainer on what `prepare` wrote, with completions of a forced length."""
    model_folder = folder / "model"
    questions = read_questions(folder / "manifest.jsonl").records
    if setup.lora:
        config, processor = Qwen2AudioConfig.from_pretrained(model_folder), loading.load_processor(model_folder)
        model = tiny_model.with_random_weights(config, processor, seed=0, dtype=torch.bfloat16, device=setup.device)
    else:
        model, processor = loading.load(model_folder)
    training = AudioGRPOConfig(
        output_dir=str(folder / mode),
        sharing=SHARING[mode],
        prompts_per_step=setup.prompts,
        max_prompts_per_device=16 if setup.geometry == "tiny" else 2,
        num_generations=NUM_GENERATIONS,
        max_completion_length=setup.completion_tokens,
        generation_kwargs={"min_new_tokens": setup.completion_tokens},
        reward_funcs=["accuracy", "format", "random"],  # random: there is something to learn, as in training
        loss_type="grpo",
        beta=0.04,
        learning_rate=1e-6,
        max_steps=max_steps,
        optim="adamw_torch",
        bf16=setup.lora,
        use_cpu=setup.device == "cpu",
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    peft_config = adapters() if setup.lora else None
    trainer = AudioGRPOTrainer(model, training, questions, processor, PROMPT_STYLE, peft_config=peft_config)
    trainer.remove_callback(PrinterCallback)
    return trainer


def adapters() -> LoraConfig:
    """LoRA on the language model's attention; the encoder stays as it is."""
    return LoraConfig(r=LORA_RANK, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")


# --- One process a mode


class Stepper:
    """The parent's end of a process that takes a step when it is told to.

    loaded: `parameters` and `memory_mb` of the loaded models.
    """

    def __init__(self, mode: str, connection: Connection, tokens_of_step: int):
        self.mode, self._connection, self._tokens = mode, connection, tokens_of_step
        self.loaded: dict[str, Any] = self._answer()

    def take_step(self, count: bool = False) -> Step:
        """One optimizer step, timed or with its FLOPs counted."""
        self._connection.send("count" if count else "step")
        step: Step = self._answer()
        if step.tokens != self._tokens:  # the modes would not have done the same work
            raise Failed(f"{self.mode}: a step saw {step.tokens} tokens, not the {self._tokens} it was to see")
        return step

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise Failed(f"the process of mode {self.mode} ended early: see its message above") from None


@contextmanager
def started(
    setup: Setup, mode: str, folder: Path, max_steps: int, threads: int, tokens_of_step: int
) -> Iterator[Stepper]:
    """A process with one mode's trainer, loaded; ended when the context is left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, setup, mode, folder, max_steps, threads), daemon=True)
    process.start()
    theirs.close()  # or the end of the process would not be noticed here
    try:
        yield Stepper(mode, ours, tokens_of_step)
    finally:
        process.terminate()
        process.join()


def serve(connection: Connection, setup: Setup, mode: str, folder: Path, max_steps: int, threads: int) -> None:
    """What the process does: load, then train, each step on demand."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' words to each other
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    trainer = build_trainer(setup, mode, folder, max_steps)
    # before the trainer's own monitor, which starts the clock, and reads what is left on it
    trainer.callback_handler.callbacks.insert(0, OnDemand(trainer, connection))
    trainer.train()


class OnDemand(TrainerCallback):
    """Waits before each step until it is asked for, and answers with what the trainer's clock says of it.

    A step lasts from the batch's questions to the zeroed gradients; reading the data set is outside, loading the
    clips and their features inside.
    """

    def __init__(self, trainer: AudioGRPOTrainer, connection: Connection):
        self.trainer, self.connection, self.counting = trainer, connection, ExitStack()
        self.device = trainer.accelerator.device.type

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        own = list(self.trainer.model.parameters())
        reference = [] if self.trainer.ref_model is None else list(self.trainer.ref_model.parameters())
        for parameter in own + reference:  # weights that are still only mapped from their file become resident
            parameter.detach().sum()
        parameters = sum(parameter.numel() for parameter in own)
        self.connection.send({"parameters": parameters, "memory_mb": reset_peak_memory(self.device)})

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        if self.connection.recv() == "count":
            # Attention as matrix products, which the counter sees on every device. It does not see the in-place addmm_
            # that TRL sums the gradients of lm_head with: 1 to 3 % of a step of mid.
            self.counting.enter_context(sdpa_kernel(SDPBackend.MATH))
            counter = self.counting.enter_context(FlopCounterMode(display=False))
            self.trainer.clock.now = counter.get_total_flops
        self.tokens_before = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        parts = self.trainer.clock.read()
        self.counting.close()
        self.trainer.clock.now = monitor.seconds
        self.trainer.clock.restart()
        tokens = state.num_input_tokens_seen - self.tokens_before
        self.connection.send(Step(parts, tokens, peak_memory(self.device)))


if __name__ == "__main__":
    main()
