"""Prepare MMSU for an evaluation: its questions, and the clips if you have them, become a manifest.

    python -m data_prep.mmsu --questions data/train-*.parquet --out data/mmsu

Questions are read from parquet or Arrow files, whose clips may be embedded, or from JSON lines; the answer is the text
of a choice or its letter, whichever each record has. Clips are found in folders, tar archives and parquet files. Every
question stays in the manifest: one whose clip is missing or cannot be used is flagged, and an evaluation counts it as
wrong; one whose clip goes on after 30 s, of which Qwen2-Audio hears no more, is flagged longer_than_30_s, and its clip
stays whole. Without clips all questions are kept and flagged. It writes manifest.jsonl, source.jsonl (every record as
it stood), prep_report.json and audio/. The same command goes on with a preparation that was interrupted.

Exit codes: 0 done; 1 failed, such as on a full disk, and what was done is kept; 2 refused: nothing that can be read, or
an archive that cannot be trusted; 3 done, but records were bad, clips were missing or unusable, or less than --min-kept
was kept; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path

from data_prep import benchmarks
from data_prep.benchmarks import Benchmark, reading
from data_prep.pipeline import Report
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.questions import question_from_mmsu


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    return benchmarks.run(_MMSU, __doc__, argv)


def prepare(questions: list[Path], audio: list[Path], out: Path) -> Report:
    """Write the manifest of MMSU's questions, and the clips that it names, to a folder.

    A bad record is refused; see `benchmarks.prepare`.
    """
    return benchmarks.prepare(_MMSU, questions, audio, out, refuse_bad=True)


_MMSU = Benchmark(
    command="data_prep.mmsu",
    name="MMSU",
    files="MMSU's JSON file, or parquet or Arrow files",
    read=reading(question_from_mmsu),
)


if __name__ == "__main__":
    main()
