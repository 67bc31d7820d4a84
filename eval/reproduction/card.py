"""The model card of a study's best model, and which model that is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.rendering import render
from eval.reproduction.bundle import BUNDLE, FIGURES
from eval.reproduction.figures import FORMAT
from eval.reproduction.reading import CONFIG, MAIN, RUN, TRAININGS, place_of
from eval.reproduction.sections import Figures, is_rehearsed, labels_of, was_run, why_not_compared
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.escaping import code_fence
from r1_aqa_repro.common.files import read_json
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.run.model_card import base_line, licence_of, loading, shown_settings

CARD_FOLDER = "card"  # inside the folder of a study
ARCHITECTURE = "Qwen2AudioForConditionalGeneration"  # of every model that is asked about clips
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_EXAMPLE = AudioQuestion(
    "example", Path("clip.wav"), "What makes this sound?", ("a dog", "a cat", "a car", "rain"), None
)
_REMEDY = "Let the study make its bundle again."


@dataclass(frozen=True)
class Chosen:
    """A model of a study.

    Attributes:
        arm, seed: whose it is, `label` for people.
        checkpoint: name of its folder.
        held_out: accuracy by which it was chosen, in percent; None if that is not known.
    """

    arm: str
    seed: str
    label: str
    checkpoint: str
    held_out: float | None

    def folder(self, out: Path) -> Path:
        """Where its files are in the folder of its study."""
        return out / "arms" / place_of(self.arm, self.seed) / "run" / self.checkpoint


def read_figures(out: Path) -> dict[str, Any]:
    """The figures in the bundle of a study.

    Raises:
        Refused: there are none, or of another format.
    """
    path = out / BUNDLE / FIGURES
    figures = read_json(path, _REMEDY)
    if figures.get("format") != FORMAT:
        raise Refused.because(str(path), f"its format is {figures.get('format')!r}, not {FORMAT}", _REMEDY)
    return figures


def chosen_of(figures: Figures) -> Chosen | None:
    """Of the main arm the seed whose chosen checkpoint is best on held-out questions, of equals the first; None if no
    seed of it has one. The test has no part in this choice."""
    found = [
        Chosen(row["row"], seed, row["label"], one["chosen"], one["held_out"])
        for row in figures["table"]
        if row["role"] == MAIN and was_run(row)
        for seed, one in row["seeds"].items()
        if was_run(one) and one["chosen"]
    ]
    return max(found, key=lambda one: -1.0 if one.held_out is None else one.held_out, default=None)


def card_of(out: Path, figures: Figures, chosen: Chosen) -> str:
    """The content of the card.

    Raises:
        Refused: the training's records in the bundle are missing or damaged.
    """
    training = out / BUNDLE / TRAININGS / place_of(chosen.arm, chosen.seed)
    parts = read_yaml(training / CONFIG)
    config = {key: value for part in parts.values() for key, value in part.items()}
    if missing := [key for key in ("model_name_or_path", "use_peft", "prompt_style") if key not in config]:
        raise Refused.because(str(training / CONFIG), f"it does not say {', '.join(missing)}", _REMEDY)
    record = read_json(training / RUN, _REMEDY)
    base = str(config["model_name_or_path"])
    on_hub = not Path(base).is_dir() and _HUB_ID.fullmatch(base) is not None
    licence = licence_of(base, asks_hub=False)
    rows = {row["row"]: row for row in figures["table"]}
    settings, prompt = shown_settings(config), prompt_text(_EXAMPLE, config["prompt_style"])
    return render(
        "reproduction_card.md.j2",
        rehearsed=is_rehearsed(figures),
        comparable=not why_not_compared(figures),
        figures=figures,
        labels=labels_of(figures),
        rows=figures["table"],
        own=rows[chosen.arm],
        seed=rows[chosen.arm]["seeds"][chosen.seed],
        chosen=chosen,
        findings=figures["findings"],
        # who reads the card does not have the folders of this machine
        base=base if on_hub else Path(base).name,
        base_line=base_line(base) if on_hub else "",
        licence=licence,
        licence_line="" if licence is None else f"license: {json.dumps(licence)}\n",
        adapter=bool(config["use_peft"]),
        config=config,
        record=record,
        data={Path(path).name: digest for path, digest in record["data"].items()},
        settings=settings,
        fence=code_fence(settings),
        prompt=prompt,
        prompt_fence=code_fence(prompt),
        loading=loading(ARCHITECTURE, bool(config["use_peft"]), base if on_hub else Path(base).name),
    )
