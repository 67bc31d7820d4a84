"""Evaluate a checkpoint on several benchmarks, for one table and one page; with --before also what training changed.

    python -m eval.suite --config configs/suite.yaml --ckpt runs/my-run/final
    python -m eval.suite --config configs/suite.yaml --ckpt runs/my-run/final --before Qwen/Qwen2-Audio-7B-Instruct

The YAML file has a key `evaluations`: of each its name and, below it, `benchmark` and any option of `python -m
eval.benchmark` but ckpt, adapter and out; configs/suite.yaml explains them. `ckpt`, `before` and `out` may stand in the
file too. Everything is checked before the first model is loaded, and a checkpoint is loaded once for all evaluations
that compute in the same dtype on the same device.

Each evaluation is an ordinary one, in OUT/NAME, of --before in OUT/before/NAME; OUT holds suite.json, suite.md and
suite.html. The same command goes on with a suite that was interrupted, and several GPUs share it as they share
`eval.mmau`. An evaluation NAME-no-audio with `no_audio: true` is the control of NAME, which shows its accuracy.

With --before every evaluation has the difference of the two checkpoints on the same questions, its bootstrap interval
as `eval.compare` has it, how many questions changed sides, and one of three words: gained or lost, where the interval
does not hold 0, otherwise not told apart. `python -m eval.compare OUT/before/NAME OUT/NAME` has the groups.

Exit codes: 0 done; 2 refused before anything was generated; 3 done, but of an evaluation some clips could not be read
or more than half of the answers are missing; 130 interrupted.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark import tell_losses
from eval.benchmarks import BENCHMARKS
from eval.benchmarks.record import Benchmark
from eval.compare import Run, compare, settings_that_differ
from eval.evaluation import NO_AUDIO
from eval.processes import joined
from eval.report.markdown import print_report
from eval.report.rendering import asset, render
from eval.scores import read_verdicts
from eval.settings import NAMES, RECORDED, EvalSettings, readers
from eval.targets import against_published
from r1_aqa_repro.common.console import Options, one_of, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, collecting, command
from r1_aqa_repro.common.files import LOCK, output_folder, read_json, sole_use, write_atomically, write_json
from r1_aqa_repro.data.questions import with_answers
from r1_aqa_repro.data.yaml_file import as_options, read_yaml

if TYPE_CHECKING:
    from eval.generation import Generator
    from eval.run import Plan

BEFORE = "before"  # the folder below OUT of what --before gets
_EVALUATIONS = "evaluations"
_NAME = re.compile(r"\w[\w-]*", re.ASCII)
_OPTIONS: dict[str, Callable[[str], Any]] = {"ckpt": str, "before": str, "out": output_folder}
_KEYS = {
    "benchmark": one_of(BENCHMARKS),
    **readers([name for name in NAMES if name not in ("ckpt", "adapter", "out")]),
}
_REMEDY = "Give the same command again."


@dataclass(frozen=True)
class Entry:
    """An evaluation of a configuration.

    Attributes:
        name: of its folder.
        benchmark: that its questions have to be of.
        settings: of an `EvalSettings`, those that are given.
    """

    name: str
    benchmark: Benchmark
    settings: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """An evaluation of the suite: that of the checkpoint and, on the same questions, that of the one before."""

    name: str
    after: Plan
    before: Plan | None


class OneModel:
    """The model of each evaluation, loaded anew only if it is not the one of the evaluation before."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[Any, ...], Generator] | None = None

    def __call__(self, settings: EvalSettings, own_decoding: Mapping[str, Any] | None) -> Generator:
        """See `Generator.load`."""
        from accelerate.utils.memory import clear_device_cache

        from eval.generation import Generator

        which = (settings.ckpt, settings.dtype, settings.device)
        if self._loaded is not None:  # what the evaluation before leaves is free for the batch size of this one
            if self._loaded[0] != which:
                self._loaded = None  # two models may not fit
            clear_device_cache(garbage_collection=self._loaded is None)
        if self._loaded is None:
            self._loaded = which, Generator.load(settings, own_decoding)
        loaded = self._loaded[1]
        return Generator.of(loaded.model, loaded.processor, settings, own_decoding)


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    given, entries = _arguments(argv)

    from eval.run import carry_out  # after the arguments: --help and mistakes are answered at once

    with joined() as processes:
        out, rows = processes.from_main(lambda: _plans(entries, given.ckpt, given.before, given.out))
        plans = [row.after for row in rows] + [row.before for row in rows if row.before is not None]
        model, done = OneModel(), []
        for number, plan in enumerate(plans, start=1):
            folder = plan.evaluation.folder
            say(f"[{number}/{len(plans)}] {plan.evaluation.name}: {os.path.relpath(folder, out)}")
            done.append((carry_out(plan, processes, model), folder))
        processes.on_main(lambda: write_suite(out, summary(out, rows)))
    if not processes.is_main:
        return EXIT_DONE
    print_report(out / "suite.md")
    return max(tell_losses(scores, folder) for scores, folder in done)


def read_entries(file: str, content: Mapping[str, Any]) -> list[Entry]:
    """The evaluations of a configuration.

    Args:
        file: its name.
        content: what it has as `evaluations`.

    Raises:
        Refused: naming every name, key and value that does not fit, and every control that is not the same evaluation
            but for its audio.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    for name, keys in content.items():
        where = f"{file}: {_EVALUATIONS}.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BEFORE:
            remedy = f"Choose letters, digits, _ and -, but not {BEFORE}: it is the name of a folder."
            problems.append(Problem(where, "it cannot have this name", remedy))
        elif not isinstance(keys, dict) or "benchmark" not in keys:
            problems.append(Problem(where, "it names no benchmark", f"Write `benchmark: {'|'.join(BENCHMARKS)}`."))
        else:
            with collecting(problems):
                settings = as_options(keys, _KEYS, where)
                entries.append(Entry(name, BENCHMARKS[settings.pop("benchmark")], settings))
    by_name = {one.name: one for one in entries}
    for control in entries:
        of = by_name.get(control.name.removesuffix(NO_AUDIO))
        if of is not None and of is not control:
            should = of.settings | {"benchmark": of.benchmark.name, "no_audio": True}
            has = control.settings | {"benchmark": control.benchmark.name}
            if wrong := [key for key in should | has if should.get(key) != has.get(key)]:
                what = f"it is not {of.name} without audio: {', '.join(wrong)} would have to be different"
                remedy = f"Give it the keys of {of.name} and `no_audio: true`, or another name."
                problems.append(Problem(f"{file}: {_EVALUATIONS}.{control.name}", what, remedy))
    if problems:
        raise Refused(problems)
    return entries


def _plans(entries: Sequence[Entry], ckpt: str, before: str | None, out: Path | None) -> tuple[Path, list[Row]]:
    """The folder of the suite, and what is to be carried out, all of it checked.

    A parquet file is prepared once, whoever asks it.

    Raises:
        Refused: naming everything that is wrong with checkpoints, data and settings, as far as it can be told; answers
            are withheld; predictions made with other settings are in a folder.
    """
    from eval.run import Checkpoint, check, prepare

    problems: list[Problem] = []
    models: dict[str, Checkpoint] = {}
    for name in filter(None, (ckpt, before)):
        with collecting(problems):
            models[name] = Checkpoint(name)
    if problems:
        raise Refused(problems)
    out = out or models[ckpt].results / "suite"
    prepared: dict[tuple[Any, ...], dict[str, Any]] = {}
    rows = []
    for entry in entries:
        with collecting(problems):
            settings = EvalSettings(ckpt=ckpt, out=out / entry.name, **entry.settings)
            source = (entry.benchmark.name, settings.data, settings.audio_dir)
            settings = replace(settings, **prepared.get(source, {}))
            after = prepare(settings, entry.benchmark, models[ckpt])
            paths = after.evaluation.paths
            found: dict[str, Any] = {
                name: Path(paths[name]) if name in paths else None for name in ("data", "audio_dir")
            }
            if settings.data is not None:
                prepared[source] = found
            problems += with_answers(after.evaluation.questions, paths["data"])
            other = None
            if before:
                same = replace(after.settings, ckpt=before, out=out / BEFORE / entry.name, **found)
                other = prepare(same, entry.benchmark, models[before])
            rows.append(Row(entry.name, after, other))
    if before and not problems and models[before].digest == models[ckpt].digest:
        what = f"{before} is the same model as {ckpt}"
        problems.append(Problem("--before", what, "Give the checkpoint that the training began with, or leave it out."))
    if problems:
        raise Refused(list(dict.fromkeys(problems)))
    for row in rows:
        for plan in filter(None, (row.after, row.before)):
            with collecting(problems):
                check(plan)
    if problems:
        raise Refused(problems)
    return out, rows


def summary(out: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of suite.json, which docs/evaluation.md describes.

    Args:
        out: folder of the suite, which paths are relative to.
        rows: evaluations that have been carried out.
    """
    first = rows[0]
    records = [_record(row, out) for row in rows]
    return {
        "ckpt": first.after.evaluation.name,
        **({} if first.before is None else {BEFORE: first.before.evaluation.name}),
        _EVALUATIONS: records,
        "sentences": list(_sentences(rows, records)),
    }


def write_suite(out: Path, found: Mapping[str, Any]) -> None:
    """Write suite.json, suite.md and suite.html to `out`."""
    with sole_use(out / LOCK, "Choose another --out."):
        write_json(out / "suite.json", found)
        write_atomically(out / "suite.md", render("suite.md.j2", **_shown(found)))
        write_atomically(out / "suite.html", render("suite.html.j2", css=asset("report.css"), **_shown(found)))


def verdict(ci95: Sequence[float]) -> str:
    """What the interval of a difference says: `gained` or `lost`, or `not told apart` if it holds 0."""
    low, high = ci95
    return "gained" if low > 0 else "lost" if high < 0 else "not told apart"


def _record(row: Row, out: Path) -> dict[str, Any]:
    evaluation = row.after.evaluation
    record = {
        "name": row.name,
        "benchmark": evaluation.benchmark.name,
        "questions_of": _questions_of(row.after),
        "data": evaluation.paths["data"],
        "settings": {key: evaluation.settings[key] for key in RECORDED},
        **_figures(row.after, out),
    }
    if row.before is None:
        return record
    (pair,) = compare([_run(row.before), _run(row.after)])["comparisons"]
    return record | {
        BEFORE: _figures(row.before, out),
        "comparison": {"verdict": verdict(pair["total"]["ci95"]), **pair},
    }


def _figures(plan: Plan, out: Path) -> dict[str, Any]:
    """What a checkpoint has reached; `folder` is relative to `out`."""
    evaluation, scores = plan.evaluation, read_json(plan.evaluation.folder / "scores.json", _REMEDY)
    compared = against_published(scores, evaluation.settings, evaluation.benchmark)
    target = None if compared is None else compared.target
    return {
        "folder": os.path.relpath(evaluation.folder, out),
        **{key: scores[key] for key in ("version", "n", "asked", "missing", "unparsed", "total")},
        "chance": scores["baselines"]["chance"],
        "published": None if target is None else {"model": target[0], "accuracy": target[-1]},
        **{key: scores[key] for key in ("blind", "beyond_window") if key in scores},
    }


def _questions_of(plan: Plan) -> str:
    """For people. A file of no known questions is not called by the name of the benchmark whose rule it gets."""
    evaluation = plan.evaluation
    if evaluation.version == "embedded":
        return "the embedded set"
    if not evaluation.benchmark.owns(evaluation.version):
        return Path(evaluation.paths["data"]).name
    return f"{evaluation.benchmark.title}, version {evaluation.version}"


def _run(plan: Plan) -> Run:
    evaluation = plan.evaluation
    questions = {one.id: one for one in evaluation.questions}
    verdicts = read_verdicts(evaluation.folder / "verdicts.jsonl")
    return Run(evaluation.name, evaluation.version, questions, verdicts, dict(evaluation.settings))


def _sentences(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """What has to be said of the figures, beside what every such table says."""
    pairs = {one["name"]: one["comparison"] for one in records if "comparison" in one}
    for word in ("gained", "lost", "not told apart"):
        named = [
            "{} ({:+.2f} points, {:+.2f} to {:+.2f})".format(name, pair["total"]["difference"], *pair["total"]["ci95"])
            for name, pair in pairs.items()
            if pair["verdict"] == word
        ]
        if named:
            yield f"{word[0].upper()}{word[1:]}: {', '.join(named)}."
    for name, pair in pairs.items():
        if others := [key for key in pair["settings"] if key != "checkpoint_sha256"]:
            yield f"{name}: the two were not evaluated alike, but with different {', '.join(others)}."
    for one in records:
        for which, figures in (("", one), (" before", one.get(BEFORE))):
            if figures and figures["missing"]:
                missing = f"{figures['missing']} of {figures['asked']} answers are missing and count as wrong"
                yield f"{one['name']}{which}: {missing}."
        if beyond := one.get("beyond_window"):
            yield f"{one['name']}: of {len(beyond)} questions the clip was not heard to its end."
    yield from dict.fromkeys(f"{part}." for row in rows if (part := row.after.evaluation.benchmark.part))


def _shown(found: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the templates: `pairs` by name; `reach`, the farthest that one of their intervals goes from 0; `alike`,
    the settings that all evaluations have, and the names of the others, `varied`."""
    pairs = {one["name"]: one["comparison"] for one in found[_EVALUATIONS] if "comparison" in one}
    bounds = [abs(bound) for pair in pairs.values() for bound in pair["total"]["ci95"]]
    settings = [one["settings"] for one in found[_EVALUATIONS]]
    varied = list(settings_that_differ(settings))
    alike = {key: value for key, value in settings[0].items() if key not in varied}
    return {**found, "pairs": pairs, "reach": max([1.0, *bounds]), "alike": alike, "varied": varied}


def _arguments(argv: Sequence[str]) -> tuple[Namespace, list[Entry]]:
    """The options, of the command line or else of the configuration, and the evaluations that are asked for.

    Raises:
        Refused: the configuration cannot be read, or something in it does not fit.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    content = read_yaml(given.config)
    evaluations = content.pop(_EVALUATIONS, None)
    problems: list[Problem] = []
    with collecting(problems):
        parser.set_defaults(**as_options(content, _OPTIONS, given.config))
    entries = []
    if not isinstance(evaluations, dict) or not evaluations:
        remedy = f"Write `{_EVALUATIONS}:` and below it a name and the keys of each."
        problems.append(Problem(given.config, "there are no evaluations", remedy))
    else:
        with collecting(problems):
            entries = read_entries(given.config, evaluations)
        if unknown := [name for name in given.only or () if name not in evaluations]:
            what = f"there is no evaluation {', '.join(unknown)}"
            problems.append(Problem("--only", what, f"Choose among {', '.join(map(str, evaluations))}."))
    if problems:
        raise Refused(problems)
    given = parser.parse_args(argv)
    if not given.ckpt:
        parser.error("the following arguments are required: --ckpt")
    return given, [one for one in entries if given.only is None or one.name in given.only]


def _parser() -> Options:
    parser = Options(__doc__, "python -m eval.suite")
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="YAML file of the evaluations")
    add("--ckpt", metavar="CKPT", help="checkpoint folder, folder of a LoRA adapter, or hub id")
    add("--before", metavar="CKPT", help="the same before training, to be compared with")
    where = "where to write (default: CKPT/eval/suite, of a hub id below runs/eval)"
    add("--out", type=output_folder, metavar="DIR", help=where)
    add("--only", type=lambda text: text.split(","), metavar="NAME,...", help="these evaluations alone, also in tables")
    return parser


if __name__ == "__main__":
    main()
