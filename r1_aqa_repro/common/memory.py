"""The memory of this process: how much is in use, and how much it was at most."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import psutil

MB = 1024 * 1024


def reset_peak_memory(device: str = "cpu") -> float:
    """MB in use now; the peak is counted anew from here (of resident memory on Linux only)."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    if platform.system() == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but the allocator kept
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark, proc(5)
    return psutil.Process().memory_info().rss / MB


def peak_memory(device: str = "cpu") -> float:
    """MB at the highest since `reset_peak_memory`: allocated on a GPU, resident on a CPU (without Linux: now)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / MB
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    return psutil.Process().memory_info().rss / MB
