"""Estimate, before a run is paid for, what its training step takes on given GPUs and which strategy fits.

    python -m r1_aqa_repro.plan --config configs/grpo_qwen2_audio_7b.yaml --gpus 8 --gpu-memory 80

reads a training configuration, builds its model without memory for the weights, and prints memory by part for one
process or DDP, ZeRO-2, ZeRO-3, ZeRO-3 with offload and LoRA, the strategy to use, FLOPs a step and seconds, at least
and at most. Needs neither a GPU nor the weights. Further keys (`--num_generations 4`) override the file, as in
training.

Exit codes: 0 done, also if nothing fits (the output says what would); 2 bad arguments or configuration.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options, positive, positive_number
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import output_file, write_json

if TYPE_CHECKING:  # the command answers --help without it
    from r1_aqa_repro.planning.choice import Plan

_COLUMNS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "reference": "reference",
    "gathered": "gathered",
    "activations": "activations",
    "KV cache": "kv_cache",
    "logits": "logits",
}
_TASKS = {
    "grpo": "GRPO",
    "rloo": "RLOO",
    "sft": "SFT",
    "dpo": "DPO",
    "kto": "KTO",
    "reward": "a reward model",
    "ppo": "PPO",
}


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments, overrides = _parser().parse_known_args(argv)
    from r1_aqa_repro.planning.choice import make_plan  # takes seconds: only once the options are known
    from r1_aqa_repro.planning.seconds import Machine

    machine = Machine(
        arguments.gpus,
        arguments.gpu_memory * 1e9,
        arguments.gpu_tflops * arguments.utilisation * 1e12,
        arguments.gpu_bandwidth * 1e12,
        tuple(value * 1e-6 for value in sorted(arguments.launch_us)),
        arguments.interconnect * 1e9,
        arguments.host_link * 1e9,
        tuple(value * 1e-9 for value in sorted(arguments.cpu_adam)),
    )
    tokens = (arguments.prompt_tokens, arguments.clip_seconds, arguments.completion_tokens)
    plan = make_plan(arguments.config, overrides, machine, *tokens, arguments.measured)
    print_plan(plan, arguments)
    if arguments.json:
        given = {name: value for name, value in vars(arguments).items() if name not in ("json", "config", "measured")}
        write_json(arguments.json, {"config": str(arguments.config), "arguments": given} | plan.report())
    return EXIT_DONE


def print_plan(plan: Plan, arguments: argparse.Namespace) -> None:
    """The table, the recommendation, and the step of the strategy to use (if none fits, of the first) by part."""
    from r1_aqa_repro.planning.choice import gigabytes
    from r1_aqa_repro.planning.estimate import RESERVED
    from r1_aqa_repro.planning.seconds import total

    console, job, machine = Console(soft_wrap=True, highlight=False, markup=False), plan.job, plan.machine
    shown = plan.chosen or plan.found[0]
    console.print(f"model: {visible_line(plan.source)}, {shown.parameters.total / 1e9:.2f} G parameters")
    console.print(
        f"step of {_TASKS[job.task]}: {machine.gpus} x ({job.prompts} prompts, {job.completions} sequences, "
        f"{job.accumulation} times), {job.prompt_tokens} + {job.completion_tokens} tokens, {job.frames} frames encoded"
    )
    if job.task == "ppo":
        console.print(
            f"  {job.rollout.completions} sampled at once; passes over them: {job.passes}; updates: {job.updates}"
        )
    table = Table(title="Estimated GB (1e9 bytes) on each GPU", box=None, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for column in (*_COLUMNS, "peak", "fits", "CPU memory"):
        table.add_column(column, justify="right")
    for strategy in plan.found:
        memory = strategy.memory
        values = {name: getattr(memory, name) for name in _COLUMNS.values()}
        values["gathered"] = max(memory.gathered, memory.gathered_to_generate)
        values["logits"] = max(memory.logits, memory.sampling)
        fits = "yes" if strategy.fits(machine.gpu_bytes) else "no"
        parts = map(gigabytes, (*values.values(), memory.peak))
        table.add_row(strategy.name(job.num_processes), *parts, fits, gigabytes(memory.host))
    Console(width=150).print(table)
    console.print(
        f"peak: what is held (weights to reference) and the larger of generation, loss and optimizer step, which don't "
        f"overlap; fits: it leaves {RESERVED:.0%} of {machine.gpu_bytes / 1e9:g} GB free."
    )
    console.print(f"\n{plan.advice}")
    if plan.measured:
        console.print(f"\nMeasured: {', '.join(plan.measured)} ({visible_line(arguments.measured)}).")
    console.print(
        f"\nA step of {shown.name(job.num_processes)}, on each GPU, at {machine.flops_per_second / 1e12:.3g} TFLOP/s "
        f"and {machine.bytes_per_second / 1e12:.3g} TB/s, at least and at most:"
    )
    seconds = plan.seconds(shown)
    for part, (low, high) in seconds.items():
        flops = f"{shown.work.flops[part] / 1e12:.3g} TFLOP" if part in shown.work.flops else ""
        console.print(f"  {part:<18} {flops:>14} {low:10.3g} {high:10.3g} s")
    low, high = total(seconds)
    flops = f"{sum(shown.work.flops.values()) / 1e12:.3g} TFLOP"
    console.print(f"  {'all':<18} {flops:>14} {low:10.3g} {high:10.3g} s")
    console.print(
        "These are estimates: FLOPs are counted, and what is not known of the machine makes the range. Take the sums "
        "for lower bounds: rewards, audio decoding, Python between the parts and waiting for the slowest process are "
        "left out. Completions are taken at their longest."
    )


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.plan")
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="YAML of a training run")
    add("--gpus", type=positive, required=True, metavar="N", help="GPUs, one process each")
    add("--gpu-memory", type=positive_number, required=True, metavar="GB", help="of one GPU, in 1e9 bytes")
    add("--prompt-tokens", type=positive, metavar="N",
        help="of a prompt with its clip (default: 351, of them 250 of a 10-s clip; text: 512)")  # fmt: skip
    add("--clip-seconds", type=positive_number, metavar="S", help="default: 10, as AVQA's")
    add("--completion-tokens", type=positive, metavar="N",
        help="default: max_completion_length (SFT: 16 on audio, 512 on text)")  # fmt: skip
    add("--gpu-tflops", type=positive_number, default=989.0, metavar="T",
        help="its peak (default: 989, dense bfloat16 in NVIDIA's data sheets of H100 SXM and H200)")  # fmt: skip
    add("--utilisation", type=_fraction, default=0.4, metavar="F", help="of that peak which is reached (default: 0.4)")
    add("--gpu-bandwidth", type=positive_number, default=3.35, metavar="TB/S",
        help="memory bandwidth of one GPU (default: 3.35, H100 SXM; H200: 4.8)")  # fmt: skip
    add("--launch-us", type=positive_number, nargs=2, default=(3.0, 27.0), metavar="US",
        help="microseconds that launching a kernel takes, at least and at most (default: 3 27)")  # fmt: skip
    add("--interconnect", type=positive_number, default=450.0, metavar="GB/S",
        help="that reach one GPU from the others (default: 450, NVLink of an H100 or H200; H800: 200)")  # fmt: skip
    add("--host-link", type=positive_number, default=64.0, metavar="GB/S",
        help="between one GPU and the CPU's memory (default: 64, PCIe 5.0 x16)")  # fmt: skip
    add("--cpu-adam", type=positive_number, nargs=2, default=(0.1, 2.5), metavar="S",
        help="seconds that the CPUs' Adam takes for 1e9 weights, likewise (default: 0.1 2.5)")  # fmt: skip
    add("--measured", type=Path, metavar="FILE", help="what scripts/gpu_check.sh measured on such a GPU")
    add("--json", type=output_file, metavar="FILE", help="write the plan here as well")
    return parser


def _fraction(text: str) -> float:
    number = positive_number(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return number


if __name__ == "__main__":
    main()
