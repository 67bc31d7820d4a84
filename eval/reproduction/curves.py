"""The curves of a study's trainings, as one picture: reward, KL, length and held-out accuracy of every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.escaping import one_line
from r1_aqa_repro.common.files import whole_file

PANELS = {
    "reward": "mean reward of a completion",
    "kl": "KL to the start, nats a token",
    "length": "tokens of a completion",
    "held_out": "held-out accuracy, %",
}
_LONGEST = 40  # characters of a label
_STYLES = ("-", "--", "-.", ":")  # of seeds, in turn
_FEW = 30  # points that each get a mark


def write_curves(path: Path, curves: Mapping[str, Any], labels: Mapping[str, str], heading: str = "") -> None:
    """Draw them as SVG: a colour and a mark an arm, a line a seed. The same figures give the same bytes.

    Args:
        curves: as in figures.json: by arm and seed, of each of `PANELS` pairs of step and value. What is no list of
            them, because it was not run or not logged, has no line; a panel without any says so.
        labels: of the arms that are drawn, in their order.
        heading: above the panels; may be empty.
    """
    import matplotlib  # slow to import, and needed here only
    from matplotlib.figure import Figure

    colours, markers = matplotlib.color_sequences["petroff10"], "os^Dv*Pxphd"
    with matplotlib.rc_context({"svg.hashsalt": "curves", "text.parse_math": False}):  # a dollar sign is a dollar sign
        figure = Figure(figsize=(9.6, 7.2), layout="constrained")
        drawn: dict[str, Any] = {}
        for axis, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            axis.set(title=title, xlabel="optimizer step")
            axis.grid(alpha=0.3)
            for number, arm in enumerate(labels):
                for style, points in zip(cycle(_STYLES), lines_of(curves, arm, name).values(), strict=False):
                    steps, values = zip(*points, strict=True)
                    drawn[arm], *_ = axis.plot(
                        steps,
                        values,
                        linestyle=style,
                        linewidth=1.1,
                        marker=markers[number % len(markers)] if len(points) <= _FEW else "",
                        markersize=4,
                        color=colours[number % len(colours)],
                        alpha=0.8,
                    )
            if not axis.lines:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center")
        if heading:
            figure.suptitle(one_line(heading))
        names = [one_line(labels[arm])[:_LONGEST] for arm in drawn]
        figure.legend(drawn.values(), names, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        with whole_file(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def lines_of(curves: Mapping[str, Any], arm: str, name: str) -> dict[str, Sequence[Sequence[float]]]:
    """The curves `name` of an arm by seed, of those seeds that have any point."""
    by_seed = curves.get(arm, {})
    if not isinstance(by_seed, Mapping):
        return {}
    found = {seed: one.get(name) for seed, one in by_seed.items() if isinstance(one, Mapping)}
    return {seed: points for seed, points in found.items() if isinstance(points, list) and points}
