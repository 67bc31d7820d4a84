"""How far the margins of a reward model can be believed, against the curve of Bradley and Terry.

    python scripts/learn/margins.py --scores runs/train_reward_model/final/score/pairs_held_out/scores.jsonl \
        --out runs/learn/margins

Reads what `python -m r1_aqa_repro.score` has written. A margin m claims that the answer with the higher score is the
better one with probability sigmoid(|m|); here it is known how often it is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

import numpy as np
from numpy.typing import NDArray

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import output_folder
from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.records import BadRecord, no_records, read_records
from scripts.learn.lesson import report
from scripts.shown import plotted, table

PICTURE = "margins.png"
EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, np.inf)  # of the margins' size


def chosen_wins(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability that the chosen answer is the better one, by Bradley and Terry: sigmoid(margin)."""
    return 1 / (1 + np.exp(-margins))


def by_size(margins: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Of margins of about the same size, their median `margin`: how often the higher score is the chosen answer's, and
    how often the model claims it."""
    found = []
    for low, high in itertools.pairwise(EDGES):
        some = margins[(abs(margins) >= low) & (abs(margins) < high)]
        if len(some):
            right = (some > 0).sum() + (some == 0).sum() / 2
            found.append(
                {
                    "from": low,
                    "to": high if np.isfinite(high) else None,
                    "pairs": len(some),
                    "margin": float(np.median(abs(some))),
                    "claimed": float(chosen_wins(abs(some)).mean()),
                    "right": right / len(some),
                    "ci95": wilson(right, len(some)),
                }
            )
    return found


@command
def main(argv: list[str]) -> int:
    """Read, draw and report. Returns the exit code."""
    parser = Options(__doc__)
    parser.add_argument("--scores", type=Path, required=True, metavar="FILE", help="scores.jsonl of r1_aqa_repro.score")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="where to write")
    own = parser.parse_args(argv)
    margins = margins_of(own.scores)
    bins = by_size(margins)
    draw(own.out / PICTURE, margins, bins)
    rows = {
        f"{each['from']:g} to {each['to']:g}" if each["to"] else f"{each['from']:g} and more": {
            "pairs": str(each["pairs"]),
            "claimed": f"{each['claimed']:.3f}",
            "right": f"{each['right']:.3f}",
            "95 % interval": "{:.3f} to {:.3f}".format(*each["ci95"]),
        }
        for each in bins
    }
    said = "Claimed: the mean of sigmoid(margin). Right: how often the higher score is the better answer's."
    report(own.out, PICTURE, {"bins": bins}, table("margins by their size", rows), said)
    return EXIT_DONE


def margins_of(file: Path) -> NDArray[np.float64]:
    """The margins in a scores.jsonl.

    Raises:
        Refused: it cannot be read, or is of something else.
    """
    try:
        margins = [float(record["margin"]) for _, record in read_records(file)]
    except (KeyError, TypeError, ValueError, BadRecord) as error:
        what = f"it is no list of scores ({error!r})"
        raise Refused.because(str(file), what, "Run python -m r1_aqa_repro.score again.") from None
    if not margins:
        raise no_records(file)
    return np.asarray(margins)


def draw(path: Path, margins: NDArray[np.float64], bins: Sequence[dict[str, Any]]) -> None:
    """On the left the curve with what was found on it, on the right where the margins lie."""
    with plotted(path, "which of two is better", "margins of held-out pairs") as (curve, counts):
        line = np.linspace(-6, 6, 200)
        curve.plot(line, chosen_wins(line), label="Bradley-Terry: sigmoid(margin)")
        rights = np.array([each["right"] for each in bins])
        bars = abs(np.array([each["ci95"] for each in bins]).T - rights)
        found = np.minimum([each["margin"] for each in bins], 6.0)
        curve.errorbar(found, rights, bars, fmt="o", capsize=3, label="found, by size of the margin")
        curve.set(xlabel="margin, chosen less rejected", ylabel="probability that chosen is better")
        counts.hist(margins, bins=40, color="C0")
        counts.axvline(0, color="black", linewidth=1)
        counts.set(xlabel="margin, chosen less rejected", ylabel="pairs")


if __name__ == "__main__":
    main()
