"""Results of the embedded run: what it was, what it became, and whether it listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from eval.scores import read_verdicts
from r1_aqa_repro.common.intervals import paired_gain

Scores = Mapping[str, Any]  # the content of a scores.json


def results(
    before: Scores, after: Scores, blind: Scores, verdicts: tuple[Path, Path], seed: int, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The content of results.json: fractions 0-1, intervals at 95 %.

    Args:
        before, after, blind: scores of the warm start, of the end, and of the end given silence.
        verdicts: the verdicts.jsonl of the warm start and of the end, for the paired gain.
        seed: of the whole run.
        seconds: by stage.
    """
    first, last = (
        [verdict["official"] for verdict in read_verdicts(path).values()] for path in verdicts
    )  # the same questions in the same order
    gain, low, high = paired_gain(first, last)
    chance = after["baselines"]["chance"] / 100
    return {
        "chance": {"accuracy": chance, "ci95": [chance, chance], "n": after["n"]},
        "before": _share(before["total"]) | {"format_rate": before["format_rate"], "by_task": _by_task(before)},
        "after": _share(after["total"]) | {"format_rate": after["format_rate"], "by_task": _by_task(after)},
        "gain": {"accuracy": gain, "ci95": [low, high]},
        "blind_after": _share(blind["total"]),
        "controls": {"always_first": {"accuracy": after["baselines"]["always_first"] / 100, "n": after["n"]}},
        "seconds": dict(seconds),
        "seed": seed,
    }


def print_results(summary: Mapping[str, Any], before: Scores, after: Scores, folder: Path) -> None:
    """The table at the end of the run: accuracy by task and family, before and after."""
    table = Table(title="embedded set, not MMAU: no comparison with 64.5", title_style="bold")
    for name, justify in (("", "left"), ("n", "right"), ("before", "right"), ("after", "right"), ("gain", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for group in ("task", "difficulty", "sub_category"):
        for label, tally in after[group].items():
            old = before[group][label]["accuracy"]
            change = f"{tally['accuracy'] - old:+.1f}"
            table.add_row(label, str(tally["n"]), f"{old:.1f}", f"{tally['accuracy']:.1f}", change)
        table.add_section()
    total = after["total"]
    low, high = summary["gain"]["ci95"]
    table.add_row(
        "total",
        str(total["n"]),
        f"{before['total']['accuracy']:.1f}",
        f"{total['accuracy']:.1f}",
        f"{100 * summary['gain']['accuracy']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        style="bold",
    )
    console = Console(width=max(80, Console().width))
    console.print(table)
    blind = summary["blind_after"]["accuracy"]
    console.print(
        "Accuracy in percent on held-out questions, greedy decoding. "
        f"Chance {100 * summary['chance']['accuracy']:.1f}; "
        f"the trained model given silence {100 * blind:.1f}; format {100 * summary['after']['format_rate']:.1f} %.",
        highlight=False,
    )
    console.print(
        f"Results: {folder}/results.json, {folder}/learning_curve.png; model: {folder}/final", highlight=False
    )


def plot_learning_curve(path: Path, log_history: list[dict[str, float]], points: list[dict[str, Any]]) -> None:
    """Draw reward, held-out accuracy by task, reward std, entropy and KL to the start over steps.

    Args:
        path: the PNG to write.
        log_history: the trainer's log, one entry a step.
        points: evaluated checkpoints: `step`, `scores` (content of scores.json), `kl`.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 5, figsize=(20, 3.6), layout="constrained")
    for axis, key, title in (
        (axes[0], "reward", "reward (accuracy + format)"),
        (axes[2], "reward_std", "reward std"),
        (axes[3], "entropy", "entropy (nats a token)"),
    ):
        logged = [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
        axis.plot(*zip(*logged, strict=True), linewidth=0.8)
        axis.set_title(title)
    steps = [point["step"] for point in points]
    for task in points[0]["scores"]["task"]:
        axes[1].plot(steps, [point["scores"]["task"][task]["accuracy"] for point in points], marker=".", label=task)
    axes[1].plot(steps, [point["scores"]["total"]["accuracy"] for point in points], color="black", label="total")
    axes[1].axhline(points[0]["scores"]["baselines"]["chance"], color="grey", linestyle=":", label="chance")
    axes[1].set_title(f"held-out accuracy, % of {points[0]['scores']['n']}")
    axes[1].legend(fontsize="small")
    axes[4].plot(steps, [point["kl"] for point in points], marker=".")
    axes[4].set_title("KL to the start (nats a token)")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _share(tally: Mapping[str, Any]) -> dict[str, Any]:
    """A tally in percent as fractions."""
    return {"accuracy": tally["accuracy"] / 100, "ci95": [bound / 100 for bound in tally["ci95"]], "n": tally["n"]}


def _by_task(scores: Scores) -> dict[str, Any]:
    return {task: _share(tally) for task, tally in scores["task"].items()}
