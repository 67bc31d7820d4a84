"""Check the bundle of a study: every byte against those sealed, and every figure against the predictions.

    python -m eval.verify runs/reproduce_r1_aqa/bundle
    python -m eval.verify bundle --out checked

Every file is hashed, every prediction is scored again by the benchmark's own rule, and every figure of the report is
computed anew, without a GPU, a model or audio. A file that was changed, is missing or was added is named, and so is
every figure that moves: what it was, what it is, by how much. That a bundle agrees with itself does not show that it
was not made up: its authors publish the SHA-256 of bundle.json, which is printed here.

Exit codes: 0 all bytes and figures agree; 1 some differ; 2 refused: it is no bundle, or its figures cannot be computed
although every byte is as it was sealed; 130 interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import Options
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, Refused, command
from r1_aqa_repro.common.files import output_folder, read_json, sha256_of

# Figures within this of each other agree. Sums of a few thousand numbers below 100, taken in another order on another
# processor, differ by 1e-11 at most; one answer more or less moves an accuracy by 100 / n, at least 1e-3.
TOLERANCE = 1e-9
SHOWN = 40  # figures that move which the terminal shows

_DEEPEST = 64
_KEYS = ("row", "id", "name")  # by which a figure calls an entry of a list


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.out is not None and arguments.out.resolve().is_relative_to(arguments.bundle.resolve()):
        raise Refused.because("--out", "it lies in the bundle, which it would change", "Choose another folder.")

    from eval.report.markdown import publish  # after the arguments: --help and mistakes are answered at once

    found = verify(arguments.bundle)
    publish(markdown(found), found, arguments.out, "verification")
    return EXIT_DONE if found["agrees"] else EXIT_FAILED


def verify(bundle: Path) -> dict[str, Any]:
    """The content of verification.json, which docs/evaluation.md describes.

    Raises:
        Refused: the folder is no bundle; or no byte differs and its figures cannot be computed.
    """
    from eval.reproduction.bundle import FIGURES, SEAL, changes_in, read_seal, versions
    from eval.reproduction.figures import compute

    seal = read_seal(bundle)
    files = changes_in(bundle, seal["files"])
    bytes_agree = not any(files.values())
    figures: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        figures = compared(read_json(bundle / FIGURES, "Fetch the bundle again."), compute(bundle))
    except Refused as refusal:
        if bytes_agree:
            raise
        problems = [str(problem) for problem in refusal.problems]
    return {
        "bundle": str(bundle),
        "name": seal.get("name"),
        "rehearsed": seal.get("rehearsed"),
        "sha256": sha256_of(bundle / SEAL),
        "computed_with": {"sealed": seal.get("computed_with"), "here": versions()},
        "agrees": bytes_agree and not problems and all(one["agrees"] for one in figures),
        "files": {"n": len(seal["files"]), **files},
        "not_recomputed": problems,
        "figures": figures,
    }


def compared(sealed: Mapping[str, Any], recomputed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure: its name (`figure`), `sealed`, `recomputed`, `difference` (of numbers; else None) and `agrees`.

    A list of numbers, such as an interval or a point of a curve, is one figure.

    Args:
        sealed, recomputed: contents of two figures.json. What only one of them has is None in the other.
    """
    before, now = dict(_leaves(sealed)), dict(_leaves(recomputed))
    return [
        {
            "figure": name,
            "sealed": before.get(name),
            "recomputed": now.get(name),
            "difference": _difference(before.get(name), now.get(name)),
            "agrees": name in before and name in now and _agree(before[name], now[name]),
        }
        for name in dict.fromkeys([*before, *now])
    ]


def markdown(found: Mapping[str, Any]) -> str:
    """The content of verification.json for people."""
    from eval.report.rendering import render

    figures = found["figures"]
    sections: dict[str, dict[str, int]] = {}
    for one in figures:
        name, _, below = one["figure"].partition("/")
        section = sections.setdefault(name if below else "study", {"figures": 0, "moved": 0})
        section["figures"] += 1
        section["moved"] += not one["agrees"]
    moved = [one for one in figures if not one["agrees"]]
    return render(
        "verification.md.j2",
        **found,
        sections=sections,
        moved=moved,
        verdicts=[one for one in moved if one["figure"].endswith("/verdict")],
        headline=[one for one in figures if _is_headline(one["figure"])],
        shown=SHOWN,
        as_text=_as_text,
    )


def _is_headline(name: str) -> bool:
    """Whether it is a mean of the table, or the difference or verdict of a finding."""
    parts = name.split("/")
    return len(parts) == 3 and (parts[0], parts[2]) in {
        ("table", "mean"),
        ("findings", "difference"),
        ("findings", "verdict"),
    }


def _leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Name and value of every figure.

    Raises:
        Refused: they are nested deeper than figures are.
    """
    if depth > _DEEPEST:
        raise Refused.because(name[:80], "figures are nested too deeply", "Fetch the bundle again.")
    below = f"{name}/" if name else ""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{below}{key}", depth + 1)
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for key, one in zip(_names(value), value, strict=True):
            yield from _leaves(one, f"{below}{key}", depth + 1)
    else:
        yield name, value


def _names(entries: Sequence[Any]) -> list[str]:
    """What the entries of a list are called: by their own names if these tell them apart, else by their places."""
    for key in _KEYS:
        names = [
            " ".join(str(one[part]) for part in (key, "evaluation") if part in one)
            for one in entries
            if isinstance(one, dict) and key in one
        ]
        if len(names) == len(set(names)) == len(entries):
            return names
    return [str(place) for place in range(len(entries))]


def _agree(one: Any, other: Any) -> bool:
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


def _difference(before: Any, now: Any) -> Any:
    """Of two numbers, or of two lists of as many; None of anything else."""
    if _is_number(before) and _is_number(now):
        return now - before
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        both = [_difference(one, other) for one, other in zip(before, now, strict=True)]
        return None if None in both else both
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: Any, form: str = ".4g") -> str:
    """A figure for people: numbers of a list side by side, nothing for what is not there."""
    if isinstance(value, list):
        return " to ".join(_as_text(one, form) for one in value)
    if _is_number(value):
        return format(value, form)
    return "-" if value is None else str(value)


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.verify")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with bundle.json")
    where = "where to write verification.json and verification.md"
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=where)
    return parser


if __name__ == "__main__":
    main()
