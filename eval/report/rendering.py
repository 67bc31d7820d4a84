"""Fills in the templates of reports, which hold their text; what models and data sets wrote is escaped."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.evaluation import Evaluation
from eval.matcher import MATCHERS
from eval.targets import EMBEDDED_HEADING, GUESSING, against_published
from r1_aqa_repro.common.escaping import code, markdown
from r1_aqa_repro.common.files import as_json

_NOT_LISTENING = {
    "chance": GUESSING,
    "always_first": "always the first choice",
    "most_frequent": "always the choice that is the answer to most of the other questions",
}


def render(template: str, **values: Any) -> str:
    """Fill in a template of `templates/`.

    What a model or a data set wrote is escaped by itself in HTML; in Markdown the template has to pass it through `md`.

    Args:
        template: such as `report.md.j2`.
        values: what it names.
    """
    text = _environment().get_template(template).render(values)
    # in Markdown any number of empty lines is one, so that templates need not care for those of absent parts
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" if template.endswith(".md.j2") else text


def asset(name: str) -> str:
    """A file of `templates/` that stands in pages as it is, such as `report.css`."""
    return (resources.files("eval.report") / "templates" / name).read_text("utf-8")


def shared_values(evaluation: Evaluation) -> dict[str, Any]:
    """What the reports of an evaluation have in common, as values for their templates.

    `not_listening` holds those who do not listen, by what they do: `accuracy` and, if it is no exact figure, `ci95`.
    """
    scores, benchmark = evaluation.scores, evaluation.benchmark
    values = {
        "name": evaluation.name,
        "scores": scores,
        "settings": evaluation.settings,
        "paths": evaluation.paths,
        "shown_settings": {**evaluation.paths, **evaluation.settings},
        "embedded_heading": EMBEDDED_HEADING,
        "matchers": list(MATCHERS),
        "benchmark": benchmark,
        "groups": benchmark.groups,
        "not_heard": evaluation.not_heard,
        "left_out": evaluation.left_out,
    }
    if evaluation.is_withheld:
        return values
    not_listening = {name: {"accuracy": scores["baselines"][key]} for key, name in _NOT_LISTENING.items()}
    return values | {
        "compared": against_published(scores, evaluation.settings, benchmark),
        "not_listening": not_listening | ({"this model given silence": scores["blind"]} if "blind" in scores else {}),
        "permutation": scores.get("permutation"),
    }


def interval(ci95: Sequence[float]) -> str:
    """Such as `58.3 to 64.4`."""
    return "{:.1f} to {:.1f}".format(*ci95)


def sample(tally: Mapping[str, Any]) -> str:
    """Such as `300 questions`, or `300 questions about 100 clips` where several share one."""
    return f"{tally['n']} questions" + (f" about {tally['clips']} clips" if "clips" in tally else "")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eval.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "md": markdown,
        "code": code,
        "interval": interval,
        "sample": sample,
        "percent": "{:.2f}".format,
        "p_value": lambda p: f"{p:.3f}" if p >= 0.001 else f"{p:.1e}",
        "number": lambda correct: str(correct) if isinstance(correct, int) else f"{correct:.2f}",
    }
    environment.policies["json.dumps_function"] = as_json
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment
