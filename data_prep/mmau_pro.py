"""Prepare the part of MMAU-Pro with one clip of at most 30 s and choices for an evaluation: it becomes a manifest.

    python -m data_prep.mmau_pro --questions test.parquet --audio data/ --out data/mmau_pro

Clips are found in folders (unpack data.zip), tar archives and parquet files, or are embedded. Left out, and listed by
reason in prep_report.json, are questions about several clips, without choices or with only one, and those whose clip
is longer than 30 s, of which Qwen2-Audio hears no more. The rest of MMAU-Pro takes an embedding model and a judge to
score, so that no figure on this part is MMAU-Pro's score. A question whose clip is missing or cannot be used stays and
is flagged: nothing says that its clip is longer. It writes manifest.jsonl, source.jsonl (every record as it stood),
prep_report.json and audio/. The same command goes on with a preparation that was interrupted.

Exit codes: 0 done, and what is left out is listed; 1 failed, such as on a full disk, and what was done is kept; 2
refused: nothing that can be read, no clips, or an archive that cannot be trusted; 3 done, but records were bad, clips
were missing or unusable, or less than --min-kept was kept; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path

from data_prep import benchmarks
from data_prep.benchmarks import Benchmark, reading
from data_prep.pipeline import Report
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.questions import question_from_mmau_pro

PART = "one clip of at most 30 s and choices"


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    return benchmarks.run(_MMAU_PRO, __doc__, argv)


def prepare(questions: list[Path], audio: list[Path], out: Path) -> Report:
    """Write the manifest of the part of MMAU-Pro that is kept, and its clips, to a folder.

    A bad record is refused; see `benchmarks.prepare`.
    """
    return benchmarks.prepare(_MMAU_PRO, questions, audio, out, refuse_bad=True)


_MMAU_PRO = Benchmark(
    command="data_prep.mmau_pro",
    name="MMAU-Pro",
    files="MMAU-Pro's parquet file, or its records as JSON lines",
    read=reading(question_from_mmau_pro),
    part=PART,
)


if __name__ == "__main__":
    main()
