"""Prepare AVQA for training: its annotations and the media that you have become a manifest with 16 kHz clips.

    python -m data_prep.avqa --annotations train_qa.json --media videos/ --out data/avqa

finds each question's clip under the --media folders: `ID_000030` or `ID_30` with any of the usual endings (mp4, mkv,
webm, wav, flac, mp3, ogg, m4a), or the whole video `ID`, of which the 10 seconds are cut out. R1-AQA's own JSONL lines
and parquet or Arrow files with embedded audio (such as gijs/avqa-processed, whose choices stand in the question) are
taken as annotations too. It writes manifest.jsonl, prep_report.json and audio/. The same command goes on with a
preparation that was interrupted.

Exit codes: 0 done, and missing clips are listed; 1 failed, such as on a full disk, and what was done is kept; 2 refused
before starting; 3 done, but less than --min-kept was kept, or nothing; 130 interrupted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.fingerprints import YOUTUBE_CLIP
from data_prep.lettered import meant, spelled_out
from data_prep.media import Excerpt
from data_prep.media_index import MEDIA_ENDINGS, MediaIndex, stem_of, unreadable_folder
from data_prep.pipeline import Making, Record, add_preparation_arguments, prepare, safe_stem
from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused, command
from r1_aqa_repro.common.files import sha256_of, unreadable
from r1_aqa_repro.data.questions import question_from_avqa
from r1_aqa_repro.data.records import (
    BadRecord,
    Rejected,
    no_records,
    optional_text,
    parse_records,
    read_records,
    text,
)

CLIP_SECONDS = 10.0
# A file that is named after its clip but lasts longer than this is the whole video all the same: that is how
# downloads look whose tool named the file and forgot to cut it.
LONGEST_CLIP = 15.0
_CLIP_NAME = re.compile(r"(.+)_([0-9]{1,9})", re.DOTALL)  # an id may hold underscores: the last one counts


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    _check_paths(arguments.annotations, arguments.media)
    surveys = [_survey(file) for file in arguments.annotations]
    total = sum(number for number, _ in surveys)
    if not total:
        raise no_records(arguments.annotations[0])
    index = MediaIndex(arguments.media)
    if not len(index) and not all(brings_media for _, brings_media in surveys):
        where = ", ".join(map(str, arguments.media)) or "--media"
        raise Refused.because(
            where, "there is no media file", f"Give folders that hold {', '.join(MEDIA_ENDINGS)} files."
        )
    say(f"{total:,} records; {len(index):,} media files in {len(arguments.media)} folders")
    settings = {
        "command": "data_prep.avqa",
        "annotations": [f"{file.name}, sha256 {sha256_of(file)}" for file in arguments.annotations],
    }
    report = prepare(records(arguments.annotations, index), arguments.out, Making.of(arguments), settings, total)
    say(report.summary(arguments.out))
    return EXIT_DONE if report.keeps(arguments.min_kept) else EXIT_LOSSES


def find_media(video_name: str, index: MediaIndex, has_start: bool = True) -> Excerpt | None:
    """Look a clip up by every naming that is in use.

    `video_name` is a YouTube id, an underscore and the start second as six digits; R1-AQA's own files have it without
    the zeros. The id alone is the whole video. Without a start second it is the name of a file, to be taken whole.
    """
    name = _CLIP_NAME.fullmatch(video_name) if has_start else None
    if name is None:
        file = index[video_name]
        return None if file is None else Excerpt(file)
    video, start = name[1], int(name[2])
    for spelled in (video_name, f"{video}_{start:06d}", f"{video}_{start}"):
        if (file := index[spelled]) is not None:
            return _clip_or_video(file, start)
    whole = index[video]
    return None if whole is None else Excerpt(whole, start, CLIP_SECONDS)


def _clip_or_video(file: Path, start: int) -> Excerpt:
    """A file with a clip's name, which may be the whole video: it is if it goes on long after the clip's start."""
    return Excerpt(file, start, CLIP_SECONDS, cut_over=max(LONGEST_CLIP, start + 1.0))


def records(annotations: list[Path], index: MediaIndex) -> Iterator[Record | Rejected]:
    """Each record of the annotations with its media; a bad one says why it is bad."""
    for file in annotations:
        # shards as `datasets.save_to_disk` names them, data-00000-of-00007.arrow, lie in a folder named after the split
        name = file.absolute().parent.name if file.name.startswith("data-") else file.name
        split = next((split for split in ("train", "val", "test") if name.startswith(split)), None)
        parse = partial(_record, file=file, split=split, index=index)
        yield from (record for _, record in parse_records(file, parse))


def _record(raw: dict[str, Any], where: str, file: Path, split: str | None, index: MediaIndex) -> Record:
    audio = raw["audio"] if isinstance(raw.get("audio"), dict) else {}
    embedded = audio.get("bytes")
    if not isinstance(embedded, bytes | None):
        raise BadRecord(f"audio.bytes is of type {type(embedded).__name__}, not bytes", "Fetch the file again.")
    if "multi_choice" not in raw and embedded is None:
        what = f"no multi_choice, only {sorted(raw)}"
        raise BadRecord(what, "Give AVQA's annotations, R1-AQA's lines or rows with embedded audio.")
    video = optional_text(raw, "video_name")
    path = optional_text(raw, "audio_path") or optional_text(audio, "path") or optional_text(raw, "file_name")
    name = video or (path and stem_of(path))
    if "multi_choice" not in raw:
        raw = {**raw, **_spelled_out(raw)}
    question = question_from_avqa(raw, Path(), f"{name}:{where}" if embedded and name else None)
    if not name:
        raise BadRecord("video_name is absent: there is nothing to find the clip by", "Give it.")
    source = Excerpt(embedded) if embedded is not None else _media(video, path, file, index)
    source_video = video or (name if YOUTUBE_CLIP.fullmatch(name) else None)
    missing = f"no file is named {name}, in any of its spellings"
    return Record(replace(question, split=split, source_video=source_video), source, safe_stem(name), missing)


def _media(video: str | None, path: str | None, file: Path, index: MediaIndex) -> Excerpt | None:
    """By R1-AQA's `audio_path` as it stands, from the annotations' folder or from here; else by name.

    A number at the end of a file's name alone is no start second: `clip_3.wav` may be the third of many clips.
    """
    names = [name for name in (video, path and stem_of(path)) if name]
    has_start = video is not None or YOUTUBE_CLIP.fullmatch(names[0]) is not None
    if path:
        for candidate in (file.parent / path, Path(path)):
            if os.path.isfile(candidate):  # False also for what cannot be a path
                name = _CLIP_NAME.fullmatch(names[0]) if has_start else None
                return _clip_or_video(candidate, int(name[2])) if name else Excerpt(candidate)
    found = (find_media(name, index, has_start) for name in names)
    return next((excerpt for excerpt in found if excerpt is not None), None)


def _spelled_out(raw: dict[str, Any]) -> dict[str, Any]:
    """AVQA's fields of a copy whose question reads `Q\\nChoices:\\nA. ...\\nB. ...` and whose answer is a text."""
    question, choices, rest = spelled_out(text(raw, "question"))
    if rest:
        raise BadRecord(f"after the choices comes {rest!r:.200}", "Give every choice a letter, or remove it.")
    answer = raw.get("answer")
    if not isinstance(answer, int):
        answer = choices.index(meant(text(raw, "answer"), choices))
    return {"question_text": question, "multi_choice": list(choices), "answer": answer}


def _survey(file: Path) -> tuple[int, bool]:
    """(number of records, whether any of them holds audio or the path of it).

    The whole file is read, which also meets what is malformed before any work is done.
    """
    number, brings_media = 0, False
    for _, raw in read_records(file, path_only=("audio",)):
        number += 1
        brings_media = brings_media or (isinstance(raw, dict) and bool(raw.get("audio_path") or raw.get("audio")))
    return number, brings_media


def _check_paths(annotations: list[Path], media: list[Path]) -> None:
    """Refuse, all at once, what is not there."""
    wanted = "Give train_qa.json, R1-AQA's JSONL, parquet or Arrow files."
    problems = [Problem(str(file), reason, wanted) for file in annotations if (reason := unreadable(file)) is not None]
    wanted = "Give folders that hold the media."
    problems += [Problem(str(one), reason, wanted) for one in media if (reason := unreadable_folder(one)) is not None]
    if problems:
        raise Refused(problems)


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.avqa")
    add = parser.add_argument
    add("--annotations", required=True, nargs="+", type=Path, metavar="FILE", help="train_qa.json or val_qa.json, "
        "R1-AQA's JSONL lines, or parquet or Arrow files with embedded audio")  # fmt: skip
    add("--media", nargs="+", type=Path, default=[], metavar="DIR", help="folders that hold the media, at any depth")
    add_preparation_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
