"""`long_clips.json`: the clips that go on beyond what the model hears of them, so that no report is silent about it.

Written beside the predictions by who has the model, hence its window, and only where there are such clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import read_json, write_json
from r1_aqa_repro.data.questions import HEARD_SECONDS, LONGER, AudioQuestion

LONG_CLIPS = "long_clips.json"
_TOKEN = 0.04  # seconds that a token of audio stands for: what lies within one is not lost


@dataclass(frozen=True)
class LongClips:
    """What was not heard.

    Attributes:
        window_seconds: what is heard of a clip, from its beginning.
        seconds: the length of each longer clip, by question id; None of one that its manifest flags.
    """

    window_seconds: float = HEARD_SECONDS
    seconds: Mapping[str, float | None] = field(default_factory=dict)

    def with_flagged(self, questions: Iterable[AudioQuestion]) -> LongClips:
        """And those that a manifest flags, of predictions that were made elsewhere."""
        flagged = {one.id: None for one in questions if LONGER in one.flags}
        return LongClips(self.window_seconds, {**flagged, **self.seconds})


def record_long_clips(
    folder: Path, questions: Iterable[AudioQuestion], window_seconds: float, lengths: Mapping[Path, float]
) -> None:
    """Write long_clips.json to the folder of an evaluation if a clip is longer than the window; lengths in seconds."""
    of_question = {one.id: lengths[one.audio_path] for one in questions}
    beyond = {name: seconds for name, seconds in of_question.items() if seconds > window_seconds + _TOKEN}
    if beyond:
        write_json(folder / LONG_CLIPS, asdict(LongClips(window_seconds, beyond)))


def recorded_long_clips(folder: Path) -> LongClips:
    """What long_clips.json in the folder of an evaluation says; nothing if it is absent.

    Raises:
        Refused: it is damaged.
    """
    if not (folder / LONG_CLIPS).exists():
        return LongClips()
    remedy = "Remove it, and evaluate again."
    record: dict[str, Any] = read_json(folder / LONG_CLIPS, remedy)
    window, seconds = record.get("window_seconds"), record.get("seconds")
    numbers = [window, *seconds.values()] if isinstance(seconds, dict) else [None]
    if not all(isinstance(one, int | float) and one > 0 for one in numbers):
        raise Refused.because(str(folder / LONG_CLIPS), "it is damaged", remedy)
    return LongClips(record["window_seconds"], record["seconds"])
