"""Tell in ten minutes on one GPU how exact and how fast this code is there, with randomly initialised weights.

    bash scripts/gpu_check.sh --json gpu.json

Each part runs in a process of its own, within its own time limit, with one model in memory at a time. Its figures are
written into the JSON as they are measured, under its name; a part that failed holds `error`, and costs no other part
anything. docs/benchmarks.md says what the figures mean.

    machine      what it is, and what a matrix product, a copy and the launch of a kernel reach
    exactness    sharing against the plain way in bfloat16, as sampled against as scored, TRL's head, attention kernels
    decoding     milliseconds and kernels a token, with CUDA graphs too
    lora_step    a training step with adapters: seconds by part, MFU, memory beside the planner's
    full_step    forward and backward of all parameters, the same figures
    encoder      the audio encoder on trimmed clips and on its whole window
    evaluation   questions a second
    zero3        two steps under ZeRO-3, and without it
    offload      the same with weights and optimizer in the CPU's memory

Exit codes: 0 all parts were measured; 2 refused; 3 some failed, which is listed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import torch

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Refused, command
from r1_aqa_repro.common.files import write_json

# seconds that each part may take, ten minutes together
LIMITS = {
    "machine": 20, "exactness": 80, "decoding": 85, "lora_step": 165, "full_step": 70, "encoder": 25, "evaluation": 45,
    "zero3": 40, "offload": 70,
}  # fmt: skip


@command
def main(argv: list[str]) -> int:
    """Measure all parts, or one of them in this process. Returns the exit code."""
    parser = Options(__doc__, "bash scripts/gpu_check.sh")
    add = parser.add_argument
    add("--geometry", choices=("tiny", "7b"), default="7b", help="tiny runs on a CPU too (default: 7b)")
    add("--json", type=Path, metavar="FILE", default=Path("gpu_check.json"), help="default: gpu_check.json")
    add("--wheels", metavar="DIR", help="what gpu_check.sh is to install beside this machine's packages")
    add("--part", choices=list(LIMITS), help="measure this one alone, without a limit, and renew it in FILE")
    arguments = parser.parse_args(argv)
    if arguments.geometry == "7b" and not torch.cuda.is_available():
        what = "it needs a GPU, and PyTorch finds none here"
        raise Refused.because("--geometry 7b", what, "Choose tiny: it runs anywhere.")
    if arguments.part:
        measure(arguments.geometry, arguments.part, arguments.json)
        return EXIT_DONE
    write_json(arguments.json, {})
    for part, limit in LIMITS.items():
        began = time.monotonic()
        error = run(part, arguments.geometry, arguments.json, limit)
        note(arguments.json, part, {"seconds": round(time.monotonic() - began, 1)} | error)
    failed = [
        part for part, figures in json.loads(arguments.json.read_text(encoding="utf-8")).items() if "error" in figures
    ]
    say(
        f"{arguments.json}: {len(LIMITS) - len(failed)} of {len(LIMITS)} parts"
        + f"; failed: {', '.join(failed)}" * bool(failed)
    )
    return EXIT_LOSSES if failed else EXIT_DONE


def measure(geometry: str, part: str, file: Path) -> None:
    """Measure a part here; what ends it too early is noted with its figures."""
    from scripts import gpu_parts  # seconds

    try:
        with tempfile.TemporaryDirectory() as folder:
            for figures in getattr(gpu_parts, part)(gpu_parts.sizes_of(geometry), Path(folder)):
                note(file, part, figures)
    except BaseException as error:
        note(file, part, {"error": f"{type(error).__name__}: {error}"})
        raise


def run(part: str, geometry: str, file: Path, limit: float) -> dict[str, str]:
    """Measure a part in a process that is ended, with all that it has started, at the limit. Returns its `error`."""
    line = [sys.executable, __file__, "--geometry", geometry, "--json", str(file), "--part", part]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return {"error": f"not done within {limit} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    noted = json.loads(file.read_text(encoding="utf-8")).get(part, {})
    return {"error": f"ended with exit code {code}"} if code and "error" not in noted else {}


def note(file: Path, part: str, figures: dict[str, Any]) -> None:
    """Add figures of a part to the JSON."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, known | {part: known.get(part, {}) | figures})


if __name__ == "__main__":
    main()
