"""Tables on the terminal and pictures of curves; without the libraries that models need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from r1_aqa_repro.common.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(title: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Rows of figures by name; all have the same columns, by name too."""
    columns = next(iter(rows.values()))
    shown = Table("", *(Column(name, justify="right") for name in columns), title=title, title_style="bold")
    for name, row in rows.items():
        shown.add_row(name, *row.values())
    return shown


def show(*shown: Table | str) -> None:
    """Print tables and sentences, in 100 columns at least."""
    console = Console(width=max(100, Console().width))
    for each in shown:
        console.print(each, highlight=False)


@contextmanager
def plotted(path: Path, *titles: str) -> Iterator[list[Axes]]:
    """A PNG with one panel a title, to be drawn into; panels with labels get a legend."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.2 * len(titles), 3.7), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    yield axes
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
