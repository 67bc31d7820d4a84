"""What a preparation knows of each clip, recorded as it goes: how the next run goes on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from data_prep.workers import Clip


@dataclass(slots=True)
class Outcome:
    """What became of a clip; neither `clip` nor `reason` is set while it is being made.

    Attributes:
        source: changes when the clip would.
        clip: what was made.
        reason: one of `media.REASONS`, if there is no clip.
        detail: what is wrong.
    """

    source: str
    clip: Clip | None = None
    reason: str = ""
    detail: str = ""

    @property
    def known(self) -> bool:
        return self.clip is not None or self.reason != ""


def outcomes_of(records: Iterable[dict[str, Any] | None]) -> dict[str, Outcome]:
    """The outcomes that a journal records, by the clip's name; of several the last counts. A damaged line, which is
    None, and one that says something else tell nothing: the clip is made again."""
    outcomes = {}
    for record in filter(None, records):
        try:
            clip = Clip(**record["clip"]) if record["clip"] else None
            outcomes[str(record["stem"])] = Outcome(record["source"], clip, record["reason"], record["detail"])
        except (KeyError, TypeError):
            continue
    return outcomes


def facts_of(clips: Collection[Clip]) -> dict[str, Any]:
    """Number, hours and bytes of clips; least, mean and greatest length, peak and loudness."""
    if not clips:
        return {"clips": 0}
    seconds = [clip.seconds for clip in clips]
    measures = {
        "seconds": seconds,
        "peak": [clip.peak for clip in clips],
        "rms_decibels": [20 * math.log10(clip.rms) for clip in clips],
    }
    return {
        "clips": len(clips),
        "hours": round(math.fsum(seconds) / 3600, 4),
        "bytes": sum(clip.size for clip in clips),
        **{
            name: {"min": round(min(values), 3), "mean": round(fmean(values), 3), "max": round(max(values), 3)}
            for name, values in measures.items()
        },
    }
