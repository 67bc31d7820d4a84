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
_LENGTH = "original_max_position_embeddings"
_KEYS = {"yarn": ("rope_type", "factor", _LENGTH, "rope_theta"), "default": ("rope_type", "rope_theta")}


def apply_rope_parameters(config: PreTrainedConfig, rope_parameters: Mapping[str, Any]) -> None:
    """Give the configuration of a Qwen2 other rotary embeddings, in place; `from_pretrained(config=...)` builds them.

    `{rope_type: yarn, factor: 4.0}` makes the model take 4 times the positions that it was trained at, and is saved
    with it. `{rope_type: default}` makes it what it was. The keys are transformers' own;
    `original_max_position_embeddings`, the trained length, and `rope_theta` are the checkpoint's if absent.

    Raises:
        Refused: with everything that is wrong.
    """
    problems = list(_problems(config, rope_parameters))
    if problems:
        raise Refused(problems)
    config.max_position_embeddings = _trained_length(config)
    config.rope_parameters = {"rope_theta": config.rope_parameters["rope_theta"], **rope_parameters}
    if config.rope_parameters["rope_type"] == "yarn":
        config.rope_parameters.setdefault(_LENGTH, config.max_position_embeddings)
    declare_reach(config)


def declare_reach(config: PreTrainedConfig) -> None:
    """Make `max_position_embeddings` of a Qwen2 with YaRN what the model can take, in place.

    Qwen's model cards and our own checkpoints have the trained length there, from which transformers 4.49 computes.
    """
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn":
        config.max_position_embeddings = int(rope[_LENGTH] * rope["factor"])


def _trained_length(config: PreTrainedConfig) -> int:
    return config.rope_parameters.get(_LENGTH, config.max_position_embeddings)


def _problems(config: PreTrainedConfig, wanted: Mapping[str, Any]) -> Iterator[Problem]:
    known = _KEYS.get(str(wanted.get("rope_type"))) if isinstance(wanted, Mapping) else None
    if known is None:
        yield Problem(WHERE, f"{wanted!r} has no rope_type of {', '.join(_KEYS)}", "See docs/long_context.md.")
        return
    for key in wanted:
        if key not in known:
            yield Problem(WHERE, f"{key} is no key of rope_type {wanted['rope_type']}", f"Known: {', '.join(known)}.")
    present, own = config.rope_parameters, _trained_length(config)
    if present["rope_type"] not in _KEYS:
        yield Problem(WHERE, f"the checkpoint has rope_type {present['rope_type']}", "Leave rope_parameters out.")
    theta = wanted.get("rope_theta", present["rope_theta"])
    if theta != present["rope_theta"]:
        what = f"rope_theta is {theta!r}, the checkpoint's is {present['rope_theta']:g}"
        yield Problem(WHERE, what, "Leave it out: the weights were trained with the checkpoint's.")
    if wanted["rope_type"] == "default":
        return
    factor: Any = wanted.get("factor")
    length = wanted.get(_LENGTH, own)
    # without YaRN a checkpoint may declare more positions than it was trained at, as the base models of Qwen2 do
    shortest = own if present["rope_type"] == "yarn" else 1
    if type(length) is not int or not shortest <= length <= own:
        what = f"{_LENGTH} is {length!r}, the checkpoint's trained length {own}"
        yield Problem(WHERE, what, "Leave it out, or give the length of the longest texts in its training.")
    if type(factor) not in (int, float) or not 1 < factor < math.inf:
        yield Problem(WHERE, f"factor is {factor!r}", "Give a number above 1: wanted length by trained length.")
