"""The graph of a reproduction, carried out by Snakemake, and where it stands.

Snakemake and not doit: it keeps what a stage depended on, so that it can tell why one is stale; it runs what does not
depend on each other at once; and its executors are those of clusters (SLURM's is `snakemake-executor-plugin-slurm`).
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Refused
from r1_aqa_repro.common.files import LOCK, in_use, sole_use
from scripts.launching import waited_for
from scripts.reproduce.settings import ROOT, Study
from scripts.reproduce.stages import Stage, stages_of

SNAKEFILE = Path(__file__).with_name("Snakefile")
RUNNING = ".reproduction.lock"  # of the whole graph; what writes a report has `LOCK`
LOCKS = "locks"  # folder of what a stage holds while it runs
CLAIMS = "claims"  # folder of what stages were made of
SUPERSEDED = "superseded"  # folder of what they had made of something else
_CHECKSUMS = 10**9  # bytes of the largest file that is told unchanged by its content
# Snakemake's reasons are read from what it prints. A logger plugin, a package that has to be installed beside it, gets
# records of jobs, but the reason in them is the same text; what that is made from is internal to the API's graph.
_JOB = re.compile(r"^(?:local)?rule (?P<rule>\w+):\n(?P<body>(?: .*\n)+)", re.MULTILINE)
_REASON = re.compile(r"^ +reason: (.*)$", re.MULTILINE)
_PARAMETERS = re.compile(r"before: (?P<before>.*?)now: (?P<now>.*?)(?:;|$)")
_ABSENT = "<nothing exclusive>"


@dataclass(frozen=True)
class Standing:
    """Where a stage stands: `done`, `running`, `to do` or `stale`, and why."""

    stage: Stage
    state: str
    why: str = ""


def carry_out(
    study: Study, cores: int, only: Sequence[str] = (), begin_at: str | None = None, slurm: bool = False
) -> int:
    """Carry out what is not done, or stale; returns the exit code.

    Args:
        cores: processes at the same time, of all stages together.
        only: stages to carry out alone; all if empty. What they need must be done.
        begin_at: a stage that is carried out anew, with all that depends on it.
        slurm: a job a stage.

    Raises:
        Refused: there is no such stage; a stage of `only` needs one that is not done; another process has the folder.
    """
    stages = stages_of(study)
    for name in (*only, *([begin_at] if begin_at else [])):
        if name not in stages:
            raise Refused.because(name, "there is no such stage", f"Choose among {', '.join(stages)}.")
    own = [] if begin_at is None else ["--forcerun", stages[begin_at].rule]
    if only:
        _require_needs(study, [stages[name] for name in only])
        own += ["--allowed-rules", *(stages[name].rule for name in only), "--"]
        own += [str(stages[name].mark) for name in only]
    if slurm:
        resources = [f"{name}={value}" for name, value in study.keys.slurm.items()]
        own = ["--executor", "slurm", *(["--default-resources", *resources] if resources else []), *own]
    where = ["--jobs", str(len(stages))] if slurm else ["--cores", str(cores)]
    with sole_use(study.folder / RUNNING, "Wait for it, or look with --status."):
        if begin_at is not None:
            put_aside(study, stages[begin_at])
        # what a stage says is for the terminal here, and for a job's own log on a cluster
        quiet = [] if slurm else ["--quiet", "all"]
        command = [*_snakemake(study), *where, *quiet, "--rerun-incomplete", "--nolock", "--keep-going", *own]
        code = waited_for(command, interrupted=EXIT_INTERRUPTED)
    return code if code in (EXIT_DONE, EXIT_INTERRUPTED) else EXIT_FAILED


def standings(study: Study) -> list[Standing]:
    """Where every stage stands.

    Raises:
        Refused: Snakemake cannot tell, with what it says; mostly because a file that has to be there is not.
    """
    stages = stages_of(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    command = [*_snakemake(study), "--dry-run", "--cores", "1", "--nolock", "--rerun-incomplete"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if told.returncode:
        lines = [line for line in (told.stdout + told.stderr).splitlines() if line.strip()]
        raise Refused.because(str(study.folder), " ".join(lines[-8:]), "Give what is missing.")
    reasons = {
        job["rule"]: found[1]
        for job in _JOB.finditer(told.stdout + told.stderr)
        if (found := _REASON.search(job["body"]))
    }
    return [_standing(study, stage, reasons.get(stage.rule), stages) for stage in stages.values()]


def _standing(study: Study, stage: Stage, reason: str | None, stages: Mapping[str, Stage]) -> Standing:
    if is_running(study, stage):
        return Standing(stage, "running")
    if reason is None:
        return Standing(stage, "done")
    if not (study.folder / stage.mark).is_file():
        return Standing(stage, "to do")
    return Standing(stage, "stale", _why(reason, stages))


def _why(reason: str, stages: Mapping[str, Stage]) -> str:
    """What Snakemake gives as its reason, in words."""
    changed = []
    for found in _PARAMETERS.finditer(reason):
        before, now = (_by_name(found[which]) for which in ("before", "now"))
        for name in sorted(before.keys() | now.keys()):
            changed.append(f"{name} was {before.get(name, 'absent')}, now it is {now.get(name, 'absent')}")
    by_file = {str(file): stage.name for stage in stages.values() for file in (stage.mark, *stage.leaves, *stage.keeps)}
    for kind, files in re.findall(r"(Updated input files|Input files updated by another job): ([^;]*)", reason):
        named = [file.strip() for file in files.split(",")]
        if kind.startswith("Updated"):
            changed += [f"{file} has changed" for file in named]
        else:
            changed += [f"{name} is" for name in dict.fromkeys(by_file.get(file, file) for file in named)]
    return "; ".join(changed) or reason


def _by_name(parameters: str) -> dict[str, str]:
    """`name: value` texts, as Snakemake prints a set of them, by name."""
    text = parameters.strip()
    if not text or text == _ABSENT:
        return {}
    with suppress(ValueError, SyntaxError):
        return dict(str(one).split(": ", 1) for one in ast.literal_eval(f"[{text}]"))
    return {text: ""}


def is_running(study: Study, stage: Stage) -> bool:
    """Whether a process is at work on it."""
    return in_use(lock_of(study, stage))


def put_aside(study: Study, stage: Stage) -> Path | None:
    """Move what a stage has made out of the way; the folder that it is in then, None if there was nothing."""
    there = [path for path in stage.own if (study.folder / path).exists()]
    if not there:
        return None
    before = study.folder / SUPERSEDED / stage.rule
    aside = before / str(1 + sum(1 for _ in before.glob("*")))
    aside.mkdir(parents=True)
    for path in there:
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(study.folder / path, aside / path)
    return aside


def lock_of(study: Study, stage: Stage) -> Path:
    """The file that a stage holds while it runs."""
    return study.folder / LOCKS / f"{stage.rule}{LOCK}"


def _require_needs(study: Study, wanted: Sequence[Stage]) -> None:
    own = {file for stage in wanted for file in (stage.mark, *stage.leaves, *stage.keeps)}
    missing = {
        file: stage.name
        for stage in wanted
        for file in stage.needs
        if file not in own and not (study.folder / file).is_file()
    }
    if missing:
        what = f"{next(iter(missing.values()))} needs {', '.join(map(str, missing))}, which is not there"
        raise Refused.because("--only", what, "Carry out the stages before it first.")


def _snakemake(study: Study) -> list[str]:
    """The command, but for what it is to do."""
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)),
        *("--directory", str(study.folder.absolute())),
        *("--rerun-triggers", "mtime", "params", "input"),
        *("--max-checksum-file-size", str(_CHECKSUMS)),
        *("--config", f"root={ROOT}", f"study={study.file.absolute()}", f"rehearse={study.rehearsed}"),
        f"command={command_of_stage(study)}",
    ]


def command_of_stage(study: Study) -> str:
    """What carries out a stage, whose name follows, in a shell."""
    argv = [sys.executable, "-m", "scripts.reproduce.stage", "--config", str(study.file.absolute())]
    return f"cd {shlex.quote(str(ROOT))} && {shlex.join([*argv, *(['--rehearse'] if study.rehearsed else [])])}"
