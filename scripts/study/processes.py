"""Work that runs at the same time in processes of its own, each with its own log, all of which end with the first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from r1_aqa_repro.common.console import print_anything, quiet_libraries, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, command
from scripts.launching import end_of, send_to_log, tell

Tell = Callable[[str], None]  # a line for the person at the terminal, from a process whose output is in its log


def run_all(work: Callable[[int, Tell], int], seeds: Sequence[int], jobs: int, log_of: Callable[[int], Path]) -> int:
    """Do the work of every seed, of `jobs` at a time; returns the first exit code that is not `EXIT_DONE`, if any.

    If one fails the others go on. Ctrl-C interrupts all and waits for what they save. However this process ends, theirs
    end with it.

    Args:
        work: to be pickled; returns the exit code.
        log_of: where the output of a seed's process goes, behind what is there.
    """
    context = multiprocessing.get_context("spawn")  # a forked PyTorch may hang
    waiting, running, codes = list(seeds), dict[int, BaseProcess](), dict[int, int]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                running[seed] = context.Process(target=_process, args=(work, seed, log_of(seed)))
                running[seed].start()
            wait([process.sentinel for process in running.values()])
            for seed in [seed for seed, process in running.items() if process.exitcode is not None]:
                code = running.pop(seed).exitcode or EXIT_DONE
                codes[seed] = EXIT_FAILED if code < 0 else code
                if code != EXIT_DONE:
                    _tell_end(seed, code, log_of(seed))
    except KeyboardInterrupt:
        say("interrupted: what is running saves what it has done")
        for process in running.values():
            _interrupt(process)
        for process in running.values():
            process.join()
        raise
    return next((code for code in codes.values() if code != EXIT_DONE), EXIT_DONE)


def _interrupt(process: BaseProcess) -> None:
    """Interrupt a seed's process and all that it has started; one that is only starting has no group of its own yet."""
    assert process.pid is not None
    with suppress(ProcessLookupError):  # it has ended
        try:
            os.killpg(process.pid, signal.SIGINT)
        except ProcessLookupError:
            os.kill(process.pid, signal.SIGINT)


def _process(work: Callable[[int, Tell], int], seed: int, log: Path) -> None:
    os.setsid()  # Ctrl-C is for the first process, which passes it on once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    terminal = send_to_log(log)
    quiet_libraries()
    print_anything()
    sys.exit(command(lambda _: work(seed, lambda text: tell(terminal, f"seed {seed}  {text}")))([]))


def _end_with_parent() -> None:
    """What is done is safe however a process ends; without its parent nobody would know of this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _tell_end(seed: int, code: int, log: Path) -> None:
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed ({signal.Signals(-code).name}), perhaps for want of memory: give a smaller --jobs"
    say("\n".join([f"seed {seed} {how}; the last lines of {log}:", *end_of(log)]))
