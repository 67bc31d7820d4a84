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

import ctypes
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `eval` and `r1_aqa_repro` also without an installation

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import (  # noqa: E402
    Qwen2AudioConfig,
    Qwen2AudioProcessor,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback  # noqa: E402

from r1_aqa_repro.common.console import Options, positive, say  # noqa: E402
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Refused, command  # noqa: E402
from r1_aqa_repro.common.files import write_json  # noqa: E402
from r1_aqa_repro.data.audio import SAMPLING_RATE  # noqa: E402
from r1_aqa_repro.data.prompts import prompt_text  # noqa: E402
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest  # noqa: E402
from r1_aqa_repro.embedded.question_set import make_question  # noqa: E402
from r1_aqa_repro.embedded.tiny_model import (  # noqa: E402
    TINY,
    Geometry,
    build_processor,
    build_tiny_qwen2_audio,
    with_random_weights,
)
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer  # noqa: E402
from r1_aqa_repro.model import loading  # noqa: E402
from r1_aqa_repro.model.inputs import num_audio_tokens, question_inputs  # noqa: E402
from r1_aqa_repro.planning.geometries import mid_config, qwen2_audio_7b_config  # noqa: E402
from r1_aqa_repro.run.config import AudioGRPOConfig  # noqa: E402

SHARING = {"shared": "auto", "plain": "off"}  # mode -> the trainer's `sharing`
NUM_GENERATIONS = 8
PROMPT_STYLE = "answer"
PROMPT_TOKENS, CLIP_SECONDS = 351, 10  # of mid and 7b; 250 of the tokens are audio
LORA_RANK = 16
SECTIONS = ("generation", "reward", "reference", "forward", "backward", "optimizer", "other")
MB = 2**20


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
        raise Refused.because(
            f"--geometry {setup.geometry}", "it needs a GPU, and there is none here", "Choose mid: it runs anywhere."
        )
    setup = replace(
        setup,
        prompts=arguments.prompts or setup.prompts,
        completion_tokens=arguments.completion_tokens or setup.completion_tokens,
    )
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
    config, questions = prepare(setup, folder)
    processor = loading.load_processor(folder / "model")
    inputs = question_inputs(processor, questions, PROMPT_STYLE)
    prompts = [
        Prompt(len(ids), int(frames))
        for ids, frames in zip(inputs.prompt_ids, inputs.feature_attention_mask.sum(-1), strict=True)
    ]
    tokens_of_step = NUM_GENERATIONS * sum(prompt.tokens + setup.completion_tokens for prompt in prompts)
    floor = step_floor(config, prompts, NUM_GENERATIONS, setup.completion_tokens, setup.lora)
    with ExitStack() as running:
        workers: dict[str, Stepper] = {}
        for mode in modes:
            say(f"{mode}: loading")
            process = started(setup, mode, folder, warmup + steps + 1, threads, tokens_of_step)
            workers[mode] = running.enter_context(process)
        for number in range(warmup):
            for mode, worker in workers.items():
                say(f"{mode}: warm-up step {number + 1} of {warmup}, {worker.take_step()['seconds']:.2f} s")
        timed: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
        for number in range(steps):
            for mode, worker in workers.items():
                timed[mode].append(worker.take_step())
                say(f"{mode}: step {number + 1} of {steps}, {timed[mode][-1]['seconds']:.2f} s")
        results = {}
        for mode, worker in workers.items():
            say(f"{mode}: counting the operations of one more step")
            counted = worker.take_step(count=True)
            results[mode] = figures(setup, mode, prompts, worker.loaded, timed[mode], counted, floor, peak_tflops)
    return results, {mode: [step["seconds"] for step in timed[mode]] for mode in modes}


def figures(
    setup: Setup,
    mode: str,
    prompts: Sequence[Prompt],
    loaded: dict[str, Any],
    timed: Sequence[dict[str, Any]],
    counted: dict[str, Any],
    floor: int,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """The figures of one mode, from what its process said of each step."""
    seconds = statistics.median(step["seconds"] for step in timed)
    peak = max(step["peak_mb"] for step in timed)
    completions = len(prompts) * NUM_GENERATIONS
    breakdown = {name: statistics.median(step["breakdown"][name] for step in timed) for name in SECTIONS}
    result = {
        "geometry": setup.geometry,
        "mode": mode,
        "parameters": loaded["parameters"],
        "prompts": len(prompts),
        "prompt_tokens": round(statistics.mean(prompt.tokens for prompt in prompts)),
        "completions": completions,
        "completion_tokens": setup.completion_tokens,
        "gflop_per_step": round(counted["flops"] / 1e9, 3),
        "seconds_per_step": round(seconds, 4),
        "completions_per_second": round(completions / seconds, 3),
        "peak_memory_mb": round(peak, 1),
        "breakdown": {name: round(value, 4) for name, value in breakdown.items()},
        "gflop_breakdown": {name: round(counted["flop_breakdown"][name] / 1e9, 3) for name in SECTIONS},
        "memory_over_models_mb": round(peak - loaded["memory_mb"], 1),
        "floor_gflop": round(floor / 1e9, 3),
        "share_of_floor": round(floor / counted["flops"], 4),
    }
    if peak_tflops is not None:
        trained = ("forward", "backward")
        flops = sum(counted["flop_breakdown"][name] for name in trained)
        result["model_flop_utilisation"] = round(
            flops / sum(breakdown[name] for name in trained) / (peak_tflops * 1e12), 4
        )
    return result


def ratio_of(shared: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """How many times longer a plain step takes than the shared step beside it: median, min and max over the pairs."""
    ratios = [slow / fast for fast, slow in zip(shared, plain, strict=True)]
    of = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in of.items()}


def summary(results: dict[str, dict[str, Any]], ratio: dict[str, float] | None) -> str:
    """The figures as a table for the terminal, one column a mode."""
    rows = [
        ("seconds a step", "seconds_per_step"),
        ("completions a second", "completions_per_second"),
        ("GFLOP a step", "gflop_per_step"),
        ("  of them unavoidable", "floor_gflop"),
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
        *(f"  {name + ', s':22}" + "".join(f"{column['breakdown'][name]:12.3f}" for column in columns)
          for name in SECTIONS),
    ]  # fmt: skip
    if ratio is not None:
        lines.append(f"plain / shared, seconds: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return "\n".join(lines)


# --- The unavoidable part


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt (its audio tokens among them), and mel frames of its clip."""

    tokens: int
    frames: int


@dataclass(frozen=True)
class Forward:
    """FLOPs of one pass over a prompt and its completions, by what their backward pass costs.

    first: the first convolution, whose input needs no gradient. encoder: the rest up to the language model, projector
    and attention included. linear: matrix products with the language model's weights, `entry` of them the first
    layer's q, k, v. attention: the language model's. head: lm_head. adapters: LoRA's on q, k, v, o,
    `adapter_entry` of them the products of the first layer's inputs.
    """

    first: int
    encoder: int
    linear: int
    entry: int
    attention: int
    head: int
    adapters: int
    adapter_entry: int

    @property
    def base(self) -> int:
        """Without adapters."""
        return self.first + self.encoder + self.linear + self.attention + self.head

    @property
    def full_backward(self) -> int:
        """Every weight trained: a product costs two more (gradients of its input and of its weight)."""
        return 2 * self.base - self.first

    @property
    def lora_backward(self) -> int:
        """Adapters trained: nothing before the language model, frozen weights pass on the gradient of their input."""
        frozen = self.linear - self.entry + self.head
        return frozen + 2 * self.attention + 2 * self.adapters - self.adapter_entry


def forward_of(
    config: Qwen2AudioConfig, prompt: Prompt, num_completions: int, completion_tokens: int, rank: int = 0
) -> Forward:
    """One pass that computes every distinct position once; a multiplication and an addition are two operations.

    The encoder hears the clip's own frames. The language model runs the prompt once and each completion without its
    last token (which predicts nothing). A position attends to itself and what precedes it in its own completion and
    in the prompt: also the work of decoding with a key-value cache. lm_head runs where a token is drawn or scored,
    for the first token once a prompt. As in `FlopCounterMode`, only matrix products and convolutions count.
    """
    audio, text = config.audio_config, config.text_config
    width, frames = audio.d_model, prompt.frames
    positions = (frames - 1) // 2 + 1  # after the second convolution
    features = int(num_audio_tokens(torch.ones(1, frames)))
    conv1 = 2 * frames * width * audio.num_mel_bins * 3
    conv2 = 2 * positions * width * width * 3
    layer = 2 * positions * (4 * width * width + 2 * width * audio.encoder_ffn_dim) + 4 * positions**2 * width
    projector = 2 * features * width * text.hidden_size

    hidden = text.hidden_size
    head_dim = hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    fed = completion_tokens - 1
    tokens = prompt.tokens + num_completions * fed
    pairs = prompt.tokens * (prompt.tokens + 1) // 2 + num_completions * (fed * prompt.tokens + fed * (fed + 1) // 2)
    entry = 2 * tokens * hidden * (queries + 2 * keys)
    rest = 2 * tokens * (queries * hidden + 3 * hidden * text.intermediate_size)
    adapter_inputs = 2 * tokens * rank * hidden * 3
    adapters = adapter_inputs + 2 * tokens * rank * (queries + 2 * keys + queries + hidden)
    return Forward(
        first=conv1,
        encoder=conv2 + audio.encoder_layers * layer + projector,
        linear=text.num_hidden_layers * (entry + rest),
        entry=entry,
        attention=text.num_hidden_layers * 4 * pairs * queries,
        head=2 * (1 + num_completions * fed) * hidden * text.vocab_size,
        adapters=text.num_hidden_layers * adapters,
        adapter_entry=adapter_inputs,
    )


def step_floor(
    config: Qwen2AudioConfig, prompts: Sequence[Prompt], num_completions: int, completion_tokens: int, lora: bool
) -> int:
    """FLOPs of a step that computes nothing twice: one pass for the rollout, one for the reference (without adapters),
    one for the policy and its backward pass.

    With adapters the trainer needs less: the encoder is frozen, and a clip that an earlier step met is not encoded
    again.
    """
    total = 0
    for prompt in prompts:
        forward = forward_of(config, prompt, num_completions, completion_tokens, LORA_RANK if lora else 0)
        backward = forward.lora_backward if lora else forward.full_backward
        total += 3 * forward.base + 2 * forward.adapters + backward
    return total


# --- Model and questions


def prepare(setup: Setup, folder: Path) -> tuple[Qwen2AudioConfig, list[AudioQuestion]]:
    """Write `manifest.jsonl` with its clips and `model/` (under LoRA without weights: they are drawn on the device)."""
    model_folder = folder / "model"
    if setup.geometry == "tiny":
        questions, texts = _embedded_questions(folder, setup.prompts)
        build_tiny_qwen2_audio(model_folder, texts=texts, seed=0, geometry=TINY)
        config = Qwen2AudioConfig.from_pretrained(model_folder)
    else:
        config = mid_config() if setup.geometry == "mid" else qwen2_audio_7b_config()
        # the chat template's words too: without them the bare prompt alone would be too long
        text = prompt_text(_filled_question(Path("clip.wav"), 10), PROMPT_STYLE) + " You are a helpful assistant"
        processor = build_processor(Geometry(num_mel_bins=128, hop_length=160, window_seconds=30), [text] * 2)
        processor.save_pretrained(model_folder)
        model = with_random_weights(config, processor, seed=0, device="meta" if setup.lora else "cpu")
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
    questions: list[AudioQuestion] = []
    filler = 0
    for index in range(prompts):
        clip = folder / f"clip-{index}.wav"
        soundfile.write(clip, 0.1 * rng.standard_normal(CLIP_SECONDS * SAMPLING_RATE), SAMPLING_RATE)
        if index == 0:
            bare = question_inputs(processor, [_filled_question(clip, 0)], PROMPT_STYLE)
            filler = PROMPT_TOKENS - len(bare.prompt_ids[0])
        questions.append(_filled_question(clip, filler))
    return questions


def _filled_question(clip: Path, filler: int) -> AudioQuestion:
    text = "Which sound is heard in the clip?" + " sound" * filler
    return AudioQuestion(clip.stem, clip, text, ("a dog", "rain", "an engine", "a bell"), "rain")


def build_trainer(setup: Setup, mode: str, folder: Path, max_steps: int) -> AudioGRPOTrainer:
    """The real trainer on what `prepare` wrote, with completions of a forced length."""
    model_folder = folder / "model"
    questions = read_questions(folder / "manifest.jsonl").records
    if setup.lora:
        processor = loading.load_processor(model_folder)
        config = Qwen2AudioConfig.from_pretrained(model_folder)
        model = with_random_weights(config, processor, seed=0, dtype=torch.bfloat16, device=setup.device)
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
        seed=0,
    )
    trainer = AudioGRPOTrainer(
        model, training, questions, processor, PROMPT_STYLE, peft_config=adapters() if setup.lora else None
    )
    trainer.remove_callback(ProgressCallback)
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

    def take_step(self, count: bool = False) -> dict[str, Any]:
        """One optimizer step: `seconds`, `breakdown`, `tokens`, `peak_mb`; counted also `flops`, `flop_breakdown`."""
        self._connection.send("count" if count else "step")
        answer = self._answer()
        if answer["tokens"] != self._tokens:  # the modes would not have done the same work
            raise Failed(f"{self.mode}: a step saw {answer['tokens']} tokens, not the {self._tokens} it was to see")
        return answer

    def _answer(self) -> dict[str, Any]:
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
    trainer.add_callback(OnDemand(trainer, connection))
    trainer.train()


class OnDemand(TrainerCallback):
    """Waits before each step until it is asked for, and answers with what the step took.

    A step lasts from the batch's questions to the zeroed gradients; reading the data set is outside, loading the
    clips and their features inside.
    """

    def __init__(self, trainer: AudioGRPOTrainer, connection: Connection):
        self.trainer, self.connection = trainer, connection
        self.device = trainer.accelerator.device.type
        self.sections = Sections(trainer)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.sections.watch(self.trainer.optimizer, "step", "optimizer")
        models = [model for model in (self.trainer.model, self.trainer.ref_model) if model is not None]
        with torch.no_grad():  # weights that are still only mapped from their file become resident
            for model in models:
                for parameter in model.parameters():
                    parameter.sum()
        parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        self.connection.send({"parameters": parameters, "memory_mb": reset_peak_memory(self.device)})

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.counting = self.connection.recv() == "count"
        self.tokens_before = state.num_input_tokens_seen
        self.sections.begin(self.counting)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        tokens = state.num_input_tokens_seen - self.tokens_before
        self.connection.send(self.sections.end() | {"tokens": tokens, "peak_mb": peak_memory(self.device)})


class Sections:
    """Seconds, and when counting also FLOPs, of a step by section, measured around the trainer's own methods."""

    def __init__(self, trainer: AudioGRPOTrainer):
        self.synchronize: Callable[[], None] = (
            torch.cuda.synchronize if trainer.accelerator.device.type == "cuda" else lambda: None
        )
        self.counting = ExitStack()
        self.counter: FlopCounterMode | None = None
        self.watch(trainer, "_generate_single_turn", "generation")
        self.watch(trainer, "_calculate_rewards", "reward")
        # the policy's log-probabilities are part of the forward pass
        self.watch(trainer, "_get_per_token_logps_and_entropies", "reference", unless=torch.is_grad_enabled)
        self.watch(trainer, "compute_loss", "forward")
        self.watch(trainer.accelerator, "backward", "backward")
        self.watch(trainer, "_clip_grad_norm", "optimizer")

    def watch(self, owner: Any, method: str, section: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Add what `owner.method` takes to `section`, unless the predicate holds when it is called."""
        original = getattr(owner, method)

        @wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if unless():
                return original(*args, **kwargs)
            seconds, flops = self._now()
            try:
                return original(*args, **kwargs)
            finally:
                seconds_after, flops_after = self._now()
                self.seconds[section] += seconds_after - seconds
                self.flops[section] += flops_after - flops

        setattr(owner, method, watched)

    def begin(self, count: bool) -> None:
        """Start a step."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.flops: defaultdict[str, float] = defaultdict(int)
        self.counter = None
        # Attention as matrix products, which the counter sees on every device. It does not see the in-place addmm_ that
        # TRL sums the gradients of lm_head with: 1 to 3 % of a step of mid.
        if count:
            self.counting.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.counter = self.counting.enter_context(FlopCounterMode(display=False))
        self.began, _ = self._now()

    def end(self) -> dict[str, Any]:
        """End it: `seconds` and `breakdown`; counted also `flops` and `flop_breakdown`."""
        now, flops = self._now()
        self.counting.close()
        seconds = now - self.began
        answer = {"seconds": seconds, "breakdown": _with_other(self.seconds, seconds)}
        if self.counter is not None:
            answer |= {"flops": flops, "flop_breakdown": _with_other(self.flops, flops)}
        return answer

    def _now(self) -> tuple[float, int]:
        self.synchronize()
        return time.perf_counter(), self.counter.get_total_flops() if self.counter else 0


def _with_other(sections: defaultdict[str, float], total: float) -> dict[str, float]:
    return {name: total - sum(sections.values()) if name == "other" else sections[name] for name in SECTIONS}


def reset_peak_memory(device: str) -> float:
    """MB in use now, and from now on the peak is counted anew: resident memory on a CPU, allocated memory on a GPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    if platform.system() == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading freed but the allocator kept
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark, proc(5)
    return psutil.Process().memory_info().rss / MB


def peak_memory(device: str) -> float:
    """MB at the highest since `reset_peak_memory` (without Linux: resident memory now)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MB
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    return psutil.Process().memory_info().rss / MB


if __name__ == "__main__":
    main()
