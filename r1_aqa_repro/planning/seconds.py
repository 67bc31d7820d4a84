"""Seconds of a training step: what computing, launching, moving and updating take at least and at most.

Each part has two figures where something is not known: how long the launch of a kernel takes, how much of what the
processes send each other hides behind computing, and how fast a CPU's Adam is. `measured` puts the constants of one
machine in their place. What has no part here (rewards, decoding of audio, Python between the parts, waiting for the
slowest process) makes the sum a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.planning.estimate import Engine, Parameters, Strategy
from r1_aqa_repro.planning.geometries import qwen2_audio_7b_config
from r1_aqa_repro.planning.job import Job

Range = tuple[float, float]
_ADAM_BYTES = 30  # a parameter: reads weight, gradient and two moments in float32, writes three and a bfloat16 copy
# of a language model: what a token costs depends on them, and on nothing else that a config.json says
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
_MEASURE_AGAIN = "Give a file that bash scripts/gpu_check.sh wrote."


@dataclass(frozen=True)
class Machine:
    """gpus: processes. gpu_bytes: of each. flops_per_second, bytes_per_second: as they are reached.

    launch: seconds a kernel. link, host_link: bytes a second that reach a GPU from the others, and from the CPU's
    memory. cpu_adam: seconds a parameter, of the whole machine. token: seconds a decoded token, if that was measured.
    """

    gpus: int
    gpu_bytes: float
    flops_per_second: float
    bytes_per_second: float
    launch: Range
    link: float
    host_link: float
    cpu_adam: Range
    token: float | None = None


def step_seconds(strategy: Strategy, job: Job, machine: Machine) -> dict[str, Range]:
    """Of one optimizer step of one process, by part.

    Decoding waits for the memory, in which every token reads layers, head and cache (arXiv 2211.05102, 2.1), or for the
    launches, whichever takes longer. What is sent in the loss hides behind its computing at best.
    """
    work, offload = strategy.work, strategy.engine == "zero3_offload"
    seconds: dict[str, Range] = {}
    for part, flops in work.flops.items():
        taken = flops / machine.flops_per_second
        seconds[part] = (taken, taken)
    if "decoding" in work.flops:
        tokens = job.rollout.accumulation * job.completion_tokens
        computed = max(seconds["decoding"][0], work.decode_bytes / machine.bytes_per_second)
        low, high = (max(computed, work.decode_kernels * launch) for launch in machine.launch)
        seconds["decoding"] = (low, high) if machine.token is None else (tokens * machine.token,) * 2
    hidden = sum(taken for part, (taken, _) in seconds.items() if part not in ("prefill", "decoding", "encoder"))
    for part, in_loss, apart in (
        ("sent between GPUs", *sent(strategy.engine, job, strategy.parameters, machine.link)),
        ("CPU to GPU", *(carried(job, strategy.parameters, machine.host_link) if offload else (0.0, 0.0))),
    ):
        if in_loss + apart:
            seconds[part] = (apart + max(0.0, in_loss - hidden), apart + in_loss)
    trained = job.updates * strategy.parameters.trainable
    if offload:
        seconds["CPU's Adam"] = (trained * machine.cpu_adam[0], trained * machine.cpu_adam[1])
    else:
        own = trained / (1 if strategy.engine == "ddp" else job.num_processes)
        seconds["optimizer"] = (own * _ADAM_BYTES / machine.bytes_per_second,) * 2
    return seconds


def sent(engine: Engine, job: Job, parameters: Parameters, link: float) -> Range:
    """Seconds that a step's collectives take in the loss, and apart from it (arXiv 1910.02054, section 7).

    DDP reduces float32 gradients once an update. ZeRO-2 reduces them after every backward, to their owners, and gathers
    the new weights; ZeRO-3 gathers the weights for every forward and backward instead, of all models, and to generate.
    """
    of_others = (job.num_processes - 1) / job.num_processes / link
    if engine == "ddp":
        return job.updates * 2 * 4 * parameters.trainable * of_others, 0.0
    size = 2 if job.bf16 else 4
    gradients = size * parameters.trainable
    of_backwards = job.passes * job.accumulation * gradients * of_others
    if engine == "zero2":
        return of_backwards, job.updates * gradients * of_others
    in_loss, to_generate = gathered(job, parameters)
    return in_loss * size * of_others + of_backwards, to_generate * size * of_others


def gathered(job: Job, parameters: Parameters) -> tuple[int, int]:
    """Weights that a step of ZeRO-3 gathers for the forwards and backwards of all models, and to generate.

    PPO gathers policy and critic once to generate, however often it then samples, and once more to score that.
    """
    a_batch = 2 * job.passes * parameters.total + job.reward_models * parameters.scorer
    a_batch += parameters.policy * (job.reference + job.answer_probability)
    if job.task == "ppo":
        return job.accumulation * (a_batch + parameters.total), parameters.total
    generations = 1 if job.gather_for_generation else 1 + job.completion_tokens
    return job.accumulation * a_batch, job.accumulation * generations * parameters.total if job.generates else 0


def carried(job: Job, parameters: Parameters, host_link: float) -> Range:
    """Seconds in which a process of ZeRO-3 with offload brings its share of the weights for every gather, and takes
    its share of the gradients back after every backward: in the loss, and apart from it."""
    share = (2 if job.bf16 else 4) / job.num_processes / host_link
    in_loss, to_generate = gathered(job, parameters)
    lost = job.passes * job.accumulation * parameters.trainable
    return (in_loss + lost) * share, to_generate * share


def total(seconds: dict[str, Range]) -> Range:
    """The sum of all parts."""
    return sum(low for low, _ in seconds.values()), sum(high for _, high in seconds.values())


def measured(file: Path, machine: Machine, job: Job) -> tuple[Machine, list[str]]:
    """The machine with the constants that `scripts/gpu_check.sh` measured on one of its GPUs, and each in words.

    - FLOP/s: of forward and backward of all parameters in this job's mode, else of a large matrix product;
    - bytes a second: of a copy; seconds a kernel: at least of launches one after another, at most of all that was
      launched to decode;
    - seconds a token: of 16 rows, if the model is the measured one, Qwen2-Audio-7B.

    Of several lengths of completions the nearest to the job's counts. What was not measured stays as it was.

    Raises:
        Refused: the file cannot be read, or holds none of them.
    """
    found = read_json(file, _MEASURE_AGAIN)
    parts: dict[str, Any] = {name: found[name] for name in ("machine", "full_step", "decoding") if name in found}
    basis, words = parts.get("machine", {}), []
    mode = "shared" if job.shared else "plain"
    step = _nearest(parts.get("full_step", {}), mode, job.completion_tokens)
    decoding = parts.get("decoding", {})
    token = _nearest(decoding, "cuda_graphs" if job.cuda_graphs else mode, job.completion_tokens)
    planned, known = (config.get_text_config() for config in (job.model, qwen2_audio_7b_config()))
    same_sizes = all(getattr(planned, size) == getattr(known, size) for size in _SIZES)
    if tflops := step.get("tflops", basis.get("matmul_tflops")):
        machine = replace(machine, flops_per_second=tflops * 1e12)
        words.append(f"{tflops:g} TFLOP/s ({'forward and backward' if 'tflops' in step else 'a matrix product'})")
    if rate := basis.get("copy_tb_per_second"):
        machine = replace(machine, bytes_per_second=rate * 1e12)
        words.append(f"{rate:g} TB/s")
    if kernel := basis.get("kernel_us"):
        launched = _nearest(decoding, mode, job.completion_tokens).get("ms_a_token")
        kernels = decoding.get(f"{mode}_operations", {}).get("kernels")
        between = max(kernel, 1000 * launched / kernels) if launched and kernels else kernel
        machine = replace(machine, launch=(kernel / 1e6, between / 1e6))
        words.append(f"{kernel:g} to {between:.3g} us a kernel")
    if (milliseconds := token.get("ms_a_token")) and basis.get("geometry") == "7b" and same_sizes:
        machine = replace(machine, token=milliseconds / 1000)
        words.append(f"{milliseconds:g} ms a token")
    if not words:
        raise Refused.because(str(file), "it holds no figure of a GPU", _MEASURE_AGAIN)
    return machine, words


def _nearest(part: dict[str, Any], mode: str, tokens: int) -> dict[str, Any]:
    """The entry `<mode>_<tokens>` of a part whose number of tokens is nearest."""
    lengths = [name.rsplit("_", 1)[1] for name in part if name.startswith(f"{mode}_") and name[-1].isdigit()]
    if not lengths:
        return {}
    entry: dict[str, Any] = part[f"{mode}_{min(lengths, key=lambda length: abs(int(length) - tokens))}"]
    return entry
