"""Time, count and weigh optimizer steps of AudioGRPOTrainer, with and without sharing.

    python scripts/bench_grpo_step.py --geometry mid --mode compare --threads 1 --json mid.json

One step is rollout, rewards, reference log-probabilities, policy forward, backward and AdamW. Every completion is
forced to the same length, so both modes do identical work: `shared` is the trainer as it is configured by default,
`plain` computes prompt and clip (the encoder's whole window) once a completion.

`compare` lets one trainer take steps of both modes in turn, so that what else the machine does hits both, and gives
the ratio of each pair: plain seconds / shared seconds.

    tiny   the embedded model and its questions, 16 prompts x 8 completions of 12 tokens; CPU
    mid    38 M parameters, 10-s clips, 351-token prompts, 2 prompts x 8 completions of 16 tokens, float32; CPU
    7b     Qwen2-Audio-7B's sizes with random weights in bfloat16, the prompts of mid, LoRA on q, k, v, o; GPU
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import numpy as np
import soundfile
import torch
import transformers
from peft import LoraConfig
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    ProcessorMixin,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer_callback import PrinterCallback

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Refused, command
from r1_aqa_repro.common.files import output_file, write_json
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
from scripts.workshop import show, table

SHARED, PLAIN = "shared", "plain"
NUM_GENERATIONS = 8
PROMPT_STYLE = "answer"
PROMPT_TOKENS, CLIP_SECONDS = 351, 10  # of mid and 7b; 250 of the tokens are audio
LORA_RANK = 16
WARMUP = 1  # steps that do not count
# sampling on CPUs calls the kernel of attention itself, for its log-sum-exp; PyTorch's counter does not know it
KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3])
}
PARTS = (*monitor.PARTS, monitor.OTHER)
SHOWN = {
    "seconds a step": "seconds_per_step",
    "completions a second": "completions_per_second",
    "GFLOP a step": "gflop_per_step",
    "peak memory, MB": "peak_memory_mb",
    "  above the models": "memory_over_models_mb",
}


@dataclass(frozen=True)
class Setup:
    """What is measured. `lora`: bfloat16 weights with adapters; otherwise every float32 weight is trained."""

    geometry: str
    prompts: int
    completion_tokens: int
    device: str = "cpu"
    lora: bool = False


CONFIGS = {"mid": mid_config, "7b": qwen2_audio_7b_config}
SETUPS = {
    "tiny": Setup("tiny", prompts=16, completion_tokens=12),
    "mid": Setup("mid", prompts=2, completion_tokens=16),
    "7b": Setup("7b", prompts=2, completion_tokens=16, device="cuda", lora=True),
}


@command
def main(argv: list[str]) -> int:
    """Measure and report. Returns the exit code."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--geometry", choices=list(SETUPS), default="tiny", help="default: tiny")
    add("--mode", choices=[SHARED, PLAIN, "compare"], default="compare", help="default: compare")
    add("--threads", type=positive, default=1, metavar="N", help="default: 1")
    add("--json", type=output_file, metavar="FILE", help="where to write the figures")
    add("--steps", type=positive, default=5, metavar="N", help="timed steps of each mode (default: 5)")
    add("--prompts", type=positive, metavar="N", help="prompts of a step (default: the geometry's)")
    add("--completion-tokens", type=positive, metavar="N", help="default: the geometry's")
    arguments = parser.parse_args(argv)
    setup = SETUPS[arguments.geometry]
    if setup.device == "cuda" and not torch.cuda.is_available():
        what = "it needs a GPU, and there is none here"
        raise Refused.because(f"--geometry {setup.geometry}", what, "Choose mid: it runs anywhere.")
    sizes = {name: getattr(arguments, name) for name in ("prompts", "completion_tokens")}
    setup = replace(setup, **{name: size for name, size in sizes.items() if size})
    torch.set_num_threads(arguments.threads)
    modes = [SHARED, PLAIN] if arguments.mode == "compare" else [arguments.mode]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(setup, modes, Path(folder), arguments.steps)
    if arguments.json:
        write_json(arguments.json, results if arguments.mode == "compare" else results[arguments.mode])
    show(*summary(results))
    return EXIT_DONE


# --- The measurement


def measure(
    setup: Setup, modes: Sequence[str], folder: Path, steps: int, counted: bool = True
) -> dict[str, dict[str, Any]]:
    """Take steps of the modes in turn. Returns each mode's figures, and the `ratio` of two.

    With `counted` one more step of each tells `gflop_per_step`; counting takes several times as long as the step.

    Raises:
        Failed: a step saw other tokens than it was to see.
    """
    say(f"{setup.geometry}: making model and clips")
    transformers.utils.logging.disable_progress_bar()
    questions = prepare(setup, folder)
    inputs = question_inputs(loading.load_processor(folder / "model"), questions, PROMPT_STYLE)
    prompts = [len(ids) for ids in inputs.prompt_ids]
    tokens = NUM_GENERATIONS * sum(length + setup.completion_tokens for length in prompts)
    timed = WARMUP + steps
    trainer = build_trainer(setup, folder, len(modes) * (timed + counted))
    turns = InTurn(trainer, modes, timed)
    # before the trainer's own monitor, which starts the clock, and reads what is left on it
    trainer.callback_handler.callbacks.insert(0, turns)
    trainer.train()
    if any(step.tokens != tokens for taken in turns.taken.values() for step in taken):
        raise Failed(f"a step was to see {tokens} tokens, and saw more or fewer: the modes did not do the same work")

    completions = len(prompts) * NUM_GENERATIONS
    results: dict[str, Any] = {}
    measured = {mode: turns.taken[mode][WARMUP:timed] for mode in modes}
    seconds = {mode: [step.seconds for step in measured[mode]] for mode in modes}
    for mode in modes:
        median, peak = statistics.median(seconds[mode]), max(step.peak_mb for step in measured[mode])
        results[mode] = {
            "geometry": setup.geometry,
            "mode": mode,
            "parameters": turns.parameters,
            "prompts": len(prompts),
            "prompt_tokens": round(statistics.mean(prompts)),
            "completions": completions,
            "completion_tokens": setup.completion_tokens,
            **({"gflop_per_step": round(turns.taken[mode][-1].flops / 1e9, 3)} if counted else {}),
            "seconds_per_step": round(median, 4),
            "completions_per_second": round(completions / median, 3),
            "peak_memory_mb": round(peak, 1),
            "breakdown": {
                name: round(statistics.median(step.parts[name] for step in measured[mode]), 4) for name in PARTS
            },
            "memory_over_models_mb": round(peak - turns.memory_mb, 1),
        }
    return results | ({"ratio": ratio_of(seconds[SHARED], seconds[PLAIN])} if len(modes) > 1 else {})


@dataclass(frozen=True)
class Step:
    """What a step took: seconds by part of it, tokens seen, memory at most, and FLOPs if they were counted."""

    parts: dict[str, float]
    tokens: int
    peak_mb: float
    flops: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class InTurn(TrainerCallback):
    """Gives the steps of a training to modes in turn, and notes what the trainer's clock says of each.

    A step lasts from the batch's questions to the zeroed gradients; reading the data set is outside, loading the
    clips and their features inside. So many steps of each mode are timed; the operations of the next one are counted.
    """

    def __init__(self, trainer: AudioGRPOTrainer, modes: Sequence[str], timed: int):
        self.trainer, self.modes, self.timed = trainer, modes, timed
        self.taken: dict[str, list[Step]] = {mode: [] for mode in modes}
        self.device = trainer.accelerator.device.type

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        own = list(self.trainer.model.parameters())
        reference = [] if self.trainer.ref_model is None else list(self.trainer.ref_model.parameters())
        for parameter in own + reference:  # weights that are still only mapped from their file become resident
            parameter.detach().sum()
        self.parameters = sum(parameter.numel() for parameter in own)
        self.memory_mb = reset_peak_memory(self.device)

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        self.mode = self.modes[state.global_step % len(self.modes)]
        self.trainer.share = self.mode == SHARED
        self.tokens_before = state.num_input_tokens_seen
        self.counter, self.counting = FlopCounterMode(display=False, custom_mapping=KERNELS), ExitStack()
        if len(self.taken[self.mode]) == self.timed:
            # Attention as matrix products, which the counter sees on every device. It does not see the in-place addmm_
            # that TRL sums the gradients of lm_head with: 1 to 3 % of a step of mid.
            self.counting.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.counting.enter_context(self.counter)
        reset_peak_memory(self.device)

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        parts = self.trainer.clock.read()
        self.counting.close()
        tokens = state.num_input_tokens_seen - self.tokens_before
        step = Step(parts, tokens, peak_memory(self.device), self.counter.get_total_flops())
        self.taken[self.mode].append(step)
        say(f"{self.mode}: step {len(self.taken[self.mode])}, {step.seconds:.2f} s")


def ratio_of(fast: Sequence[float], slow: Sequence[float]) -> dict[str, float]:
    """How many times longer the slow way takes than the fast one beside it: median, min and max over the pairs."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {name: round(of(ratios), 3) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def spread(ratio: dict[str, float]) -> str:
    """Such as `11.30 (10.70 to 11.50)`."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def summary(results: Mapping[str, Any]) -> Iterator[Table | str]:
    """What `measure` returns, for the terminal: one column a mode."""
    modes = {mode: figures for mode, figures in results.items() if mode != "ratio"}
    first = next(iter(modes.values()))
    title = (
        f"{first['geometry']}: {first['parameters'] / 1e6:.1f} M parameters, {first['prompts']} prompts of "
        f"{first['prompt_tokens']} tokens, {first['completions']} completions of {first['completion_tokens']}"
    )
    rows = {label: {mode: f"{modes[mode][key]:.2f}" for mode in modes} for label, key in SHOWN.items()}
    rows |= {f"{part}, s": {mode: f"{modes[mode]['breakdown'][part]:.3f}" for mode in modes} for part in PARTS}
    yield table(title, rows)
    if "ratio" in results:
        yield f"plain / shared, seconds: {spread(results['ratio'])}"


# --- Model and questions


def prepare(setup: Setup, folder: Path) -> list[AudioQuestion]:
    """Write `manifest.jsonl` with its clips and `model/` (under LoRA without weights: they are drawn on the device)."""
    model_folder = folder / "model"
    if setup.geometry == "tiny":
        questions, texts = _embedded_questions(folder, setup.prompts)
        tiny_model.build_tiny_qwen2_audio(model_folder, texts=texts, seed=0, geometry=tiny_model.TINY)
    else:
        config = CONFIGS[setup.geometry]()
        # the chat template's words too: without them the bare prompt alone would be too long
        text = prompt_text(_filled_question(Path("clip.wav"), 10), PROMPT_STYLE) + " You are a helpful assistant"
        geometry = tiny_model.Geometry(num_mel_bins=128, hop_length=160, window_seconds=30)
        processor = tiny_model.build_processor(geometry, [text] * 2)
        processor.save_pretrained(model_folder)
        model = tiny_model.with_random_weights(config, processor, seed=0, device="meta" if setup.lora else setup.device)
        if setup.lora:
            config.save_pretrained(model_folder)
        else:
            model.save_pretrained(model_folder)
        questions = _exact_questions(processor, folder, setup.prompts)
    write_manifest(folder / "manifest.jsonl", questions)
    return questions


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


def training_settings(setup: Setup, folder: Path, max_steps: int, **changes: Any) -> AudioGRPOConfig:
    """Of a training on what `prepare` wrote, with completions of a forced length."""
    text = Qwen2AudioConfig.from_pretrained(folder / "model").get_text_config()
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "prompts_per_step": setup.prompts,
        "max_prompts_per_device": 16 if setup.geometry == "tiny" else 2,
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": setup.completion_tokens,
        "generation_kwargs": {"eos_token_id": text.vocab_size},  # which no completion reaches
        "reward_funcs": ["accuracy", "format", "random"],  # random: there is something to learn, as in training
        "loss_type": "grpo",
        "beta": 0.04,
        "learning_rate": 1e-6,
        "max_steps": max_steps,
        "optim": "adamw_torch",
        "bf16": setup.lora,
        "use_cpu": setup.device == "cpu",
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    return AudioGRPOConfig(**settings | changes)


def build_trainer(setup: Setup, folder: Path, max_steps: int, **changes: Any) -> AudioGRPOTrainer:
    """The real trainer with these settings, some of them changed."""
    training = training_settings(setup, folder, max_steps, **changes)  # first: under ZeRO-3 the weights come in shards
    start_distributed(training)
    questions = read_questions(folder / "manifest.jsonl").records
    if setup.lora:
        model, processor = random_model(setup, folder)
    else:
        model, processor = loading.load(folder / "model")
    peft_config = adapters() if setup.lora else None
    trainer = AudioGRPOTrainer(model, training, questions, processor, PROMPT_STYLE, peft_config=peft_config)
    trainer.remove_callback(PrinterCallback)
    return trainer


def random_model(setup: Setup, folder: Path) -> tuple[Qwen2AudioForConditionalGeneration, ProcessorMixin]:
    """Model and processor of what `prepare` wrote, bfloat16 weights drawn on the device."""
    config, processor = Qwen2AudioConfig.from_pretrained(folder / "model"), loading.load_processor(folder / "model")
    model = tiny_model.with_random_weights(config, processor, seed=0, dtype=torch.bfloat16, device=setup.device)
    return model, processor


def adapters() -> LoraConfig:
    """LoRA on the language model's attention; the encoder stays as it is."""
    return LoraConfig(r=LORA_RANK, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")


if __name__ == "__main__":
    main()
