"""What the lessons share: options, environments, and what a lesson leaves.

A lesson is a command, `python scripts/learn/NAME.py --out DIR`. It prints a table and writes results.json and
a picture, and a lesson on text also the answers to read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import output_folder, write_atomically, write_json
from scripts.shown import show

RESULTS = "results.json"
CART_POLE = "CartPole-v1"


def options(doc: str | None, seeds: Sequence[int] = (0,)) -> Options:
    """The options of a lesson: --out, and --seed, which takes several if the default `seeds` are several."""
    parser = Options(doc)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="where to write")
    parser.add_seed(seeds)
    return parser


def text_options(doc: str | None) -> Options:
    """Those of a lesson on text: also --runs, the folder of the runs that it builds on, which are made if not there."""
    parser = options(doc)
    where = "folder of the runs that it builds on; they are made if they are not there (default: runs)"
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help=where)
    return parser


def environment(name: str, seed: int, **settings: Any) -> Any:
    """An environment of gymnasium whose chance is that of the seed from its next reset on.

    Raises:
        Refused: gymnasium is not installed.
    """
    made = _gymnasium().make(name, **settings)
    made.reset(seed=seed)
    return made


def environments(name: str, count: int, seed: int) -> Any:
    """Copies of an environment that take their steps together; one that has ended begins anew with the next step.

    Raises:
        Refused: gymnasium is not installed.
    """
    made = _gymnasium().make_vec(name, num_envs=count)
    made.reset(seed=seed)
    return made


def threshold(name: str) -> float:
    """The mean return from which on gymnasium calls an environment solved."""
    return float(_gymnasium().spec(name).reward_threshold)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError:
        remedy = ".venv/bin/python -m pip install -c constraints.txt -e '.[learn]' installs it."
        raise Refused.because("gymnasium", "it is not installed, and the environments are its", remedy) from None
    return gymnasium


def running_mean(values: Sequence[float] | NDArray[np.float64], window: int) -> list[float]:
    """The mean of each value and the `window - 1` before it, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(1, len(sums)) - window, 0)
    return list((sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first))


def write_answers(path: Path, prompts: Sequence[str], answers: Mapping[str, Sequence[str]]) -> None:
    """A page to read: each prompt with what each model answers, `answers` holds one for each prompt by model."""
    width = max(map(len, answers))
    texts = []
    for index, prompt in enumerate(prompts):
        lines = [f"  {name:{width}}  {own[index]}" for name, own in answers.items()]
        texts.append("\n".join([prompt, *lines, ""]))
    write_atomically(path, "\n".join(texts))


def report(out: Path, picture: str, results: Mapping[str, Any], *shown: Table | str) -> None:
    """Write what a lesson has found, with the seconds of processor time it took, and show it."""
    seconds = time.process_time()
    write_json(out / RESULTS, {**results, "cpu_seconds": round(seconds, 1)})
    show(*shown, f"Results: {out}/{RESULTS}, {out}/{picture}")
    say(f"{seconds:.0f} s of one core")
