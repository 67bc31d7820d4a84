"""The clips of a run: all sound when it starts, and heard as silence from which nothing is learned once one is not.

What a bad clip is, `data.audio.AudioError` decides. Before a run every clip is measured, and the run folder keeps how
long each is, so that the same run starts again without asking a clip. One that fails later ends nothing: silence of its
length takes its place, so that every shape, every other row of the batch and all random numbers stay what they were;
the trainer lets its rows count for nothing; it is listed in the run folder, and lost to the run from that step on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import ProcessorMixin, TrainerCallback, TrainerState

from r1_aqa_repro.common.claim import read_claim
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import is_main_process, local_rank, num_cores, num_local_processes, rank
from r1_aqa_repro.common.errors import Failed, Refused
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.audio import NO_FILE, SAMPLING_RATE, AudioError, measure_audio
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.records import read_records
from r1_aqa_repro.model.inputs import load_clip, minimum_seconds

MEASURED, SKIPPED = "measured_clips.json", "skipped_records.json"
_SHARE, _AT_LEAST = 0.01, 8  # of the clips seen, that may fail in a run unless `max_bad_clips` says otherwise
_NAMED = 20  # clips that a message names
_SAY_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class LostClip:
    """A clip that failed in mid-run: with which question, why, and the optimizer step it is lost from."""

    id: str
    clip: str
    reason: str
    step: int


class Clips:
    """The clips of one run, as one process knows them.

    The run folder keeps what was measured, not the folder of the data: it can always be written, all processes share
    it, and it is the run that needs it, to hear silence of a clip's length when the clip itself is gone.

    Args:
        folder: of the run.
        check: `decode` or `headers`, how `measure` looks at clips.
        most: so many may fail in mid-run; None for a share of those seen.
        anew: an earlier run in the folder is to be deleted. What it measured is used where the file is the same.

    Raises:
        Refused: the folder's records of clips are damaged.
    """

    def __init__(self, folder: Path, check: str = "decode", most: int | None = None, anew: bool = False):
        self.folder, self.decodes, self.most = folder, check == "decode", most
        file, remedy = folder / MEASURED, "Delete it: the clips will be measured again."
        kept = read_claim(file, remedy) or {}
        self.started = bool(kept) and not anew  # the same run goes on: it has the clips that it had
        usable = self.started or kept.get("decoded", False) or not self.decodes
        self._cached: dict[str, list[int]] = kept.get("clips", {}) if usable else {}  # size, mtime_ns, samples
        if not isinstance(self._cached, dict) or not all(map(_is_measured, self._cached.values())):
            raise Refused.because(str(file), "it is damaged", remedy)
        self._measured = dict(self._cached) if self.started else {}  # of this run
        self._samples = {name: samples for name, (*_, samples) in self._cached.items()}
        listed = [] if anew else self._listed()
        self._lost = {one.clip: one for one in listed if isinstance(one, LostClip)}
        self._new: list[LostClip] = []

    # --- Before the run

    def measure(self, paths: Sequence[Path], shortest: float, decode: bool = False) -> dict[Path, str]:
        """Why clips cannot be used, by path, of those that cannot. Nothing is read if the run goes on.

        All processes of a run call it together to `decode`: those of a machine share the work.

        Args:
            paths: of the clips.
            shortest: seconds.
            decode: read them to their end, and not their headers alone.
        """
        paths = list(dict.fromkeys(paths))
        # of a run that was moved together with its data, no clip lies where it was measured
        if self.started and paths and not any(_name(path) in self._measured for path in paths):
            self.started, self._measured = False, {}
        own = [] if self.started else paths[local_rank() :: num_local_processes()] if decode else paths
        found = dict(zip(map(_name, own), self._in_threads(own, shortest, decode), strict=True))
        if decode:
            machine = rank() - local_rank()  # other machines may see other files
            everywhere = gather_object([(machine, found)])
            found = {name: each for of, part in everywhere if of == machine for name, each in part.items()}
        if self.started:
            return {path: "it was left out when the run began" for path in paths if _name(path) not in self._measured}
        bad = {path: each for path in paths if isinstance(each := found[_name(path)], str)}
        measured = {name: each for name, each in found.items() if not isinstance(each, str)}
        self._samples |= {name: samples for name, (*_, samples) in measured.items()}
        if decode == self.decodes:
            self._measured |= measured
        return bad

    def seconds(self, path: Path) -> float:
        """How long a clip is, by what was last read of it."""
        return self._samples[_name(path)] / SAMPLING_RATE

    def _in_threads(self, paths: Sequence[Path], shortest: float, decode: bool) -> list[list[int] | str]:
        """Threads suffice: libsndfile and NumPy work without Python's lock."""

        def measured(path: Path) -> list[int] | str:
            try:
                file = os.stat(path)
                state = [file.st_size, file.st_mtime_ns]
                kept = self._cached.get(_name(path), [0])
                if kept[:-1] == state and kept[-1] >= shortest * SAMPLING_RATE:
                    return kept
                return [*state, measure_audio(path, shortest, decode)]
            except AudioError as error:
                return error.reason
            except (OSError, ValueError):  # of `stat`; no path can hold a null character
                return NO_FILE

        cores = num_cores()
        # headers are waited for rather than worked on
        pool = ThreadPoolExecutor(max(1, cores // num_local_processes()) if decode else min(16, 4 * cores))
        results: list[list[int] | str] = []
        said = time.monotonic()
        try:
            with tqdm(total=len(paths), desc="decoding", unit=" clips", disable=not (decode and _has_bar())) as bar:
                for result in pool.map(measured, paths):
                    results.append(result)
                    bar.update()
                    if decode and bar.disable and time.monotonic() - said > _SAY_EVERY:
                        said = time.monotonic()
                        say(f"decoded {len(results):,} of {len(paths):,} clips")
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def keep(self) -> None:
        """Write what was measured into the run folder, once the run has begun; the main process calls it."""
        if not self.started:
            write_json(self.folder / MEASURED, {"decoded": self.decodes, "clips": self._measured})

    # --- In the run

    def hear(
        self, question: AudioQuestion, channel: str, processor: ProcessorMixin, step: int | None = None
    ) -> tuple[np.ndarray, str | None]:
        """The waveform of a question and None; or silence of its length, and why its clip cannot be heard.

        A clip that is lost by this `step` is not read, even if it could be again: a run that was stopped and goes on
        does as if it had not been.
        """
        known = self._lost.get(_name(question.audio_path))
        reason = known.reason if known is not None and step is not None and known.step <= step else None
        if reason is None:
            try:
                return load_clip(question, channel, processor), None
            except AudioError as error:
                reason = error.reason
        shortest = round(minimum_seconds(processor) * SAMPLING_RATE)  # of a clip that nobody has measured
        return np.zeros(self._samples.get(_name(question.audio_path), shortest), dtype=np.float32), reason

    def are_lost(self, questions: Sequence[AudioQuestion], reasons: Sequence[str | None], step: int) -> list[bool]:
        """Which questions have no clip in this step; `reasons` as `hear` gave them. What fails now is noted."""
        lost = []
        for question, reason in zip(questions, reasons, strict=True):
            name = _name(question.audio_path)
            known = self._lost.get(name)
            if reason is not None and (known is None or step < known.step):
                self._lost[name] = LostClip(question.id, name, reason, step)
                if known is None:
                    self._new.append(self._lost[name])
                known = self._lost[name]
            lost.append(known is not None and known.step <= step)
        return lost

    def share_lost(self, step: int, seen: float) -> None:
        """Tell all processes, the log and the run folder which clips have failed; all processes call it together.

        Raises:
            Failed: more than `most` of the clips `seen` have failed by this step.
        """
        new, self._new = gather_object(self._new), []
        for one in new:
            self._lost.setdefault(one.clip, one)
        by_now = [one for one in self._lost.values() if one.step <= step]
        if new and is_main_process():
            left_out = [one for one in self._listed() if isinstance(one, str)]
            write_json(self.folder / SKIPPED, left_out + list(map(asdict, self._lost.values())))
            for one in {each.clip: each for each in new}.values():
                say(f"warning: step {step}: nothing is learned from question {one.id}: {one.clip}: {one.reason}")
        allowed = max(_AT_LEAST, int(_SHARE * seen)) if self.most is None else self.most
        if len(by_now) > allowed:
            named = "".join(f"\n    {one.clip}: {one.reason}" for one in by_now[:_NAMED])
            more = f"\n    and {len(by_now) - _NAMED:,} more" if len(by_now) > _NAMED else ""
            raise Failed(
                f"{len(by_now):,} clips have failed in mid-run, more than max_bad_clips ({allowed:,}):{named}{more}\n"
                f"Restore them, delete {self.folder / SKIPPED} and give the same command again: it goes on from the "
                "last checkpoint. Or raise max_bad_clips."
            )

    def _listed(self) -> list[str | LostClip]:
        """What the run lists: a text for each record left out when it began, and each clip lost since.

        Raises:
            Refused: the list is damaged.
        """
        file = self.folder / SKIPPED
        if not os.path.exists(file):
            return []
        try:
            return [one if isinstance(one, str) else LostClip(**one) for _, one in read_records(file)]
        except TypeError:
            remedy = "Delete it: clips that have failed will be heard again."
            raise Refused.because(str(file), "it is damaged", remedy) from None


def as_heard(question: AudioQuestion, samples: np.ndarray, reason: str | None) -> AudioQuestion:
    """The question with the name of what `Clips.hear` gave for its clip: the clip's own is not for silence."""
    return question if reason is None else replace(question, audio_path=Path(f"silence-{len(samples)}"))


class ClipWatch(TrainerCallback):
    """Shares what clips have failed at the end of every step."""

    def __init__(self, clips: Clips, num_questions: int):
        self.clips, self.num_questions = clips, num_questions

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.clips.share_lost(state.global_step, min(1.0, state.epoch or 0.0) * self.num_questions)


def _is_measured(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(number) is int for number in value)


def _name(path: Path) -> str:
    """One name of a clip. Not that of what a link leads to: links that change between two starts are the same clip."""
    return os.path.abspath(path)


def _has_bar() -> bool:
    return is_main_process() and sys.stderr.isatty()
