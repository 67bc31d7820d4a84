"""The embedded question set: deterministic synthetic clips and questions, and the files that hold them.

A question is a pure function of (seed, split, index), so that any number of processes write the same bytes and an
interrupted writing goes on where it stopped. PyTorch is not imported here: worker processes start in a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from r1_aqa_repro.common.claim import check_claim, claim
from r1_aqa_repro.common.files import write_json, write_lines
from r1_aqa_repro.embedded.draws import Rng, pick, stream
from r1_aqa_repro.embedded.families import CLARITY, FAMILIES, MAX_SCENE_SECONDS, shuffled
from r1_aqa_repro.embedded.synthesis import SAMPLING_RATE, Wave, num_samples

GENERATOR_VERSION = 1  # raise it whenever the same seed would give other bytes
DATASET = "embedded"
_CLIP_SECONDS = (2.5, 3.0)
_LEAD_SECONDS = _CLIP_SECONDS[0] - MAX_SCENE_SECONDS  # at most, before the scene
_LEVEL = (0.06, 0.15)  # root mean square of a clip before the limiter
_BACKGROUND = 0.01  # root mean square of the noise under every clip, relative to the clip's
_CHUNK = 64  # questions a worker takes at a time
_REMEDY = "Choose another --output_dir, or give --overwrite to delete the earlier run."


def make_question(seed: int, split: str, index: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Question number `index` of a split: its record, and its clip, float32 [num_samples], 16 kHz, mono, 2.5 to 3.0 s.

    Every split has random streams of its own. Tasks and families follow in turn, so that any run of questions is
    balanced over them.
    """
    record, render = _draw(seed, split, index)
    return record, render()


def write_question_set(
    out: Path, *, seed: int, num_train: int, num_held_out: int, workers: int = 2, progress: bool = True
) -> None:
    """Write both splits: `train/manifest.jsonl` and `held_out/mmau_format.json` (MMAU's records), each beside its
    `audio/*.wav`.

    A killed call leaves only whole files; the next one keeps them and ends with the same bytes as an uninterrupted
    call, by any number of worker processes. `question_set.json` is written last and marks the set as complete.

    Raises:
        Refused: `out` holds another set (seed, counts or generator version differ).
    """
    description = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_held_out": num_held_out,
    }
    complete, begun = out / "question_set.json", out / "question_set.partial.json"
    if check_claim(complete, description, _REMEDY):
        return
    claim(begun, description, _REMEDY)
    counts = {"train": num_train, "held_out": num_held_out}
    jobs = [(split, start, min(start + _CHUNK, n)) for split, n in counts.items() for start in range(0, n, _CHUNK)]
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in counts}
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs threads can hang
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool,
        tqdm(
            total=num_train + num_held_out, desc="question set", unit="clip", mininterval=1, disable=not progress
        ) as bar,
    ):
        try:
            written = pool.map(partial(_write_clips, out, seed), *zip(*jobs, strict=True))
            for (split, start, stop), chunk in zip(jobs, written, strict=True):
                records[split] += chunk
                bar.update(stop - start)
        except BaseException:  # Ctrl-C too: leaving `with` would otherwise wait for every chunk in the queue
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    manifest = ({"id": one["id"], "audio_path": f"audio/{one['id']}.wav", **one} for one in records["train"])
    write_lines(out / "train" / "manifest.jsonl", manifest)
    mmau = [{"id": one["id"], "audio_id": f"./audio/{one['id']}.wav", **one} for one in records["held_out"]]
    renamed = [{"sub-category" if key == "sub_category" else key: value for key, value in one.items()} for one in mmau]
    write_json(out / "held_out" / "mmau_format.json", renamed)
    os.replace(begun, complete)


def _draw(seed: int, split: str, index: int) -> tuple[dict[str, Any], Callable[[], NDArray[np.float32]]]:
    """The record of a question, and what makes its clip: one that is already on disk need not be made again."""
    rng = stream(seed, GENERATOR_VERSION, split, index)
    task = list(FAMILIES)[index % len(FAMILIES)]
    family = FAMILIES[task][index // len(FAMILIES) % len(FAMILIES[task])]
    difficulty = list(CLARITY)[int(rng.integers(len(CLARITY)))]
    drawn = family.draw(rng, family.options)
    question, answer = pick(rng, family.question), drawn[0]
    wrong = shuffled(rng, [option for option in family.options if option != answer])
    record = {
        "id": f"{DATASET}-{split}-{seed}-{index:05d}",
        "question": question,
        "choices": shuffled(rng, [answer, *wrong[:3]]),
        "answer": answer,
        "dataset": DATASET,
        "split": split,
        "task": task,
        "difficulty": difficulty,
        "category": family.category,
        "sub_category": family.sub_category,
    }
    return record, lambda: _clip(family.sound(rng, CLARITY[difficulty], *drawn), rng)


def _clip(scene: Wave, rng: Rng) -> NDArray[np.float32]:
    """Put a scene somewhere into a clip whose length and level are drawn independently of it."""
    clip = np.zeros(num_samples(rng.uniform(*_CLIP_SECONDS)))
    start = num_samples(rng.uniform(0, _LEAD_SECONDS))
    clip[start : start + len(scene)] = scene
    clip /= np.sqrt(np.mean(clip**2))
    clip += _BACKGROUND * rng.standard_normal(len(clip))
    level = np.exp(rng.uniform(*np.log(_LEVEL)))
    # a soft limiter, as recorders have: a lone knock would otherwise exceed full scale
    return np.tanh(clip * (level / np.sqrt(np.mean(clip**2)))).astype(np.float32)


def _end_with_parent() -> None:
    """Initialise a worker: it ends when its parent is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_clips(out: Path, seed: int, split: str, start: int, stop: int) -> list[dict[str, Any]]:
    """Write the clips start..stop-1 that are not there yet; return all their records. Runs in a worker process."""
    folder = out / split / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(start, stop):
        record, render = _draw(seed, split, index)
        path = folder / f"{record['id']}.wav"
        if not path.is_file():
            partial_path = path.with_suffix(".partial")
            soundfile.write(partial_path, render(), SAMPLING_RATE, subtype="PCM_16", format="WAV")
            os.replace(partial_path, path)
        records.append(record)
    return records
