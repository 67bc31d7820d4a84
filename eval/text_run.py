"""One page of a text run: what it is worth, its curves, and what the model says before and after training.

    python -m eval.text_run runs/train_ppo_text

writes report.html to the run's folder, of what is there: results.json (by task, sampled and greedy), samples.json, the
trainer's log (reward, KL to the start, length, loss, ...) and the settings. It is one file that opens offline, with
neither scripts nor pictures of elsewhere; what a model or a data set wrote stands in it as text.

Exit codes: 0 done; 2 refused: no folder of a run, or damaged files in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.report.rendering import asset, render
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Refused, command
from r1_aqa_repro.common.files import read_json, write_atomically
from r1_aqa_repro.run.model_card import shown_settings
from r1_aqa_repro.run.samples import SAMPLES, parts_of, samples_of

REPORT = "report.html"
_AGAIN = "Give the folder of a run that is whole."
_FIGURES = {  # of results.json: what the page calls it
    "true_reward": "true reward",
    "pair_accuracy": "pairs ranked right",
    "accuracy": "accuracy",
}
# a panel each: its title, and the names that it shows of what was logged
_PANELS = {
    "Reward of a completion": r"reward|rewards/(?!chosen|rejected|margins|accuracies)[^/]+(/mean)?",
    "KL to the start, nats": r"kl(/.*)?",
    "Length of a completion, tokens": r"completions/mean_length",
    "Entropy of a token, nats": r"entropy",
    "Implicit rewards of DPO": r"rewards/(chosen|rejected)",
    "Log-probs of the answers": r"logps/(chosen|rejected)",
    "Share of pairs ranked right": r"accuracy|rewards/accuracies|eval_accuracy|eval_rewards/accuracies",
    "Margin": r"margin|rewards/margins",
    "Loss": r"loss|eval_loss",
}
_WIDTH, _HEIGHT = 300, 120  # units of a panel


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    say(str(write_text_page(_parser().parse_args(argv).run)))
    return EXIT_DONE


def write_text_page(run: Path) -> Path:
    """Write report.html to the folder of a text run; returns its path.

    Raises:
        Refused: nothing there is of a text run, or it is damaged.
    """
    results = read_json(run / "results.json", _AGAIN) if (run / "results.json").is_file() else {}
    log, config = trainer_log(run), run / "config.resolved.yaml"
    samples = results.get("samples") or samples_of(run)
    if not (results or log or samples):
        what = f"holds neither results.json nor {SAMPLES} nor a checkpoint: it is no folder of a text run"
        raise Refused.because(str(run), what, _AGAIN)
    try:
        parts = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        settings = {key: value for part in parts.values() for key, value in part.items()}
        page = render(
            "text_run.html.j2",
            name=run.absolute().name,
            figure=next((text for key, text in _FIGURES.items() if key in results.get("after", {})), None),
            rows=list(_rows(results)),
            panels=list(_panels(log or [])),
            samples=[(sample["prompt"], list(parts_of(sample))) for sample in samples],
            scored=bool(samples) and "chosen" in samples[0],
            settings=shown_settings(settings) if settings else None,
            base=settings.get("model_name_or_path"),
            data=settings.get("train_file"),
            css=asset("report.css"),
            size=(_WIDTH, _HEIGHT),
        )
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise Refused.because(str(run), f"its records are damaged ({error!r})", _AGAIN) from None
    write_atomically(run / REPORT, page)
    return run / REPORT


def trainer_log(run: Path) -> list[dict[str, Any]] | None:
    """What the trainer of a run logged, as the run's folder or its last checkpoint has it; None if neither does.

    Raises:
        Refused: the record is damaged.
    """
    states = [path for path in run.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdecimal()]
    last = max(states, key=lambda path: int(path.parent.name[11:]), default=None)
    if (run / "trainer_state.json").is_file():  # the checkpoints may be incomplete, as they are being deleted
        last = run / "trainer_state.json"
    if last is None:
        return None
    logged = read_json(last, _AGAIN).get("log_history")
    if not isinstance(logged, list):
        raise Refused.because(str(last), "it has no log_history", _AGAIN)
    return logged


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What results.json knows, a line each: chance, then all and each task before and after, then stages and controls.

    `sampled` and `greedy` are {accuracy, ci95} in per cent, as charts have them, or None.
    """
    if "after" not in results:
        return
    before, after = results["before"], results["after"]
    blocks = {"by chance": results["chance"], "before": before, "after": after}
    for task, block in after.get("by_task", {}).items():
        blocks |= {f"{task}, before": before["by_task"][task], f"{task}, after": block}
    blocks |= {f"stage: {name}": block for name, block in results.get("stages", {}).items()}
    blocks |= {f"control: {name.replace('_', ' ')}": block for name, block in results.get("controls", {}).items()}
    for name, block in blocks.items():
        value = next(block[key] for key in _FIGURES if key in block)
        greedy = _in_percent(block["greedy"], block.get("greedy_ci95")) if "greedy" in block else None
        sampled = _in_percent(value, block["ci95"])
        yield {"name": name, "n": block["n"], "sampled": sampled, "greedy": greedy, "ours": name in ("before", "after")}


def _in_percent(value: float, ci95: Sequence[float] | None) -> dict[str, Any]:
    return {"accuracy": 100 * value, "ci95": [100 * end for end in ci95 or (value, value)], "exact": ci95 is None}


@dataclass(frozen=True)
class _Panel:
    """A chart: its title, ends of its axes, and by name the last value and the path of each curve."""

    title: str
    steps: tuple[int, int]
    values: tuple[float, float]
    curves: dict[str, tuple[float, str]]


def _panels(log: Sequence[Mapping[str, Any]]) -> Iterator[_Panel]:
    """The panels that have a curve of two points or more."""
    names = dict.fromkeys(name for entry in log for name in entry)
    for title, shown in _PANELS.items():
        series = {name: _points(log, name) for name in names if re.fullmatch(shown, name)}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if not series:
            continue
        steps, values = zip(*(point for points in series.values() for point in points), strict=True)
        ends = (min(steps), max(steps)), (min(values), max(values))
        curves = {name: (points[-1][1], _path(points, *ends)) for name, points in series.items()}
        yield _Panel(title, *ends, curves)


def _points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    numbers = ((entry["step"], entry.get(name)) for entry in log)
    return [(step, float(value)) for step, value in numbers if value is not None and math.isfinite(value)]


def _path(points: Sequence[tuple[int, float]], steps: tuple[int, int], values: tuple[float, float]) -> str:
    """The `d` of an SVG path through the points, in a panel with these ends of its axes."""
    across, up = _WIDTH / max(1, steps[1] - steps[0]), _HEIGHT / ((values[1] - values[0]) or 1)
    places = (f"{across * (step - steps[0]):.1f} {_HEIGHT - up * (value - values[0]):.1f}" for step, value in points)
    return f"M{'L'.join(places)}"


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.text_run")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a text run")
    return parser


if __name__ == "__main__":
    main()
