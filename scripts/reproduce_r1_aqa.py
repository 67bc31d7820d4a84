"""The reproduction of R1-AQA, or its rehearsal: what scripts/reproduce_r1_aqa.sh calls once everything is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the project also without an installation

from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, command
from scripts.reproduce.settings import Study, read_study
from scripts.reproduce.stages import REPORT, stages_of
from scripts.reproduce.workflow import Standing, carry_out, standings

CONFIG = ROOT / "configs" / "reproduce_r1_aqa.yaml"


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    own = _parser().parse_args(argv)
    file = own.config.absolute()
    os.chdir(ROOT)  # where the paths of a configuration begin
    study = read_study(file, own.rehearse)
    if own.status:
        show(standings(study))
        return EXIT_DONE
    if not own.only and own.begin_at is None:
        from scripts.reproduce.check import check  # takes seconds

        check(study)
    if own.check:
        say("nothing is wrong that can be known before the start")
        return EXIT_DONE
    code = carry_out(study, own.cores or _cores(study), own.only, own.begin_at, own.slurm)
    if code == EXIT_DONE and (study.folder / stages_of(study)[REPORT].mark).is_file():
        say(
            f"report: {study.folder}/report.html, {study.folder}/report.md; what it follows from: {study.folder}/bundle"
        )
    return code


def _cores(study: Study) -> int:
    """A stage takes the whole machine, but for a rehearsal's."""
    most = max(stage.processes for stage in stages_of(study).values())
    return max(most, os.cpu_count() or 1) if study.rehearsed else most


def show(found: list[Standing]) -> None:
    """Print where every stage stands."""
    table = Table("stage", "", "why")
    for one in found:
        table.add_row(one.stage.name, one.state, one.why)
    Console(width=max(100, Console().width)).print(table)


def _parser() -> Options:
    parser = Options(__doc__, "bash scripts/reproduce_r1_aqa.sh")
    add = parser.add_argument
    add("--config", type=Path, default=CONFIG, help="(default: configs/reproduce_r1_aqa.yaml)")
    add("--rehearse", action="store_true", help="with the values under `rehearsal`")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say what is wrong, and stop")
    what.add_argument("--status", action="store_true", help="say where every stage stands, and stop")
    what.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="these stages alone")
    what.add_argument("--from", dest="begin_at", metavar="STAGE", help="this stage anew, and what depends on it")
    add("--slurm", action="store_true", help="a job a stage")
    add("--cores", type=positive, metavar="N", help="processes at the same time")
    return parser


if __name__ == "__main__":
    main()
