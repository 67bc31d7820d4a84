"""Sections on what lies behind the paper's table: questions gained and lost, rules, other benchmarks, overlap, cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.reproduction.findings import NOT_RUN
from eval.reproduction.sections import (
    Figures,
    Section,
    Table,
    around,
    percent,
    points,
    shown,
    unless_run,
)
from eval.rules import RULES

_LISTED = 20  # test questions that training clips overlap
_KINDS = {
    "samples": "the same samples",
    "fingerprint": "the same recording, by its fingerprint",
    "video": "the same source video",
    "any": "any of them",
}


def changes(figures: Figures) -> Section:
    """What training gained and lost, by sub-category."""
    found, title = figures["changes"], "Gained and lost"
    if missing := unless_run(found, title):
        return Section("changes", title, missing)
    group = found["group"].replace("_", "-")
    columns = [group, "questions", "before %", "after %", "difference", "95 % interval", "better on", "worse on"]
    rows = [_change(label, one) for label, one in {"all": found["total"], **found["labels"]}.items()]
    before = [
        f"{found['label']}, the arm with the highest mean on the test, over its seeds, against the model before "
        "training on the same questions."
    ]
    after = [
        "Better on: questions of which a larger share of answers is right afterwards; worse on: the reverse. Rows are "
        "not corrected for being many: of twenty intervals with nothing behind them one is expected to miss 0.",
    ]
    if found["gained"] or found["lost"]:
        after.append(
            "Of some questions that were gained or lost, the completions follow; there are more in the bundle."
        )
    return Section("changes", title, before, [Table(columns, rows)], after)


def _change(label: str, one: Figures) -> list[str]:
    figures = [percent(one["first"]), percent(one["second"]), points(one["difference"]), around(one["ci95"])]
    return [label, str(one["n"]), *figures, str(one["second_only"]), str(one["first_only"])]


def matrix(figures: Figures) -> Section:
    """The same completions by every prompt, decoding and rule that there are."""
    rows, title = figures["matrix"], "Prompt, decoding and matcher"
    if not rows:
        return Section("matrix", title, unless_run(None, title))
    rules = list(figures["rules"])
    labels = {row["row"]: row["label"] for row in figures["table"]}
    columns = ["", "evaluation", "prompt", "decoding", "answers", "orders", "seeds", *rules]
    cells = [
        [
            labels.get(row["row"], row["row"]),
            *(shown(row[key]) for key in ("evaluation", "prompt_style", "decoding", "repeats", "orders", "n_seeds")),
            *(_by_rule(row["rules"].get(rule)) for rule in rules),
        ]
        for row in rows
    ]
    told = [
        f"{name} ({RULES[name].whose}; given the {RULES[name].given}): {RULES[name].does}."
        for name in rules
        if name in RULES
    ]
    after = ["Accuracies in percent, the mean over seeds and, after ±, their sample standard deviation.", *told]
    return Section("matrix", title, tables=[Table(columns, cells, texts=frozenset(range(4)))], after=after)


def _by_rule(one: Any) -> str:
    if not isinstance(one, Mapping):
        return ""
    spread = one.get("spread")
    return percent(one["mean"]) + ("" if spread is None else f" ± {percent(spread)}")


def suite(figures: Figures) -> Section:
    """Other benchmarks, before and after."""
    found, title = figures["suite"], "Other benchmarks"
    if missing := unless_run(found, title):
        return Section("suite", title, missing)
    columns = [
        "",
        "benchmark",
        "version",
        "questions",
        "before %",
        "after %",
        "difference",
        "95 % interval",
        "",
        "missing",
        "unparsed",
    ]
    rows = []
    for one in found["evaluations"]:
        before, pair = one.get("before"), one.get("comparison")
        rows.append(
            [
                one["name"],
                shown(one["benchmark"]),
                shown(one["version"]),
                str(one["after"]["n"]),
                percent(before["accuracy"]) if before else NOT_RUN,
                percent(one["after"]["accuracy"]),
                *(
                    [points(pair["difference"]), around(pair["ci95"]), shown(pair["verdict"])]
                    if pair
                    else [NOT_RUN] * 3
                ),
                shown(one["missing"]),
                shown(one["unparsed"]),
            ]
        )
    after = [
        "Gained and lost are differences whose interval does not hold 0; not told apart is no proof that nothing was "
        "lost. Each accuracy is by the benchmark's own rule."
    ]
    return Section("suite", title, tables=[Table(columns, rows, texts=frozenset({0, 1, 2, 8}))], after=after)


def overlap(figures: Figures) -> Section:
    """Clips of the test that are among those of the training."""
    found, title = figures["overlap"], "Overlap of training and test"
    if missing := unless_run(found, title):
        return Section("overlap", title, missing)
    train, test = found["train"], found["test"]
    rows = [
        [
            called,
            shown(found["test_questions"].get(kind), "{:,}".format),
            shown(found["train_clips"].get(kind), "{:,}".format),
        ]
        for kind, called in _KINDS.items()
        if kind in found["test_questions"]
    ]
    before = [
        f"{test['questions']:,} test questions about {test['clips']:,} clips, {train['questions']:,} training "
        f"questions about {train['clips']:,} clips, compared by their samples, by audio fingerprint "
        f"({found['method']['name']}) and by the source video that their records name."
    ]
    after = [
        f"Not comparable by fingerprint: {sum(map(len, lost.values())):,} {name} clips "
        f"({', '.join(f'{reason} {len(clips):,}' for reason, clips in lost.items())})."
        for name, side in (("test", test), ("training", train))
        if (lost := side["not_comparable"])
    ]
    if chance := found["method"].get("false_positives"):
        after.append(
            f"Pairs of clips that the fingerprint takes for the same by chance: {chance['expected']:.1g} expected."
        )
    if ids := [one["id"] for one in found["overlaps"]]:
        more = f" and {len(ids) - _LISTED:,} more, all in data/overlap.json" if len(ids) > _LISTED else ""
        after.append(f"Test questions concerned: {', '.join(map(str, ids[:_LISTED]))}{more}.")
    return Section("overlap", title, before, [Table(["shared", "test questions", "training clips"], rows)], after)


def cost(figures: Figures) -> Section:
    """What the trainings took."""
    found, title = figures["cost"], "Cost"
    if missing := unless_run(found, title):
        return Section("cost", title, missing)
    rate = found.get("price_per_gpu_hour")
    currency = f", {rate['currency']}" if rate else ""
    columns = ["", "seed", "hours", "GPUs", "GPU hours", "MFU %", "energy, kWh", f"price{currency}"]
    labels = {row["row"]: row["label"] for row in figures["table"]}
    rows = [
        [labels.get(arm, arm), seed, *_costs(one, with_gpus=True)]
        for arm, by_seed in found["arms"].items()
        for seed, one in by_seed.items()
    ]
    rows.append(["all trainings", "", *_costs(found["total"], with_gpus=False)])
    after = [
        "Hours are the sum of the stages that a training records, interrupted ones included; GPU hours are these times "
        "the number of GPUs. Evaluations are in neither. MFU: floating-point operations that the model needs, as a "
        "share of what the hardware could have done. Energy: what all GPUs of the machine took during the training.",
        f"Price: {rate['value']:g} {rate['currency']} an hour of one GPU ({rate['source']})."
        if rate
        else "Price: no rate is stated.",
    ]
    return Section("cost", title, tables=[Table(columns, rows, texts=frozenset({0, 1}))], after=after)


def _costs(one: Figures, with_gpus: bool) -> list[str]:
    """Of a training or, without GPUs, of all of them."""
    return [
        shown(one["seconds"], lambda seconds: f"{seconds / 3600:,.2f}"),
        shown(one["gpus"]) if with_gpus else "",
        shown(one["gpu_hours"], "{:,.2f}".format),
        shown(one["mfu"], lambda share: f"{100 * share:.1f}") if with_gpus else "",
        shown(one["energy_kwh"], "{:,.2f}".format),
        shown(one["price"], "{:,.2f}".format),
    ]
