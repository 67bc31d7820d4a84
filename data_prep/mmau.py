"""Prepare MMAU for an evaluation: its questions, and the clips if you have them, become a manifest.

    python -m data_prep.mmau --questions mmau-test-mini.json --audio test-mini-audios.tar.gz --out data/mmau

Questions are read from the published JSON or from the Hugging Face copy (parquet, whose clips are embedded); clips are
found in folders, tar archives and parquet files. Every question stays in the manifest: one whose clip is missing or
cannot be used is flagged, and an evaluation counts it as wrong. Without --audio all are flagged, which is enough for
scoring. It writes manifest.jsonl, source.jsonl (every record as it stood), prep_report.json and audio/. The same
command goes on with a preparation that was interrupted.

Exit codes: 0 done; 1 failed, such as on a full disk, and what was done is kept; 2 refused: nothing that can be read, or
an archive that cannot be trusted; 3 done, but records were bad, clips were missing or unusable, or less than --min-kept
was kept; 130 interrupted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep import benchmarks
from data_prep.benchmarks import Benchmark
from data_prep.named_clips import AUDIO_COLUMNS
from data_prep.pipeline import Report
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.benchmark_records import without_letters
from r1_aqa_repro.data.questions import AudioQuestion, question_from_mmau
from r1_aqa_repro.data.records import BadRecord, optional_text, parse_json, require_object
from r1_aqa_repro.data.versions import MMAU_VERSIONS


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    return benchmarks.run(_MMAU, __doc__, argv)


def prepare(questions: list[Path], audio: list[Path], out: Path) -> Report:
    """Write the manifest of MMAU's questions, and the clips that it names, to a folder.

    A bad record is refused; see `benchmarks.prepare`.
    """
    return benchmarks.prepare(_MMAU, questions, audio, out, refuse_bad=True)


def _read(raw: dict[str, Any]) -> tuple[AudioQuestion, str | None]:
    record = _flattened(raw)
    question = question_from_mmau(record, Path())
    choices, answer = without_letters(question.choices, question.answer)
    return replace(question, choices=choices, answer=answer), optional_text(record, "audio_id")


def _named(row: dict[str, Any]) -> tuple[str, str | None]:
    record = _flattened({"instruction": None, **row})
    return str(record["id"]), str(record.get("audio_id") or "")


def _flattened(raw: dict[str, Any]) -> dict[str, Any]:
    """A row of the Hugging Face copy as the published file has it; any other record as it is."""
    if "instruction" not in raw:
        return raw
    attributes = raw.get("other_attributes") or {}
    if isinstance(attributes, str):
        try:
            attributes = parse_json(attributes)
        except (ValueError, RecursionError):
            attributes = None
    if not isinstance(attributes, dict):
        what = f"other_attributes is {raw['other_attributes']!r:.60}, not an object"
        raise BadRecord(what, "Fetch the file again.")
    require_object(attributes)
    audio: dict[str, Any] = next((raw[name] for name in AUDIO_COLUMNS if isinstance(raw.get(name), dict)), {})
    own = {"question": raw["instruction"], "choices": raw.get("choices"), "answer": raw.get("answer")}
    return {"id": raw.get("id"), "audio_id": audio.get("path"), **attributes, **own}


_MMAU = Benchmark(
    command="data_prep.mmau",
    name="MMAU test-mini",
    files="MMAU's JSON file, or parquet files of its Hugging Face copy",
    read=_read,
    named=_named,
    versions=MMAU_VERSIONS.values(),
    full_account=False,
)


if __name__ == "__main__":
    main()
