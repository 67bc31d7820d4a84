"""A study's bundle: what everybody needs to check its report, without audio, weights or a GPU.

`collect` copies predictions, settings, configurations and records out of a study's folder, `seal` adds every figure
that follows from them and the SHA-256 of every file. docs/evaluation.md says what lies where.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.evaluation import is_complete
from eval.predictions import CLIPS, PREDICTIONS, SETTINGS
from eval.reproduction.figures import compute
from eval.reproduction.reading import (
    AFTER,
    BASE,
    CHOSEN,
    CONFIG,
    COST,
    DATA,
    EVALUATIONS,
    HELD_OUT,
    LOG,
    ON_TEST,
    QUESTIONS,
    RUN,
    STUDY,
    SUITE,
    TEST,
    TRAININGS,
    place_of,
    read_study,
)
from eval.suite import BEFORE
from eval.text_run import trainer_log
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import read_json, sha256_of, unreadable, whole_folder, write_json, write_lines

FORMAT = 1
BUNDLE, FIGURES, SEAL = "bundle", "figures.json", "bundle.json"
COMPUTED_WITH = ("numpy", "scipy")  # what the last digits of intervals depend on
_AGAIN = "Run the stage that makes it again."
_NO_SEAL = "Give the folder of a bundle, as a study seals it."


def collect(out: Path) -> Path:
    """Make the bundle of a study in OUT/bundle, in place of one that is there, and return its folder.

    What a study has not done is not in it. Every evaluation that is there has to be complete.

    Args:
        out: folder of the study.

    Raises:
        Refused: study.json is damaged; naming every evaluation that is not complete, or whose questions are gone or
            have changed.
        Failed: the bundle could not be written.
    """
    study = read_study(out / STUDY)
    collected = _Collected(out)
    for name in (STUDY, f"{DATA}/split.json", f"{DATA}/overlap.json"):
        collected.copy(out / name, name)
    for row in study.rows:
        for seed in study.seeds_of(row.name):
            place = place_of(row.name, seed)
            folder = out / place if row.name == BASE else out / "arms" / place
            _collect_row(collected, folder, place)
    _collect_suite(collected, out / SUITE)
    if collected.problems:
        raise Refused(collected.problems)
    bundle = out / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    with whole_folder(bundle) as folder:
        collected.write(folder)
    return bundle


class _Collected:
    """What goes into a bundle: by path in it the file that it is copied from, or records that become its lines."""

    def __init__(self, out: Path):
        self.out = out
        self.files: dict[str, Path] = {}
        self.lines: dict[str, list[Any]] = {}
        self.problems: list[Problem] = []
        self._questions: dict[str, str] = {}  # path in the bundle by SHA-256

    def copy(self, source: Path, target: str) -> None:
        """Take a file, if it is there."""
        if source.is_file():
            self.files[target] = source

    def evaluation(self, folder: Path, place: str, questions: str) -> None:
        """Take an evaluation, and its questions under this name if no other has brought them."""
        if not is_complete(folder):
            self.problems.append(Problem(str(folder), "the evaluation is not complete", _AGAIN))
            return
        content = read_json(folder / SETTINGS, _AGAIN)
        digest, paths = content["settings"].get("data_sha256"), content.get("paths")
        data = Path(str(paths.get("data") if isinstance(paths, dict) else None))
        if digest not in self._questions:
            target = f"{QUESTIONS}/{questions}.jsonl"
            if unreadable(data) is not None or sha256_of(data) != digest:
                what = f"its questions in {data} are gone or have changed since"
                self.problems.append(Problem(str(folder), what, _AGAIN))
                return
            if target in self.files:
                what = f"it is on other questions than {self.files[target]}, which the evaluations before it are on"
                self.problems.append(Problem(str(folder), what, _AGAIN))
                return
            self._questions[digest], self.files[target] = target, data
            self.copy(folder / CLIPS, f"{QUESTIONS}/{questions}.{CLIPS}")
        for name in (PREDICTIONS, SETTINGS):
            self.files[f"{EVALUATIONS}/{place}/{name}"] = folder / name

    def write(self, folder: Path) -> None:
        for target, source in self.files.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / target)
        for target, records in self.lines.items():
            write_lines(folder / target, records)


def _collect_row(collected: _Collected, folder: Path, place: str) -> None:
    """One seed of an arm, or the base."""
    for path in sorted(folder.glob(f"{TEST}*")):
        if path.is_dir():
            collected.evaluation(path, f"{place}/{path.name}", TEST)
    for which, questions in ((HELD_OUT, HELD_OUT), (ON_TEST, TEST)):
        with collecting(collected.problems):
            for name, evaluated in _points(folder / which):
                collected.evaluation(evaluated, f"{place}/{which}/{name}", questions)
    collected.copy(folder / CHOSEN, f"{EVALUATIONS}/{place}/{CHOSEN}")
    training = f"{TRAININGS}/{place}"
    for name in (CONFIG, RUN):
        collected.copy(folder / "run" / name, f"{training}/{name}")
    collected.copy(folder / COST, f"{training}/{COST}")
    with collecting(collected.problems):
        logged = trainer_log(folder / "run")
        if logged is not None:
            collected.lines[f"{training}/{LOG}"] = logged


def _collect_suite(collected: _Collected, folder: Path) -> None:
    file = folder / "suite.json"
    if not file.is_file():
        return
    with collecting(collected.problems):
        evaluations = read_json(file, _AGAIN).get("evaluations")
        names = [one.get("name") for one in evaluations if isinstance(one, dict)] if evaluations else []
        for name in map(str, names):
            collected.evaluation(folder / name, f"{SUITE}/{AFTER}/{name}", name)
            if (folder / BEFORE / name).is_dir():
                collected.evaluation(folder / BEFORE / name, f"{SUITE}/{BEFORE}/{name}", name)


def _points(sweep: Path) -> list[tuple[str, Path]]:
    """Name and evaluation of every checkpoint of a sweep; none if there is no sweep. A sweep takes evaluations over
    from elsewhere, and tells where they are."""
    if not (sweep / "sweep.json").is_file():
        return []
    points = read_json(sweep / "sweep.json", _AGAIN).get("points")
    try:
        return [(str(point["name"]), sweep / point["folder"]) for point in points or ()]
    except (TypeError, KeyError):
        raise Refused.because(str(sweep / "sweep.json"), "it is damaged", _AGAIN) from None


def seal(bundle: Path) -> None:
    """Compute the figures of a bundle and write figures.json, then bundle.json, which names every file with its
    SHA-256. The same files give the same bytes.

    Raises:
        Refused: see `figures.compute`.
    """
    (bundle / SEAL).unlink(missing_ok=True)
    figures = compute(bundle)
    write_json(bundle / FIGURES, figures)
    content = {
        "format": FORMAT,
        "name": figures["name"],
        "rehearsed": figures["status"] == "rehearsed",
        "computed_with": versions(),
        "files": {name: sha256_of(bundle / name) for name in files_in(bundle)},
    }
    write_json(bundle / SEAL, content)


def versions() -> dict[str, str]:
    """Of the libraries that compute intervals."""
    return {name: version(name) for name in COMPUTED_WITH}


def files_in(bundle: Path) -> list[str]:
    """Every file of a bundle but bundle.json, by its path there, in their order."""
    found = [
        (Path(folder) / name).relative_to(bundle).as_posix() for folder, _, names in os.walk(bundle) for name in names
    ]
    return sorted(name for name in found if name != SEAL)


def read_seal(bundle: Path) -> dict[str, Any]:
    """The content of bundle.json.

    Raises:
        Refused: it is absent or damaged, or of a later format.
    """
    content = read_json(bundle / SEAL, _NO_SEAL)
    files = content.get("files")
    if content.get("format") != FORMAT:
        what = f"its format is {content.get('format')!r:.60}, this version reads {FORMAT}"
        raise Refused.because(str(bundle / SEAL), what, "Take the version of this project that sealed it.")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise Refused.because(str(bundle / SEAL), "it does not name the files of the bundle", _NO_SEAL)
    return content


def changes_in(bundle: Path, sealed: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of the files that are `changed`, `missing` and `additional` against those sealed, {path: SHA-256}."""
    there = files_in(bundle)
    return {
        "changed": [name for name in there if name in sealed and _digest(bundle / name) != sealed[name]],
        "missing": sorted(set(sealed) - set(there)),
        "additional": [name for name in there if name not in sealed],
    }


def _digest(path: Path) -> str | None:
    """None of what is no readable file."""
    return None if unreadable(path) is not None else sha256_of(path)
