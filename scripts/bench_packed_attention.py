"""Attention over packed rows with one mask and with two, forward and backward: where `SPLIT_FROM` should lie.

    python scripts/bench_packed_attention.py [--device cuda]

For prompts of several lengths and completions of several lengths, it prints the share of pairs of positions that one
mask computes in vain, and how much faster two masks are.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.grpo.shared_prefix import SPLIT_FROM, PackedGroups, pack_groups
from r1_aqa_repro.model.shared_attention import PackedAttention, score_packed

PROMPTS, NUM_GENERATIONS, HEADS, HEAD_DIM = 2, 8, 8, 64
SHAPES = ((100, 8), (100, 16), (100, 64), (350, 8), (350, 16), (350, 32), (350, 64), (350, 128), (350, 256), (850, 16))


def main(argv: list[str]) -> int:
    """Print a line a shape."""
    parser = Options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        f"{'prompt':>6} {'completion':>10} {'pairs / needed':>14} {'one mask':>10} {'two masks':>10} {'one / two':>9}"
    )
    for prompt, completion in SHAPES:
        rows = torch.ones(PROMPTS * NUM_GENERATIONS, prompt + 1 + completion, dtype=torch.long, device=arguments.device)
        group = torch.arange(PROMPTS, device=rows.device).repeat_interleave(NUM_GENERATIONS)
        packed = pack_groups(rows, rows, group, completion, pad_token_id=0)
        one, two = seconds(packed, arguments.repeats)
        print(
            f"{prompt:6d} {completion:10d} {packed.pairs_of_one_mask():14.2f} {1e3 * one:7.1f} ms {1e3 * two:7.1f} ms "
            f"{one / two:9.2f}"
        )
    print(f"two masks are used from {SPLIT_FROM} times the pairs needed")
    return 0


def seconds(packed: PackedGroups, repeats: int) -> tuple[float, float]:
    """Median seconds of forward and backward with one mask and with two, taken in turns."""
    device = packed.input_ids.device
    shape = (PROMPTS, HEADS, packed.input_ids.size(1), HEAD_DIM)
    query, key, value = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))
    joint = packed.joint_mask()
    prefix_mask, segment_mask = packed.split_masks()
    attention = PackedAttention(prefix_mask, packed.num_slots)
    ways: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: scaled_dot_product_attention(query, key, value, attn_mask=joint),
        lambda: score_packed(query, key, value, segment_mask, attention),
    )
    taken: tuple[list[float], ...] = ([], [])
    for _ in range(repeats + 1):
        for way, times in zip(ways, taken, strict=True):
            began = _now(device)
            way().sum().backward()
            times.append(_now(device) - began)
    one, two = (statistics.median(times[1:]) for times in taken)  # the first warms up
    return one, two


def _now(device: torch.device) -> float:
    """A GPU's time is the wall's, once it has finished; a CPU's is the process's own, whatever else is running."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
