"""What an embedded text run shows at its end: a table of what it gained and the curves of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

_FIGURES = ("pair_accuracy", "true_reward")


def print_gain(summary: Mapping[str, Any], folder: Path) -> None:
    """The table of a results.json: what chance, the start, the end and the controls are worth, with intervals."""
    figure = next(name for name in _FIGURES if name in summary["after"])
    table = Table(title=f"{figure.replace('_', ' ')} on held-out data", title_style="bold")
    for column, justify in (("", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    rows = {name: summary[name] for name in ("chance", "before", "after")}
    for task, block in summary["after"].get("by_task", {}).items():
        rows[f"  {task}, before"] = summary["before"]["by_task"][task]
        rows[f"  {task}, after"] = block
    rows |= {f"control: {name.replace('_', ' ')}": block for name, block in summary.get("controls", {}).items()}
    if "gain" in summary:
        rows["gain"] = summary["gain"] | {"n": summary["after"]["n"]}
    for name, block in rows.items():
        low, high = block["ci95"]
        table.add_row(name, f"{block[figure]:.3f}", f"{low:.3f} to {high:.3f}", str(block["n"]))
    console = Console(width=max(80, Console().width))
    console.print(table)
    if "greedy" in summary["after"]:
        what = f"Answers sampled at temperature 1; greedy {summary['before']['greedy']:.3f} before and " + (
            f"{summary['after']['greedy']:.3f} after."
        )
        if "model_reward" in summary["after"]:
            before, after = (summary[when]["model_reward"] for when in ("before", "after"))
            what += f" The reward model's own mean score: {before:.2f} before and {after:.2f} after."
        console.print(what, highlight=False)
    console.print(
        f"Results: {folder}/results.json, {folder}/learning_curve.png; model: {folder}/final", highlight=False
    )


def plot_log(path: Path, log_history: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]]) -> None:
    """Draw logged figures over steps.

    Args:
        path: the PNG to write.
        log_history: the trainer's log.
        panels: the figures of each panel, by its title.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), layout="constrained", squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log_history if entry.get(name) is not None]
            axis.plot(*zip(*points, strict=True), linewidth=0.9, label=name)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
