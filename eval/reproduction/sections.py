"""A study's figures as sections of sentences and tables, the same for report.md and report.html.

What the paper has published stands beside a figure of the study only if both are of the same questions and the study
was no rehearsal. What was not run is said to be so in every cell that would hold its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.benchmarks import MMAU
from eval.report.rendering import interval, sample
from eval.reproduction.findings import NOT_RUN, PAPER
from eval.reproduction.reading import BASE

Figures = Mapping[str, Any]
REHEARSED = "rehearsed"  # status of whatever a rehearsal has done
ON_EMBEDDED = "Rehearsed on the embedded set"


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first of each names it. `texts` are the columns that hold no figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """A heading, sentences before its tables, and sentences after them; `id` is what the page links it by."""

    id: str
    title: str
    before: Sequence[str] = ()
    tables: Sequence[Table] = ()
    after: Sequence[str] = ()


def is_rehearsed(figures: Figures) -> bool:
    """Whether model, data and step counts were replaced by embedded ones."""
    return bool(figures["status"] == REHEARSED)


def why_not_compared(figures: Figures) -> str:
    """Why the paper's figures may not stand beside these; empty if they may."""
    theirs, here = MMAU.versions[0], figures["version"]
    if is_rehearsed(figures):
        return (
            "The study's figures are of an embedded model on embedded questions: none may be read beside the paper's."
        )
    if here != theirs.name:
        return (
            f"The paper's figures are on version {theirs.name} of MMAU test-mini, these on version {here}: the two are "
            "not compared."
        )
    if (asked := figures["questions"]["n"]) != theirs.questions:
        return (
            f"The paper's figures are on all {theirs.questions:,} questions, these on {asked:,}: they are not compared."
        )
    return ""


def labels_of(figures: Figures) -> Sequence[str]:
    """The tasks, or other labels of the benchmark's first group, that accuracies stand by."""
    [labels] = figures["labels"].values()
    return labels


def percent(value: Any) -> str:
    """An accuracy with two decimals; of what could not be read, the words for it; nothing for None."""
    return shown(value, "{:.2f}".format)


def points(value: Any) -> str:
    """A difference in points, with its sign."""
    return shown(value, "{:+.2f}".format)


def around(ci95: Sequence[float] | None) -> str:
    """The interval of a difference."""
    return "" if ci95 is None else "{:+.2f} to {:+.2f}".format(*ci95)


def shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """A value as a text, or the status that stands in place of one."""
    if isinstance(value, Mapping):
        return str(value["status"])
    return "" if value is None else form(value)


def was_run(block: Any) -> bool:
    """Whether a block of figures holds any."""
    return isinstance(block, Mapping) and block.get("status") not in (None, NOT_RUN)


def unless_run(block: Any, what: str) -> list[str]:
    """The sentence that stands in place of a block without figures."""
    if was_run(block):
        return []
    why = block.get("why") if isinstance(block, Mapping) else None
    return [f"{what}: {NOT_RUN}." + (f" {why}" if why else "")]


def introduction(figures: Figures) -> list[str]:
    """What has to be known of all figures."""
    asked, seeds = figures["questions"], figures["seeds"]
    learned = [f"{asked[key]:,} {what}" for key, what in _SPLITS.items() if asked.get(key) is not None]
    trained = f", {' and '.join(learned)}" if learned else ""
    return [
        f"{_questions_of(figures)}: {sample(asked)}{trained}. Seeds: {', '.join(seeds)}.",
        f"Matcher: {figures['matcher']}, MMAU's own rule. Missing and unparsed answers count as wrong. Guessing gives "
        f"{percent(figures['chance'])} %.",
        *_decoding(figures["table"]),
        "Intervals are at 95 %. That of a mean is a bootstrap over questions (over clips, where several questions "
        "share one), each with its mean over the seeds; differences are paired, question by question and seed by seed. "
        "Seeds are fixed in both: how much another training would differ is the sample standard deviation over seeds, "
        "±.",
    ]


_SPLITS = {"train": "training questions", "held_out": "held-out questions to choose checkpoints by"}


def _questions_of(figures: Figures) -> str:
    return "The embedded set, not MMAU" if is_rehearsed(figures) else f"MMAU test-mini, version {figures['version']}"


def _decoding(rows: Sequence[Figures]) -> list[str]:
    """How answers were generated: in one sentence if all rows were asked alike, but for their prompts."""
    asked: dict[str, list[str]] = {}
    said = []
    for row in filter(was_run, rows):
        settings = row["settings"]
        times = settings.get("repeats") or 1
        how = f"{settings.get('decoding')}, at most {settings.get('max_new_tokens')} tokens, {times} answer"
        asked.setdefault(how + ("s" if times != 1 else "") + " a question", []).append(row["label"])
        if differing := row.get("settings_differ"):
            said.append(
                f"{row['label']}: the seeds were not evaluated alike, but with different {', '.join(differing)}."
            )
    if len(asked) == 1:
        return [f"Decoding of all rows: {next(iter(asked))}.", *said]
    return [*(f"Decoding of {', '.join(labels)}: {how}." for how, labels in asked.items()), *said]


def papers_table(figures: Figures) -> Section:
    """The paper's table with the study's rows, or beside it if the two may not be compared."""
    columns = MMAU.columns
    rows = figures["table"]
    heads = [*columns, "average"]
    published = {
        row["row"]: [percent((row["published"] or {}).get(key)) for key in (*columns, "total")] for row in rows
    }
    after = [_PUBLISHED, *_chosen_otherwise(rows)]
    why = why_not_compared(figures)
    if not why:
        both = ["paper: " + head for head in heads] + ["here: " + head for head in heads]
        table = Table(
            ["", *both, *_SPREAD],
            [[row["label"], *published[row["row"]], *_means(row, columns), *_spread(row)] for row in rows],
        )
        return Section(
            "table", "The paper's table", tables=[table, _over_base(figures), _by_seed(figures)], after=after
        )
    labels, where = labels_of(figures), REHEARSED if is_rehearsed(figures) else "not compared"
    theirs = Table(
        ["", *("paper: " + head for head in heads), "this study"],
        [[row["label"], *published[row["row"]], where if was_run(row) else NOT_RUN] for row in rows],
        texts=frozenset({0, len(heads) + 1}),
    )
    ours = Table(
        ["", *labels, "average", *_SPREAD],
        [[row["label"], *_means(row, labels), *_spread(row)] for row in rows],
        ON_EMBEDDED if is_rehearsed(figures) else f"This study, version {figures['version']}",
    )
    return Section("table", "The paper's table", [why], [theirs, ours, _over_base(figures), _by_seed(figures)], after)


def _chosen_otherwise(rows: Sequence[Figures]) -> list[str]:
    """What has to be said of seeds whose tested checkpoint is not the one that the held-out questions choose."""
    seeds = [(row["label"], seed, one) for row in rows for seed, one in (row.get("seeds") or {}).items()]
    return [
        f"{label}, seed {seed}: {what.format(one['chosen'])}."
        for key, what in _OTHERWISE.items()
        for label, seed, one in seeds
        if one.get(key) is False
    ]


_OTHERWISE = {
    "chosen_is_best": "{} is not the best on the held-out questions",
    "chosen_is_tested": "the test was asked with other weights than those of {}",
}


def _over_base(figures: Figures) -> Table:
    """What every arm gained over the model before training."""
    rows = []
    for row in figures["table"][1:]:
        cells = [NOT_RUN] * 4
        if (gain := row.get("over_base")) is not None:
            cells = [
                points(gain["difference"]),
                around(gain["ci95"]),
                f"{gain['second_only']}",
                f"{gain['first_only']}",
            ]
        rows.append([row["label"], *cells])
    columns = ["", "difference, points", "95 % interval", "better on", "worse on"]
    return Table(columns, rows, _titled(figures, "minus the model before training"))


def _titled(figures: Figures, what: str) -> str:
    """The title of a table of the study's own figures."""
    return f"{ON_EMBEDDED}, {what}" if is_rehearsed(figures) else f"{what[0].upper()}{what[1:]}"


_SPREAD = ("95 % interval", "± seeds", "seeds")
_PUBLISHED = (
    f"Paper: {PAPER}; accuracies in percent on MMAU test-mini, version {MMAU.versions[0].name}, 1,000 questions."
)


def _means(row: Figures, labels: Sequence[str]) -> list[str]:
    """Accuracy by task and in total, the mean over seeds."""
    if not was_run(row):
        return [NOT_RUN] * (len(labels) + 1)
    return [*(percent(row["task"].get(label)) for label in labels), percent(row["mean"])]


def _spread(row: Figures) -> list[str]:
    if not was_run(row):
        return [NOT_RUN] * len(_SPREAD)
    return [interval(row["ci95"]), percent(row["spread"]), str(row["n_seeds"])]


def _by_seed(figures: Figures) -> Table:
    """Every seed by itself."""
    labels = labels_of(figures)
    columns = [
        "",
        "seed",
        "chosen",
        "held out %",
        *labels,
        "average",
        "95 % interval",
        "missing",
        "unparsed",
        "format %",
    ]
    rows = []
    for row in figures["table"]:
        for seed, one in (row.get("seeds") or {}).items():
            cells = [NOT_RUN] * (len(columns) - 2)
            if was_run(one):
                by_task = [percent(one["task"][label]["accuracy"]) if label in one["task"] else "" for label in labels]
                total = one["total"]
                rate = one.get("format_rate")
                cells = [
                    shown(one["chosen"]),
                    percent(one["held_out"]),
                    *by_task,
                    percent(total["accuracy"]),
                    interval(total["ci95"]),
                    str(one["missing"]),
                    str(one["unparsed"]),
                    "" if rate is None else f"{100 * rate:.1f}",
                ]
            rows.append([row["label"], seed, *cells])
    title = _titled(figures, "every seed")
    return Table(columns, rows, title, frozenset({0, 1, 2}))


def verdicts(figures: Figures) -> Section:
    """A verdict on each of the paper's findings, and what decides it."""
    rows, after = [], []
    for finding in figures["findings"]:
        decided = finding["verdict"]
        verdict = f"{decided} ({REHEARSED})" if is_rehearsed(figures) and decided != NOT_RUN else decided
        parts = finding.get("parts") or [finding]
        for number, part in enumerate(parts):
            named = [finding["claim"], verdict] if number == 0 else ["", ""]
            rows.append([*named, part.get("comparison") or "", *_decides(part, decided)])
        claim = finding["claim"].removesuffix(".")
        after.append(f"{claim}: {verdict}. {finding['why']} The rule: {finding['rule']} ({finding['source']}).")
        if power := finding.get("power"):
            after.append(_power(finding, power))
    columns = ["finding", "verdict", "comparison", "difference, points", "95 % interval", "seeds"]
    table = Table(columns, rows, texts=frozenset({0, 1, 2}))
    methods = dict.fromkeys(one["power"]["method"] for one in figures["findings"] if one.get("power"))
    before = [_OF_A_REHEARSAL] if is_rehearsed(figures) else []
    return Section("findings", "The paper's findings", before, [table], [*after, *methods])


_OF_A_REHEARSAL = (
    "In a rehearsal the verdicts show that each follows from its interval. They are of an embedded model on embedded "
    "questions, and say nothing about the paper's findings."
)


def _decides(part: Figures, verdict: str) -> list[str]:
    if verdict == NOT_RUN or part.get("difference") is None:
        return [NOT_RUN] * 3
    return [points(part["difference"]), around(part["ci95"]), shown(part.get("seeds"))]


def _power(finding: Figures, power: Figures) -> str:
    """How many seeds or questions would decide an undecided finding."""
    ways = [
        f"{power[what]:,} {what} in all ({power['further_' + what]:,} more)"
        for what in ("seeds", "questions")
        if power.get(what) is not None
    ]
    decides = f"would be decided by {', or by '.join(ways)}" if ways else "cannot be said to be decided by any number"
    margin = f", if the true difference is {power['margin']:.2f} points from what decides" if ways else ""
    claim = finding["claim"].removesuffix(".")
    return " ".join([f"Undecided, {claim}: {decides}{margin}.", *power.get("notes", ())])


def controls(figures: Figures) -> Section:
    """Every arm without audio and with its choices in other orders."""
    columns = ["", "as asked %", *_CONTROL_HEADS["no_audio"], *_CONTROL_HEADS["permuted"]]
    rows = []
    for row in figures["table"]:
        found = row.get("controls") or {}
        cells = [cell for key in _CONTROL_HEADS for cell in _control(found.get(key), len(_CONTROL_HEADS[key]))]
        rows.append([row["label"], percent(row["mean"]) if was_run(row) else NOT_RUN, *cells])
    after = [
        "Without audio: silence of the same length in place of every clip. Permuted: every question in several orders "
        "of its choices; alike: questions answered with the same choice in every order. An arm rewarded by the toss "
        "of a coin, if the study has one, is a row of every table.",
    ]
    return Section("controls", "Controls", tables=[Table(columns, rows)], after=after)


_CONTROL_HEADS = {
    "no_audio": ("without audio %", "95 % interval", "difference", "95 % interval"),
    "permuted": ("permuted %", "95 % interval", "difference", "95 % interval", "alike %"),
}


def _control(block: Any, count: int) -> list[str]:
    if not was_run(block):
        return [NOT_RUN] * count
    change = block["difference"]
    cells = [percent(block["mean"]), interval(block["ci95"]), points(change["difference"]), around(change["ci95"])]
    return [*cells, percent(block.get("same_choice"))][:count]


def choosing(figures: Figures) -> Section:
    """What the paper's way of choosing a checkpoint, the best on the test itself, would have given."""
    rows: list[list[str]] = []
    for row in figures["table"]:
        if row["row"] == BASE:
            continue
        for seed, one in (row.get("on_test") or {}).items():
            cells = [
                percent(one["chosen_accuracy"]),
                shown(one["best"]),
                percent(one["accuracy"]),
                points(one["difference"]),
            ]
            rows.append([row["label"], seed, *cells])
        if row.get("on_test"):
            mean = [percent(row["on_test_mean"]), points(row["on_test_difference"])]
            rows.append([row["label"], "mean", percent(row["mean"]), "", *mean])
        else:
            rows.append([row["label"], "", *[NOT_RUN] * 4])
    columns = ["", "seed", "chosen on held-out %", "best on test", "best on test %", "difference"]
    before = [
        "A checkpoint is chosen on held-out questions, and evaluated on the test once. The best on the test itself, "
        "which the paper's way of choosing gives, is picked on the very questions that its accuracy is of, which "
        "flatters it. It stands here alone, to show by how much."
    ]
    return Section("choosing", "Best on the test", before, [Table(columns, rows, texts=frozenset({0, 1, 3}))])


def curves(labels: Iterable[str], drawn: bool) -> Section:
    """What the picture of the trainings shows."""
    if not drawn:
        return Section("curves", "Curves", unless_run(None, "Trainings"))
    arms = ", ".join(labels)
    told = f"A colour an arm ({arms}), a style of line a seed: reward, KL, completion length, held-out accuracy."
    return Section("curves", "Curves", [told])
