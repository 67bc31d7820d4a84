"""Make multiple-choice questions of any collection of labelled clips: train, held_out, and a part a held-out source.

    python -m data_prep.labelled --table clips.csv --audio clips/ --out data/clips --seconds 3
    python -m data_prep.labelled --preset esc50 --table meta/esc50.csv --audio audio/ --out data/esc50

Each part is a folder with manifest.jsonl, audio/ and prep_report.json, like those of the other preparations. The
account of the table's rows, and what a guess without listening scores, are in DIR/prep_report.json. Which recordings
are held out does not depend on --seed: other seeds draw other questions. A CSV without a preset has columns for path
and label, and may have family, recording, source, task and licence. The same command goes on with a preparation that
was interrupted.

Exit codes: 0 done; 1 failed, such as on a full disk, and what was done is kept; 2 refused, and nothing is written: a
bad table, families that cannot be asked about, questions that can be guessed; 3 done, but less than --min-kept of the
questions was kept; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_prep.folder import REMEDY, REPORT, SETTINGS, Account, check_own
from data_prep.label_files import usable, without_twins
from data_prep.label_questions import (
    CHOICES,
    Blind,
    Drawing,
    Parts,
    Source,
    blind_baselines,
    divide,
    draw,
    recordings_of_labels,
    without_rare,
)
from data_prep.label_tables import PRESETS, LabelledClip, csv_layout, read_clips
from data_prep.media import MAX_SECONDS, MIN_SECONDS, Excerpt
from data_prep.media_index import unreadable_folder
from data_prep.pipeline import Making, Record, Report, add_preparation_arguments, prepare, safe_stem
from data_prep.split import HELD_OUT, TRAIN
from r1_aqa_repro.common.claim import claim
from r1_aqa_repro.common.console import Options, not_negative, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, EXIT_LOSSES, Problem, Refused, command, failing_plainly
from r1_aqa_repro.common.files import LOCK, sha256_of, sole_use, unreadable, write_json
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.data.yaml_file import read_yaml

QUESTIONS = Path(__file__).with_name("labelled_questions.yaml")
ANY_FAMILY = "default"
NOT_ASKED_FOR = "not asked for"

_COLUMNS = {
    "path": "the clip's path below --audio",
    "label": "what is heard",
    "family": "what kind of label it is, such as instrument; a question's choices are of one family",
    "recording": "what the clip was cut from, such as a speaker or a take: clips of one are never in two parts",
    "source": "where the recording comes from",
    "task": "speech, sound or music",
    "licence": "of the clip",
}


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    account, parts, asked, blind, drawing = _drawn(arguments)
    out, settings = arguments.out, _settings(arguments, drawing)
    making = replace(Making.of(arguments), seconds=arguments.seconds)
    facts = {part: _facts(part, parts[part], asked[part], blind) for part in asked}
    reports = {}
    with sole_use(out / LOCK, REMEDY), failing_plainly(out, "Mend that and give the same command again."):
        check_own(out, settings, [out / REPORT])
        claim(out / SETTINGS, settings, REMEDY)
        for part, questions in asked.items():
            say(f"{part}: {len(questions):,} questions about {len({q.audio_path for q in questions}):,} clips")
            records = (_record(question, arguments.audio, making) for question in questions)
            reports[part] = prepare(records, out / safe_stem(part), making, settings, len(questions))
        write_json(out / REPORT, {**asdict(account), "comparisons": len(blind), "parts": facts})
    say(f"{account.kept:,} of {account.records_in:,} rows can be asked about")
    for line in account.losses(out):
        say(line)
    for part, report in reports.items():
        say(report.summary(out / safe_stem(part)))
    for line in _table(facts, len(blind)):
        say(line)
    total = Report(sum(one.records_in for one in reports.values()), sum(one.kept for one in reports.values()))
    return EXIT_DONE if total.keeps(arguments.min_kept) else EXIT_LOSSES


def check(argv: Sequence[str]) -> None:
    """Do all that the command of these arguments does before it writes anything: for what makes clips later.

    Raises:
        Refused: the command would refuse the table, the folder, or what it is to ask.
    """
    _drawn(_parser().parse_args(argv))


def _drawn(
    arguments: argparse.Namespace,
) -> tuple[Account, Parts, dict[str, list[AudioQuestion]], dict[tuple[str, str], Blind], Drawing]:
    """The account of the rows, the clips and the questions of each part, what guesses score, how it was drawn.

    Raises:
        Refused: see `check`.
    """
    _check_paths(arguments)
    dataset = arguments.preset or arguments.table.stem
    layout = PRESETS.get(arguments.preset) or csv_layout(arguments.table, _named_columns(arguments), dataset)
    account = Account()
    listed = read_clips(arguments.table, arguments.audio, layout, account)
    _check_names(arguments, listed)
    templates = _templates(arguments.questions, {clip.family for clip in listed})
    there = usable(listed, arguments.audio, arguments.workers, account)
    clips = without_twins(there, arguments.audio, arguments.workers, account)
    train, held_out, minimum = arguments.train_parts, arguments.held_out_parts, arguments.min_recordings
    parts = divide(clips, arguments.hold_out, train, held_out, arguments.hold_out_source, minimum, account)
    asked_for = {part: _asked_for(of_part, arguments, account) for part, of_part in parts.items()}
    parts = without_rare(asked_for, train, held_out, minimum, arguments.choices, account)
    _require_questions(arguments, asked_for, parts, account)
    account.kept = sum(map(len, parts.values()))
    drawing = Drawing(
        seed=arguments.seed,
        train_parts=train,
        choices=arguments.choices,
        templates=templates,
        per_family=arguments.per_family,
        held_out_per_family=arguments.held_out_per_family,
        questions_a_clip=arguments.questions_a_clip,
        dataset=dataset,
    )
    drawn = {part: draw(part, of_part, drawing) for part, of_part in parts.items()}
    asked = {part: questions for part, questions in drawn.items() if questions}
    blind = blind_baselines(asked, train)
    _refuse_biased(blind)
    return account, parts, asked, blind, drawing


def _asked_for(clips: Iterable[LabelledClip], arguments: argparse.Namespace, account: Account) -> list[LabelledClip]:
    """The clips that --families and --labels leave; the others are noted."""
    wanted = []
    for clip in clips:
        labels = arguments.labels.get(clip.family)
        if arguments.families and clip.family not in arguments.families:
            account.lose(clip.where, NOT_ASKED_FOR, f"--families leaves out {clip.family}")
        elif labels is not None and clip.label not in labels:
            account.lose(clip.where, NOT_ASKED_FOR, f"--labels leaves out {clip.label} of the family {clip.family}")
        else:
            wanted.append(clip)
    return wanted


def _record(question: AudioQuestion, audio: Path, making: Making) -> Record:
    """The record of a question whose clip's path is still the one in the table."""
    path = question.audio_path
    stem = safe_stem(os.path.splitext(path.as_posix())[0])
    return Record(question, Excerpt(audio / path, seconds=making.seconds), stem)


def _templates(file: Path, families: set[str]) -> dict[str, list[str]]:
    """The questions that are asked about each family.

    Raises:
        Refused: the file cannot be read, has a question that is no text, none for a family, or, unless it is the
            project's own, one for a family that there is not.
    """
    remedy = "Write `family: question`, or a list of questions."
    read = {str(family): asked if isinstance(asked, list) else [asked] for family, asked in read_yaml(file).items()}
    problems = [
        Problem(f"{file}: {family}", "it is no text that asks something", remedy)
        for family, asked in read.items()
        if not asked or not all(isinstance(one, str) and one.strip() for one in asked)
    ]
    problems += [
        Problem(f"{file}: {family}", "the table has no such family", f"Its families are {listing(sorted(families))}.")
        for family in read
        if file != QUESTIONS and family not in families and family != ANY_FAMILY
    ]
    problems += [
        Problem(str(file), f"it has no question for {family}, and no {ANY_FAMILY}", remedy)
        for family in sorted(families)
        if ANY_FAMILY not in read and family not in read
    ]
    if problems:
        raise Refused(problems)
    return {family: read[family] if family in read else read[ANY_FAMILY] for family in families}


def _check_paths(arguments: argparse.Namespace) -> None:
    """Refuse, all at once, what is not there or does not go together."""
    problems = []
    table, preset = arguments.table, arguments.preset
    if (reason := unreadable_folder(arguments.audio)) is not None:
        problems.append(Problem(str(arguments.audio), reason, "Give the folder that holds the clips."))
    if preset and PRESETS[preset].files:
        if table:
            what = f"{preset} has no table: its folders tell the labels"
            problems.append(Problem(f"--table {table}", what, "Leave it out."))
    elif table is None:
        problems.append(Problem("--table", "it is not given", "Give the CSV file that names the clips."))
    elif (reason := unreadable(table)) is not None:
        problems.append(Problem(str(table), reason, "Give the CSV file that names the clips."))
    if preset and (named := [name for name, column in _named_columns(arguments).items() if column]):
        what = f"--{named[0]}-column is given beside it, which names the columns"
        problems.append(Problem(f"--preset {preset}", what, "Leave one of them out."))
    folders: list[str] = []
    for option, parts in (("--train-parts", arguments.train_parts), ("--held-out-parts", arguments.held_out_parts)):
        for name in parts:
            if safe_stem(name) in folders:
                what = "its folder would be one of another part"
                problems.append(Problem(f"{option} {name}", what, "Give it another name."))
            folders.append(safe_stem(name))
    for source in arguments.hold_out_source:
        if safe_stem(source.name) in folders:
            what = "its folder would be one of another part"
            problems.append(Problem(f"--hold-out-source {source.name}", what, "Rename the source in the table."))
    if problems:
        raise Refused(problems)


def _check_names(arguments: argparse.Namespace, clips: Sequence[LabelledClip]) -> None:
    """Refuse families, labels and sources that no clip has."""
    families = sorted({clip.family for clip in clips})
    problems = [
        Problem(f"{option} {family}", "no clip is of that family", f"The families are {listing(families)}.")
        for option, named in (("--families", arguments.families), ("--labels", arguments.labels))
        for family in named
        if family not in families
    ]
    for family, labels in arguments.labels.items():
        known = sorted({clip.label for clip in clips if clip.family == family})
        problems += [
            Problem(f"--labels {family}", f"no clip is labelled {label!r}", f"Its labels are {listing(known)}.")
            for label in sorted(labels.difference(known))
            if known
        ]
    for source in arguments.hold_out_source:
        if not any(map(source.has, clips)):
            known = sorted({clip.source for clip in clips if source.family in (None, clip.family)})
            remedy = f"The sources are {', '.join(known) or 'none'}."
            problems.append(Problem(f"--hold-out-source {source}", "no clip is of it", remedy))
    if problems:
        raise Refused(problems)


def _require_questions(arguments: argparse.Namespace, asked_for: Parts, parts: Parts, account: Account) -> None:
    """Refuse if nothing is left to ask about: in training, of a family that --families names, or of a source."""
    train = arguments.train_parts
    left = set[str].intersection(*({clip.family for clip in parts[part]} for part in train))
    names = arguments.families or ({clip.family for part in train for clip in asked_for[part]} if not left else ())
    reasons = ", ".join(f"{reason}: {len(lost):,}" for reason, lost in account.dropped.items())
    problems = [
        Problem(
            f"family {family}",
            f"it has fewer than {arguments.choices} labels of {arguments.min_recordings} recordings, and a question "
            f"has {arguments.choices} choices (of {account.records_in:,} rows there are left out: {reasons})",
            "Give a smaller --min-recordings or --choices, or more clips.",
        )
        for family in sorted(set(names) - left)
    ]
    if not left and not problems:
        what = f"of {account.records_in:,} rows none is left to train on ({reasons})"
        remedy = "Hold out fewer sources, or mend the table."
        problems = [Problem(str(arguments.table or arguments.audio), what, remedy)]
    if left:
        problems += [
            Problem(
                f"--hold-out-source {source}",
                f"no family has {arguments.choices} labels there that are asked about in training",
                "Hold out another one, leave it out, or give a smaller --choices.",
            )
            for source in arguments.hold_out_source
            if not any(map(source.has, parts[source.name]))
        ]
    if problems:
        raise Refused(problems)


def _refuse_biased(blind: Mapping[tuple[str, str], Blind]) -> None:
    problems = [
        Problem(
            f"{part}, {family}",
            f"{one.correct:,} of {one.n:,} questions can be guessed from their choices, {one.correct / one.n:.1%} "
            f"(at least {one.interval[0]:.1%}), where chance gives {one.chance:.1%}",
            "Give another --seed.",
        )
        for (part, family), one in blind.items()
        if one.is_biased
    ]
    if problems:
        raise Refused(problems)


def _facts(
    part: str, clips: Sequence[LabelledClip], questions: Sequence[AudioQuestion], blind: Mapping[tuple[str, str], Blind]
) -> dict[str, Any]:
    """What the account says of a part, by family: what there is to ask about, and what was asked."""
    facts = {}
    for family in sorted({str(question.category) for question in questions}):
        recordings = recordings_of_labels(clip for clip in clips if clip.family == family)
        of_family = [question for question in questions if question.category == family]
        facts[family] = {
            "labels": len(recordings),
            "recordings": len(set().union(*recordings.values())),
            "clips": len({clip.path for clip in clips if clip.family == family}),
            "clips_asked_about": len({question.audio_path for question in of_family}),
            "questions": len(of_family),
            "blind": blind[part, family].facts(),
        }
    return facts


def _table(facts: Mapping[str, Mapping[str, Any]], comparisons: int) -> list[str]:
    """A line for each family of each part, for the person at the terminal."""
    lines = [f"guessed from the choices alone, with the 99.9 % interval of {comparisons} figures together:"]
    for part, families in facts.items():
        for family, one in families.items():
            low, high = one["blind"]["interval"]
            lines.append(
                f"  {part}, {family}: {one['questions']:,} questions about {one['clips_asked_about']:,} of "
                f"{one['clips']:,} clips ({one['labels']:,} labels, {one['recordings']:,} recordings); guessed "
                f"{one['blind']['accuracy']:.1%} ({low:.1%} to {high:.1%}), chance {one['blind']['chance']:.1%}"
            )
    return lines


def _settings(arguments: argparse.Namespace, drawing: Drawing) -> dict[str, Any]:
    """What the questions depend on."""
    table = arguments.table
    return {
        "command": "data_prep.labelled",
        "table": f"{table.name}, sha256 {sha256_of(table)}" if table else None,
        "preset": arguments.preset,
        "columns": _named_columns(arguments),
        **asdict(drawing),
        "families": sorted(arguments.families),
        "labels": {family: sorted(labels) for family, labels in arguments.labels.items()},
        "min_recordings": arguments.min_recordings,
        "hold_out": arguments.hold_out,
        "held_out_parts": arguments.held_out_parts,
        "hold_out_source": [asdict(source) for source in arguments.hold_out_source],
    }


def _named_columns(arguments: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(arguments, f"{name}_column") for name in _COLUMNS}


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to below 1")
    return share


def _seconds(text: str) -> float:
    seconds = float(text)
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not from {MIN_SECONDS} to {MAX_SECONDS:.0f} seconds")
    return seconds


def _source(text: str) -> Source:
    family, equals, name = text.rpartition("=")
    if not name or (equals and not family):
        raise argparse.ArgumentTypeError(f"{text!r} is no SOURCE or FAMILY=SOURCE")
    return Source(name, family or None)


def listing(names: Iterable[str]) -> str:
    """Names as --families and --labels take them, and as they are shown: a line of a CSV file."""
    quotes = '"'
    quoted = (f'"{name.replace(quotes, 2 * quotes)}"' if {",", quotes} & set(name) else name for name in names)
    return ", ".join(quoted)


def _listed(text: str) -> list[str]:
    try:
        cells = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error:
        cells = []
    if names := [cell.strip() for cell in cells if cell.strip()]:
        return names
    raise argparse.ArgumentTypeError(f"{text!r} is no NAME,... with names that hold a comma in double quotes")


class _Labels(argparse.Action):
    """Gathers FAMILY=LABEL,LABEL,... as {family: labels as they are shown}."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        family, _, listed = values.partition("=")
        try:
            labels = {label.replace("_", " ") for label in _listed(listed)}
        except argparse.ArgumentTypeError:
            what = "is no FAMILY=LABEL,LABEL,... with labels that hold a comma in double quotes"
            parser.error(f"argument {option}: {values!r} {what}")
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, {**before, family: before.get(family, set()) | labels})


def _parser() -> Options:
    parser = Options(__doc__, "python -m data_prep.labelled")
    add = parser.add_argument
    add("--table", type=Path, metavar="FILE", help="the CSV file that names the clips, or what the preset has")
    add("--audio", type=Path, required=True, metavar="DIR", help="the folder that the clips' paths are below")
    add("--preset", choices=sorted(PRESETS), help="the published layout of a collection")
    for name, text in _COLUMNS.items():
        add(f"--{name}-column", metavar="NAME", help=f"{text} (default: {name})")
    add("--families", type=_listed, default=[], metavar="NAME,...", help="ask about these only")
    add("--labels", action=_Labels, default={}, metavar="FAMILY=LABEL,...", help="ask about these of a family only")
    add("--min-recordings", type=positive, default=5, metavar="N",
        help="leave out labels with fewer recordings (default: 5)")  # fmt: skip
    add("--choices", type=int, choices=CHOICES, default=4, metavar="N", help="of a question, 2 to 8 (default: 4)")
    add("--questions", type=Path, default=QUESTIONS, metavar="YAML",
        help="what is asked about each family (default: the project's labelled_questions.yaml)")  # fmt: skip
    add("--per-family", type=positive, metavar="N",
        help="questions a family in each part to train on (default: as many as it has clips there)")  # fmt: skip
    add("--held-out-per-family", type=not_negative, metavar="N",
        help="the same in each other part, at most; 0 makes no other part (default: as many as --questions-a-clip "
        "gives)")  # fmt: skip
    add("--questions-a-clip", type=positive, default=2, metavar="N",
        help="how often a clip that is held out is asked about, at most (default: 2)")  # fmt: skip
    add("--hold-out", type=_share, default=0.2, metavar="SHARE", help="of each label's recordings (default: 0.2)")
    add("--train-parts", type=_listed, default=[TRAIN], metavar="NAME,...", help="dividing what is trained on, each "
        "label alike: for stages that learn from other recordings (default: train)")  # fmt: skip
    add("--held-out-parts", type=_listed, default=[HELD_OUT], metavar="NAME,...", help="dividing what is held out, "
        "each label alike: one to tune on, one to report (default: held_out)")  # fmt: skip
    add("--hold-out-source", type=_source, action="append", default=[], metavar="[FAMILY=]SOURCE",
        help="a source that becomes a part of its own, in one family or in all; may be given again")  # fmt: skip
    add("--seconds", type=_seconds, metavar="S", help="cut clips after this long, and fill shorter ones up with "
        "silence: length may tell the answer (default: each keeps its own)")  # fmt: skip
    add("--seed", type=not_negative, default=0, metavar="N", help="of the questions (default: 0)")
    add_preparation_arguments(parser)
    return parser


if __name__ == "__main__":
    main()
