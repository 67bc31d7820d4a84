"""YaRN (Peng et al., arXiv 2309.00071): a Qwen2 at contexts longer than those it was trained at.

Rotary embeddings turn each pair of a head's dimensions by an angle that grows with the position, every pair at a speed
of its own. Beyond the trained length the slow pairs reach angles that the model has never seen. YaRN slows these down
by `factor`, leaves the fast ones, which tell neighbours apart, as they are, and sharpens attention a little. It is
static: inputs that the model could already take are computed differently too (docs/long_context.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from r1_aqa_repro.common.errors import Problem, Refused

WHERE = "rope_parameters"
_KEYS = {
    "yarn": ("rope_type", "factor", "original_max_position_embeddings", "rope_theta"),
    "default": ("rope_type", "rope_theta"),
}


def attention_scaling(factor: float) -> float:
    """sqrt(1/t) of the paper, 0.1 ln(factor) + 1: queries and keys are both multiplied by it, at every length."""
    return 0.1 * math.log(factor) + 1


def apply_rope_parameters(config: PreTrainedConfig, rope_parameters: Mapping[str, Any]) -> None:
    """Give the configuration of a Qwen2 other rotary embeddings, in place; `from_pretrained(config=...)` builds them.

    `{rope_type: yarn, factor: 4.0}` makes the model take 4 times the positions that it was trained at, and is saved
    with it. `{rope_type: default}` makes it what it was.

    Args:
        config: of the checkpoint, with or without YaRN.
        rope_parameters: transformers' own keys. `original_max_position_embeddings`, the trained length, and
            `rope_theta` are the checkpoint's if absent.

    Raises:
        Refused: with everything that is wrong.
    """
    problems = list(_problems(config, rope_parameters))
    if problems:
        raise Refused(problems)
    wanted = dict(rope_parameters)
    wanted.setdefault("rope_theta", config.rope_parameters["rope_theta"])
    positions = _trained_length(config)
    if wanted["rope_type"] == "yarn":
        positions = wanted.setdefault("original_max_position_embeddings", positions)
        positions = int(positions * wanted["factor"])
    config.rope_parameters, config.max_position_embeddings = wanted, positions


def _trained_length(config: PreTrainedConfig) -> int:
    return config.rope_parameters.get("original_max_position_embeddings", config.max_position_embeddings)


def _problems(config: PreTrainedConfig, wanted: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(wanted, Mapping):
        yield Problem(WHERE, f"{wanted!r} is no mapping", "Give one such as {rope_type: yarn, factor: 4.0}.")
        return
    if "type" in wanted:
        yield Problem(WHERE, "the key type is that of older configurations", "Call it rope_type.")
        return
    known = _KEYS.get(str(wanted.get("rope_type")))
    if known is None:
        yield Problem(WHERE, f"rope_type is {wanted.get('rope_type')!r}", f"Choose among {', '.join(_KEYS)}.")
        return
    for key in wanted:
        if key not in known:
            yield Problem(WHERE, f"{key} is no key of rope_type {wanted['rope_type']}", f"Known: {', '.join(known)}.")
    present = config.rope_parameters
    if present["rope_type"] not in _KEYS:
        yield Problem(WHERE, f"the checkpoint has rope_type {present['rope_type']}", "Leave rope_parameters out.")
    theta = wanted.get("rope_theta", present["rope_theta"])
    if theta != present["rope_theta"]:
        what = f"rope_theta is {theta!r}, the checkpoint's is {present['rope_theta']:g}"
        yield Problem(WHERE, what, "Leave it out: the weights were trained with the checkpoint's.")
    if wanted["rope_type"] == "yarn":
        yield from _yarn_problems(config, wanted)


def _yarn_problems(config: PreTrainedConfig, wanted: Mapping[str, Any]) -> Iterator[Problem]:
    own = _trained_length(config)
    factor: Any = wanted.get("factor")
    length = wanted.get("original_max_position_embeddings", own)
    # without YaRN a checkpoint may declare more positions than it was trained at, as the base models of Qwen2 do
    shortest = own if config.rope_parameters["rope_type"] == "yarn" else 1
    if type(length) is not int or not shortest <= length <= own:
        what = f"original_max_position_embeddings is {length!r}, the checkpoint's trained length {own}"
        yield Problem(WHERE, what, "Leave it out, or give the length of the longest texts in its training.")
    elif type(factor) not in (int, float) or not 1 < factor < math.inf:
        yield Problem(WHERE, f"factor is {factor!r}", "Give a number above 1: wanted length by trained length.")
    elif length * factor % 1:
        what = f"{factor} times {length} positions is no whole number"
        yield Problem(WHERE, what, "Choose another factor, such as 2.0 or 4.0.")
