"""The charts of reports: bars and curves with 95 % intervals, as SVG that stands in a page or in a file.

Colours are Okabe and Ito's, which the colour-blind can tell apart, on a light and on a dark ground; every series has a
marker or a line style of its own too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eval.targets import GUESSING

Tally = Mapping[str, Any]  # `correct`, `n`, `accuracy` and `ci95` in percent, as in scores.json

BLUE, GREEN, PURPLE, VERMILLION, ORANGE, SKY = "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#E69F00", "#56B4E9"
_SERIES = ((BLUE, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
_STYLES = ("--", "-.", ":", "-")  # not as many as the colours, so that 20 series differ
_INK = "#010203"  # becomes the text colour of the page
_LONGEST_LABEL = 36  # characters
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.size": 9.0,
}


def bars(tallies: Mapping[str, Tally], lines: Mapping[str, float], marks: Mapping[str, float] | None = None) -> Figure:
    """Horizontal bars of accuracies with their intervals and numbers of questions.

    Args:
        tallies: by label, from top to bottom.
        lines: vertical lines in percent, by label: a published figure, `GUESSING`.
        marks: published figures of single bars, by the bar's label.
    """
    labels = list(tallies)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(labels) + 0.2 * len(lines)), layout="constrained")
        axis = figure.add_subplot()
        for place, label in enumerate(labels):
            tally = tallies[label]
            accuracy, (low, high) = tally["accuracy"], tally["ci95"]
            axis.barh(place, accuracy, height=0.66, color=BLUE, alpha=0.7)
            axis.errorbar(accuracy, place, xerr=[[accuracy - low], [high - accuracy]], color=_INK, capsize=3, lw=1.2)
            axis.text(min(high, 100) + 1.5, place, f"{accuracy:.1f} (n {tally['n']})", va="center", fontsize=8)
        if marks:
            places = [labels.index(label) for label in marks]
            axis.plot([*marks.values()], places, "d", color=VERMILLION, markersize=7, label="published for that bar")
        for label, value in lines.items():
            axis.axvline(value, **_line(label))
        axis.set_yticks(range(len(labels)), [plain(label) for label in labels])
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xlim(0, 122)  # room for the numbers beside the bars
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("accuracy, %")
        _tidy(figure, legend=bool(lines))
    return figure


def curve(points: Sequence[Mapping[str, Any]], lines: Mapping[str, float]) -> Figure:
    """Accuracy over steps: in total with the band of its interval, and by task.

    Args:
        points: with `step`, `total` and `task`, by step.
        lines: as for `bars`.
    """
    steps = [point["step"] for point in points]
    tasks = list(dict.fromkeys(task for point in points for task in point["task"]))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axis = figure.add_subplot()
        low, high = zip(*(point["total"]["ci95"] for point in points), strict=True)
        axis.fill_between(steps, low, high, color=_INK, alpha=0.13, linewidth=0, label="95 % interval of the total")
        total = [point["total"]["accuracy"] for point in points]
        axis.plot(steps, total, color=_INK, marker="o", linewidth=2, label="total")
        for task, (color, marker), style in zip(tasks, cycle(_SERIES), cycle(_STYLES), strict=False):
            accuracies = [point["task"].get(task, {}).get("accuracy", float("nan")) for point in points]
            axis.plot(steps, accuracies, color=color, marker=marker, linestyle=style, linewidth=1.3, label=plain(task))
        for label, value in lines.items():
            axis.axhline(value, **_line(label))
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("accuracy, %")
        _tidy(figure, legend=True)
    return figure


def plain(text: str, longest: int = _LONGEST_LABEL) -> str:
    """One short line of printable characters: labels come from data sets."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def svg_file(figure: Figure) -> str:
    """The chart as a file of its own, on white, with the same bytes for the same figures."""
    return _drawn(figure, "file", "white")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The chart as an element of an HTML page; text takes the page's colour.

    Args:
        figure: the chart.
        name: of letters, unique in the page.
        description: for those who do not see it.
    """
    svg = _drawn(figure, name, "none").replace(_INK, "currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1, ...: the same in every chart
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(plain(description, 400))}" ', 1)


def _drawn(figure: Figure, name: str, ground: str) -> str:
    figure.set_facecolor(ground)
    for axis in figure.axes:
        axis.set_facecolor("none")
    drawn = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # only the widths are of matplotlib's font
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    _, element, content = drawn.getvalue().partition("<svg ")  # without the declarations of an XML file
    return element + content


def _line(label: str) -> dict[str, Any]:
    """How a reference line is drawn: guessing dotted, a published figure dashed."""
    color, style = (_INK, ":") if label == GUESSING else (VERMILLION, "--")
    return {"color": color, "linestyle": style, "linewidth": 1.3, "label": plain(label, 90)}


def _tidy(figure: Figure, legend: bool) -> None:
    (axis,) = figure.axes
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
