"""The results of a small study for people: tables on the terminal and in Markdown, a page, a picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report.rendering import asset, render
from r1_aqa_repro.common.files import write_atomically
from scripts.shown import plotted
from scripts.study.seed import MODELS, WARM_START
from scripts.study.settings import ARMS

Rows = dict[str, dict[str, str]]
NAMES = {WARM_START: "warm start", "sft": "+ SFT", "grpo": "+ GRPO", "grpo_think": "+ GRPO, think"}
PICTURE = "accuracy.png"
# Recordings that the interval of a difference takes. In simulations (a recording's questions 2 to 8, its gain of its
# own) it held the truth in 92 to 96 % of cases from 10 on, and in 57 to 92 % from 3 to 8.
ENOUGH = 10


def tables(results: Mapping[str, Any], complete: bool = True) -> dict[str, Rows]:
    """Rows of figures by title and name; all rows of a table have the same columns.

    Args:
        complete: with the table that no terminal is wide enough for.
    """
    models = results["models"]
    families = list(models[WARM_START]["held_out"]["by_family"])
    of_pair = {f"{NAMES[one['after']]} minus {NAMES[one['before']]}": one for one in results["differences"]}

    def by_family(asked: str) -> Rows:
        return {
            family: {NAMES[name]: _percent(models[name][asked]["by_family"][family]) for name in MODELS}
            for family in families
        }

    shown = {
        "Right, % (95 % interval)": {NAMES[name]: _model_row(models[name]) for name in MODELS},
        "Difference on the same questions, points (95 % interval)": {
            name: _difference_row(one) for name, one in of_pair.items()
        },
        "Right by family, %": by_family("held_out"),
        "Right by family without audio, %": by_family("without_audio"),
        "Training, mean over seeds": {
            NAMES[name]: _training_row(models[name], models["grpo"]["flops"]) for name in MODELS
        },
    }
    if complete:
        shown["Difference by family, points (95 % interval)"] = {
            name: {family: _points(one["by_family"][family]) for family in families} for name, one in of_pair.items()
        }
    return shown


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What has to be known beside the tables."""
    seeds, asked, check = results["seeds"], results["models"][WARM_START]["held_out"], results["blind_check"]
    broken = "; ".join(
        f"{NAMES[one['model']]}, {one['family']} {100 * one['accuracy']:.1f} % (chance {100 * one['chance']:.1f} %)"
        for one in check["exceptions"]
    )
    return [
        f"{asked['n']} questions about {asked['recordings']} held-out recordings, half `{results['half']}`; "
        f"seeds: {', '.join(map(str, seeds))}; chance {100 * results['chance']:.1f} %.",
        "Intervals take a recording, over all seeds, for what is independent; ±: standard deviation over seeds. A "
        f"difference on fewer than {ENOUGH} recordings has none: it would be too narrow.",
        f"Without audio within {100 * check['margin']:.0f} points of chance in every family: "
        + ("held." if check["held"] else f"NOT held: {broken}."),
    ]


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.md, results.html and the picture to the folder of a study."""
    plot(folder / PICTURE, results)
    values = {
        "tables": tables(results),
        "sentences": sentences(results),
        "completions": results["completions"],
        "names": NAMES,
    }
    write_atomically(folder / "results.md", render("study.md.j2", **values, picture=PICTURE))
    picture = f"data:image/png;base64,{base64.b64encode((folder / PICTURE).read_bytes()).decode()}"
    page = render("study.html.j2", **values, picture=picture, css=asset("report.css"))
    write_atomically(folder / "results.html", page)


def plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw accuracy against training FLOPs, the warm start's among them: each seed thin, the mean bold."""
    models, start = results["models"], results["models"][WARM_START]
    with plotted(path, "held-out recordings, % right") as (axis,):
        for number, arm in enumerate(ARMS):
            colour, ends = f"C{number}", models[arm]
            for seed, before in start["held_out"]["by_seed"].items():
                flops = start["flops_by_seed"][seed]
                axis.plot(
                    [flops / 1e12, (flops + ends["flops_by_seed"][seed]) / 1e12],
                    [100 * before, 100 * ends["held_out"]["by_seed"][seed]],
                    color=colour,
                    linewidth=0.6,
                    alpha=0.6,
                )
            axis.plot(
                [start["flops"] / 1e12, (start["flops"] + ends["flops"]) / 1e12],
                [100 * start["held_out"]["mean"], 100 * ends["held_out"]["mean"]],
                color=colour,
                linewidth=2.2,
                marker="o",
                label=NAMES[arm],
            )
        axis.axhline(100 * results["chance"], color="grey", linestyle=":", label="chance")
        axis.set(xlabel="training TFLOP, warm start included")


def _model_row(model: Mapping[str, Any]) -> dict[str, str]:
    sources = model["held_out_sources"]
    return {
        "held out": _with_interval(model["held_out"]),
        "± seeds": _spread(model["held_out"]),
        "permuted": _percent(model["permuted"]),
        "blind": _percent(model["without_audio"]),
        "other sources": _with_interval(sources) if sources else "",
        "format": f"{100 * model['format_rate']:.1f}",
    }


def _training_row(model: Mapping[str, Any], flops_of_grpo: float) -> dict[str, str]:
    return {
        "steps": f"{model['steps']:.0f}",
        "TFLOP": f"{model['flops'] / 1e12:.1f}",
        "of these the pilot": f"{model['pilot'] / 1e12:.1f}",
        "share of GRPO's": f"{model['flops'] / flops_of_grpo:.2f}",
        "seconds": f"{model['seconds']:.0f}",
    }


def _difference_row(one: Mapping[str, Any]) -> dict[str, str]:
    sources = one.get("held_out_sources")
    return {
        "held out": _points(one["held_out"]),
        "± seeds": _spread(one["held_out"]),
        "other sources": _points(sources) if sources else "",
    }


def _percent(block: Mapping[str, Any] | None) -> str:
    return "" if block is None else f"{100 * block['accuracy']:.1f}"


def _points(block: Mapping[str, Any]) -> str:
    (low, high), recordings = block["ci95"], block["recordings"]
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}" if recordings >= ENOUGH else f"recordings: {recordings}"
    return f"{100 * block['accuracy']:+.1f} ({interval})"


def _with_interval(block: Mapping[str, Any]) -> str:
    low, high = block["ci95"]
    return f"{_percent(block)} ({100 * low:.0f} to {100 * high:.0f})"


def _spread(block: Mapping[str, Any]) -> str:
    return "" if block["sd"] is None else f"{100 * block['sd']:.1f}"
