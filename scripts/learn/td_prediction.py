"""TD(0): learning how good states are from experience, without a model and without waiting for the end.

    python scripts/learn/td_prediction.py --out runs/learn/td_prediction [--seed N]

The random walk of Sutton and Barto, example 6.2: five states in a row, each step goes left or right by chance, the
right end pays 1 and the left one 0. The value of state i is i / 6. TD(0) corrects each value by the next one, Monte
Carlo by what the episode has paid in the end; both learn from the same episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.intervals import mean_interval
from scripts.learn.lesson import options, report
from scripts.shown import plotted, table

STATES = 5
TRUE = np.arange(1, STATES + 1) / (STATES + 1)
GUESS = 0.5  # of every value, to begin with
EPISODES, RUNS = 100, 200
EARLY = 20  # episodes
STEP_SIZES = {"TD(0)": (0.05, 0.1, 0.15), "Monte Carlo": (0.01, 0.02, 0.04)}
LOOKS = (0, 1, 10, 100)  # episodes after which the picture shows the values of one run
PICTURE = "error.png"

Array = NDArray[np.float64]
Walk = list[tuple[int, float, int | None]]  # of each step: the state, the reward, the next state, None at the end


def walk(rng: np.random.Generator) -> Walk:
    """One episode from the middle."""
    steps: Walk = []
    state: int | None = STATES // 2
    while state is not None:
        after = state + (1 if rng.random() < 0.5 else -1)
        inside = 0 <= after < STATES
        steps.append((state, float(after == STATES), after if inside else None))
        state = after if inside else None
    return steps


def td_0(values: list[float], episode: Walk, alpha: float, gamma: float = 1.0) -> None:
    """Correct `values` after each step by the TD error delta."""
    for state, reward, after in episode:
        next_value = 0.0 if after is None else values[after]
        delta = reward + gamma * next_value - values[state]
        values[state] += alpha * delta


def monte_carlo(values: list[float], episode: Walk, alpha: float, gamma: float = 1.0) -> None:
    """Correct `values` after the episode by the return from each visit on."""
    total, returns = 0.0, []
    for state, reward, _ in reversed(episode):
        total = reward + gamma * total
        returns.append((state, total))
    for state, each in reversed(returns):
        values[state] += alpha * (each - values[state])


METHODS: dict[str, Callable[[list[float], Walk, float], None]] = {"TD(0)": td_0, "Monte Carlo": monte_carlo}


def errors_of(method: str, alpha: float, runs: int, seed: int) -> Array:
    """The root mean square error of the values after each episode, the guess first: [runs, 1 + EPISODES]."""
    errors = np.empty((runs, EPISODES + 1))
    for run in range(runs):
        rng, values = np.random.default_rng([seed, run]), [GUESS] * STATES
        errors[run, 0] = np.sqrt(np.mean((values - TRUE) ** 2))
        for episode in range(EPISODES):
            METHODS[method](values, walk(rng), alpha)
            errors[run, episode + 1] = np.sqrt(np.mean((values - TRUE) ** 2))
    return errors


@command
def main(argv: list[str]) -> int:
    """Learn and report. Returns the exit code."""
    own = options(__doc__).parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in STEP_SIZES}
    curves: dict[str, Array] = {}
    rows = {}
    for method, alphas in STEP_SIZES.items():
        for alpha in alphas:
            errors = errors_of(method, alpha, RUNS, own.seed)
            (early, _, _), (late, low, high) = (mean_interval(list(errors[:, after])) for after in (EARLY, EPISODES))
            found[method].append({"alpha": alpha, "early": early, "error": late, "ci95": [low, high]})
            name = f"{method}, alpha {alpha:.2f}"
            curves[name] = errors.mean(axis=0)
            rows[name] = {
                f"after {EARLY} episodes": f"{early:.3f}",
                f"after {EPISODES}": f"{late:.3f}",
                "95 % interval": f"{low:.3f} to {high:.3f}",
            }
    rng, values, looks = np.random.default_rng([own.seed, 0]), [GUESS] * STATES, {0: [GUESS] * STATES}
    for episode in range(1, EPISODES + 1):
        td_0(values, walk(rng), 0.1)
        if episode in LOOKS:
            looks[episode] = list(values)
    draw(own.out / PICTURE, looks, curves)
    start = float(np.sqrt(np.mean((GUESS - TRUE) ** 2)))
    sentence = f"Root mean square over the states, mean of {RUNS} runs; {start:.3f} before the first episode."
    results = {"seed": own.seed, "runs": RUNS, "episodes": EPISODES, "before": start, "methods": found}
    report(own.out, PICTURE, results, table("error of the values of a random walk", rows), sentence)
    return EXIT_DONE


def draw(path: Path, looks: Mapping[int, list[float]], curves: Mapping[str, Array]) -> None:
    """The values of one run as they are learned, and the error of each method over the episodes."""
    with plotted(path, "TD(0), alpha 0.1, one run", "error of the values") as (value, error):
        places = np.arange(1, STATES + 1)
        for episodes, values in looks.items():
            value.plot(places, values, ".-", label=f"after {episodes} episodes")
        value.plot(places, TRUE, "k--", label="truth")
        value.set(xlabel="state", ylabel="V", xticks=places)
        for name, curve in curves.items():
            error.plot(curve, "-" if name.startswith("TD") else "--", label=name)
        error.set(xlabel="episode", ylabel="root mean square error")


if __name__ == "__main__":
    main()
