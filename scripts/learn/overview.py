"""The methods of all lessons on one map, with what each of them was measured to do.

    python scripts/learn/overview.py --out runs/learn/overview [--runs DIR]

Three questions place a method. Does it learn or know what the world does (model-based)? Is what it learns values, a
policy, or both? Must its data be of the policy it learns about (on-policy)? Figures come from the results.json of the
other lessons in the folder `runs`; a lesson that has not been run leaves a dash.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import output_folder, read_json
from scripts.learn.lesson import RESULTS, report
from scripts.shown import plotted, table

PICTURE = "map.png"
VALUES, BOTH, POLICY = "values", "both", "policy"
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a method is on the map, and which figure of which lesson tells what it has done."""

    model: bool  # model-based
    learns: str
    on_policy: bool | None  # None: nothing is sampled
    lesson: str | None = None  # None: in words only
    figure: Callable[[Found], str] = lambda found: ""


def _return(method: str) -> Callable[[Found], str]:
    return lambda found: f"CartPole {found['methods'][method]['return']:.0f}"


PLACES = {
    "value iteration": Place(True, VALUES, None, "dynamic_programming",
        lambda found: f"FrozenLake {found['played']['share']:.3f}"),
    "TD(0)": Place(False, VALUES, True, "td_prediction",
        lambda found: f"error {found['methods']['TD(0)'][0]['error']:.3f}"),
    "SARSA": Place(False, VALUES, True, "cliff", lambda found: f"cliff {found['methods']['SARSA']['return']:.0f}"),
    "Q-learning": Place(False, VALUES, False, "cliff",
        lambda found: f"cliff {found['methods']['Q-learning']['return']:.0f}"),
    "Dyna-Q": Place(True, VALUES, False, "dyna_q",
        lambda found: f"{found['planning']['50 planning steps']['real_steps']:.0f} real steps"),
    "DQN": Place(False, VALUES, False, "dqn", lambda found: f"CartPole {found['dqn']['return']:.0f}"),
    "REINFORCE": Place(False, POLICY, True, "policy_gradients", _return("REINFORCE")),
    "with baseline": Place(False, BOTH, True, "policy_gradients", _return("with baseline")),
    "actor-critic": Place(False, BOTH, True, "policy_gradients", _return("actor-critic")),
    "PPO": Place(False, BOTH, True, "policy_gradients", _return("PPO")),
    "TRPO": Place(False, BOTH, True),
    "SAC": Place(False, BOTH, False),
}  # fmt: skip
NOTHING, WORDS = "-", "in words"


def figures(runs: Path) -> dict[str, str]:
    """What each method was measured to do, by the results of the lessons in a folder.

    Raises:
        Refused: a results.json cannot be read, or is of something else.
    """
    return {name: _figure(place, runs) for name, place in PLACES.items()}


def _figure(place: Place, runs: Path) -> str:
    if place.lesson is None:
        return WORDS
    file, remedy = runs / place.lesson / RESULTS, f"Run scripts/learn/{place.lesson}.py again."
    if not file.exists():
        return NOTHING
    try:
        return place.figure(read_json(file, remedy))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Refused.because(str(file), f"it has no figure of this lesson ({error!r})", remedy) from None


@command
def main(argv: list[str]) -> int:
    """Gather, draw and report. Returns the exit code."""
    parser = Options(__doc__)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="where to write")
    where = "folder of the lessons' folders (default: runs/learn)"
    parser.add_argument("--runs", type=Path, default=Path("runs/learn"), metavar="DIR", help=where)
    own = parser.parse_args(argv)
    measured = figures(own.runs)
    draw(own.out / PICTURE, measured)
    data = {None: "none: it computes", True: "on-policy", False: "off-policy"}
    rows = {
        name: {
            "model": "based" if place.model else "free",
            "learns": place.learns,
            "data": data[place.on_policy],
            "measured": measured[name],
        }
        for name, place in PLACES.items()
    }
    report(own.out, PICTURE, {"methods": rows}, table("the map", rows))
    return EXIT_DONE


def draw(path: Path, measured: Mapping[str, str]) -> None:
    """The methods from value- to policy-based, on-policy ones above; hollow: in words only; squares: model-based."""
    columns, height = {VALUES: 0, BOTH: 1, POLICY: 2}, {True: 1.0, None: 0.5, False: 0.0}
    with plotted(path, "on-policy above, off-policy below", "model-based: squares; hollow: in words") as axes:
        for axis, wanted in zip(axes, ((VALUES,), (BOTH, POLICY)), strict=True):
            counts: dict[Any, int] = {}
            for name, place in PLACES.items():
                if place.learns not in wanted:
                    continue
                spot = (columns[place.learns], height[place.on_policy])
                nth = counts[spot] = counts.get(spot, -1) + 1
                at = (spot[0], spot[1] - 0.1 * nth)
                axis.plot(
                    *at, "s" if place.model else "o", color="C0", fillstyle="none" if place.lesson is None else None
                )
                axis.annotate(f"{name}: {measured[name]}", at, xytext=(8, -4), textcoords="offset points", fontsize=7)
            axis.set(xlabel="", ylabel="data", yticks=[0, 0.5, 1], yticklabels=["off", "none", "on"], ylim=(-0.4, 1.15))
            axis.set(xticks=[columns[each] for each in wanted], xticklabels=[f"learns {each}" for each in wanted])
            axis.set(xlim=(columns[wanted[0]] - 0.2, columns[wanted[-1]] + 1))
            axis.grid(visible=False)


if __name__ == "__main__":
    main()
