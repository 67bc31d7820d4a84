"""Tell in ten minutes on one GPU how exact and how fast this code is there, with randomly initialised weights.

    bash scripts/gpu_check.sh --json gpu.json

Each part runs in a process of its own, within its own time limit, with one model in memory at a time. Its figures are
written into the JSON as they are measured, under its name; a part that failed holds `error`, and costs no other part
anything. docs/benchmarks.md says what the figures mean.

    machine      what it is, and what a matrix product, a copy and the launch of a kernel reach
    exactness    sharing against the plain way in bfloat16, as sampled against as scored, TRL's head, attention kernels
    decoding     milliseconds and kernels a token, with CUDA graphs too
    lora_step    a training step with adapters: seconds by part, memory and MFU beside the planner's count
    full_step    forward and backward of all parameters, the same figures
    encoder      the audio encoder on trimmed clips and on its whole window
    evaluation   questions a second
    zero3        two steps under ZeRO-3, and without it
    offload      the same with weights and optimizer in the CPU's memory

Exit codes: 0 all parts were measured; 2 refused; 3 some failed, which is listed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import torch

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.files import LOCK, output_file, sole_use, write_json

GRACE = 10  # seconds between asking a part to end and ending it
# seconds that each part may take, ten minutes together
LIMITS = {
    "machine": 25, "exactness": 80, "decoding": 85, "lora_step": 130, "full_step": 75, "encoder": 25, "evaluation": 45,
    "zero3": 55, "offload": 80,
}  # fmt: skip


@command
def main(argv: list[str]) -> int:
    """Measure all parts, or one of them in this process. Returns the exit code."""
    parser = Options(__doc__, "bash scripts/gpu_check.sh")
    add = parser.add_argument
    add("--geometry", choices=("tiny", "7b"), default="7b", help="tiny runs on a CPU too (default: 7b)")
    add("--json", type=output_file, metavar="FILE", default=Path("gpu_check.json"), help="default: gpu_check.json")
    add("--wheels", metavar="DIR", help="what gpu_check.sh is to install beside this machine's packages")
    add("--part", choices=list(LIMITS), help="measure this one alone, without a limit, and renew it in FILE")
    arguments = parser.parse_args(argv)
    if arguments.geometry == "7b" and not torch.cuda.is_available():
        what = "it needs a GPU, and PyTorch finds none here"
        raise Refused.because("--geometry 7b", what, "Choose tiny: it runs anywhere.")
    if arguments.part:
        measure(arguments.geometry, arguments.part, arguments.json)
        return EXIT_DONE
    try:
        importlib.import_module("scripts.gpu_parts")  # read and compiled here, it takes no part's time
    except ImportError as error:
        remedy = "scripts/collect_wheels.sh collects what a machine without an index lacks."
        raise Refused.because(sys.executable, f"packages are missing ({error})", remedy) from error
    failed = []
    with sole_use(arguments.json.with_name(f".{arguments.json.name}{LOCK}"), "Give another --json."):
        write_json(arguments.json, {})
        for part, limit in LIMITS.items():
            figures = run(part, arguments.geometry, arguments.json, limit)
            say(f"{part}: {figures.get('error', 'done')} ({figures['seconds']} s)")
            failed += [part] if "error" in figures else []
    told = f"; failed: {', '.join(failed)}" if failed else ""
    say(f"{arguments.json}: {len(LIMITS) - len(failed)} of {len(LIMITS)} parts{told}")
    return EXIT_LOSSES if failed else EXIT_DONE


def measure(geometry: str, part: str, file: Path) -> None:
    """Measure a part here; what ends it too early is noted with its figures."""
    from scripts import gpu_parts  # seconds

    figures: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for further in getattr(gpu_parts, part)(gpu_parts.sizes_of(geometry), Path(folder)):
                figures |= further
                write_json(file, read(file) | {part: figures})
    except BaseException as error:
        write_json(file, read(file) | {part: figures | {"error": f"{type(error).__name__}: {error}"}})
        raise


def run(part: str, geometry: str, file: Path, limit: float) -> dict[str, Any]:
    """Measure a part in a process that is ended, with all that it has started, at the limit. Returns its figures."""
    line = [sys.executable, __file__, "--geometry", geometry, "--json", str(file), "--part", part]
    began = time.monotonic()
    ended: dict[str, str] = {}  # by itself, without a word
    late: dict[str, str] = {}
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            if code := process.wait(limit):
                ended = {"error": f"ended with exit code {code}"}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # killed, it would leave the lock of what it compiles to all others
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            late = {"error": f"not done within {limit} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    figures = ended | read(file).get(part, {}) | late | {"seconds": round(time.monotonic() - began, 1)}
    write_json(file, read(file) | {part: figures})
    return figures


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_FAILED))  # with everything undone on the way
    main()
