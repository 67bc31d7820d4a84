"""Score preference pairs with a reward model: how often it prefers the chosen answer.

    python -m r1_aqa_repro.score --model runs/my-reward-model/final --file pairs_held_out.jsonl

prints the pair accuracy with its interval and the range of the scores, and writes score.json and scores.jsonl (of each
pair both scores and their margin, chosen less rejected). Of RewardBench's file (prompt, chosen, rejected, subset; JSON
lines or Parquet) it gives the accuracy by subset and by section, and RewardBench's score.

Exit codes: 0 done; 1 a score is no number; 2 refused: no reward model, no such file, bad or too long pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options, positive
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Problem, Refused, collecting, command
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import LOCK, output_folder, sole_use, write_json, write_lines
from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs_to_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 64

# RewardBench's sections (allenai/reward-bench, rewardbench/constants.py)
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut"),
        "llmbar-adver-manual",
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
_WEIGHTS = {"math-prm": 984 / 447}  # of a pair: its 447 count as much as the six languages' 984


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.out is None and not Path(arguments.model).is_dir():
        raise Refused.because(f"--model {arguments.model}", "there is no such folder to write to", "Give --out.")
    out = arguments.out or Path(arguments.model) / "score" / arguments.file.stem
    with sole_use(out / LOCK, "Choose another --out."):
        pairs, chosen, rejected = score_file(arguments.model, arguments.file, arguments.batch_size, arguments.limit)
        margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
        lines = [
            {"id": pair.id, "score_chosen": better, "score_rejected": worse, "margin": margin}
            for pair, better, worse, margin in zip(pairs, chosen, rejected, margins, strict=True)
        ]
        summary = {"model": arguments.model, "file": str(arguments.file)} | summarised(pairs, chosen, rejected)
        write_lines(out / "scores.jsonl", lines)
        write_json(out / "score.json", summary)
    _print(summary, out)
    return EXIT_DONE


def score_file(
    name_or_path: str, file: Path, batch_size: int = _BATCH_SIZE, limit: int | None = None
) -> tuple[list[TextPrompt], list[float], list[float]]:
    """The first `limit` pairs of a file with the scores of both answers, on the GPU if there is one.

    Raises:
        Refused: everything that is wrong with model and file; a conversation longer than the model can take.
        Failed: a score is not finite.
    """
    # after the arguments: --help and mistakes are answered at once
    from r1_aqa_repro.model.generation import device_and_dtype
    from r1_aqa_repro.model.text_loading import check_reward_model, load_reward_model, load_tokenizer
    from r1_aqa_repro.run.kinds import answered_prompts

    kind, problems = answered_prompts(read_pairs_to_score, None), list[Problem]()
    with collecting(problems):
        kind.model = check_reward_model(name_or_path), load_tokenizer(name_or_path)
    pairs = kind.all_sound(str(file), limit, problems)
    tokenizer = load_tokenizer(name_or_path)
    device, dtype = device_and_dtype()
    model = load_reward_model(name_or_path, tokenizer, dtype).to(device)
    scores = pair_scores(model, tokenizer, pairs, batch_size)
    for pair, both in zip(pairs, zip(*scores, strict=True), strict=True):
        if not all(map(math.isfinite, both)):
            raise Failed(f"{name_or_path} scores {pair.id} with {both[0]} and {both[1]}: its weights are broken")
    return pairs, *scores


def pair_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TextPrompt],
    batch_size: int = _BATCH_SIZE,
) -> tuple[list[float], list[float]]:
    """The scores of the chosen and of the rejected answers, in the order of the pairs; with a progress bar if it
    takes long. So many pairs as `batch_size` are scored at once.
    """
    from r1_aqa_repro.rewards.reward_model import score_conversations

    conversations = [each for pair in pairs for each in pair.conversations]
    scores = score_conversations(model, tokenizer, conversations, 2 * batch_size, progress="scoring pairs")
    return scores[0::2], scores[1::2]


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """How often the chosen answer has the higher score, as a block of results.json. Equal scores count half.

    Raises:
        ValueError: there are no pairs.
    """
    pairs = list(zip(chosen, rejected, strict=True))
    ties = sum(better == worse for better, worse in pairs)
    right = sum(better > worse for better, worse in pairs) + ties / 2
    low, high = wilson(right, len(pairs))
    return {"pair_accuracy": right / len(pairs), "ci95": [low, high], "n": len(pairs), "ties": ties}


def summarised(pairs: Sequence[TextPrompt], chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """What score.json holds of the scores: see `pair_accuracy`.

    `loss` is the mean of -log sigmoid(margin), which the model was trained to lower: log 2 = 0.693 for one that knows
    nothing. Of RewardBench's pairs there are also `by_subset`, `by_section` and, if every section has pairs, their mean
    as `reward_bench`. RewardBench counts equal scores as wrong, this as half.
    """
    margins = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)

    def accuracy_by(column: str) -> dict[str, dict[str, Any]]:
        of: dict[str, list[tuple[float, float]]] = {}
        for pair, *both in zip(pairs, chosen, rejected, strict=True):
            if pair.columns.get(column) is not None:
                of.setdefault(str(pair.columns[column]), []).append((both[0], both[1]))
        return {name: pair_accuracy(*zip(*scores, strict=True)) for name, scores in of.items()}

    benchmark: dict[str, Any] = {}
    if by_subset := accuracy_by("subset"):
        sections = by_section(by_subset)
        benchmark = {"by_subset": by_subset, "by_section": sections}
        if sections.keys() == SECTIONS.keys():
            benchmark["reward_bench"] = fmean(block["pair_accuracy"] for block in sections.values())
    return {
        **pair_accuracy(chosen, rejected),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "by_task": accuracy_by("task"),
        **benchmark,
        "scores": {
            name: {"mean": sum(scores) / len(scores), "lowest": min(scores), "highest": max(scores)}
            for name, scores in (("chosen", chosen), ("rejected", rejected))
        },
    }


def by_section(by_subset: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The accuracy in each of RewardBench's sections that has any of these subsets: the mean over pairs, of which those
    of `math-prm` count 984/447 each, as there."""
    found = {}
    for section, subsets in SECTIONS.items():
        weights = {name: _WEIGHTS.get(name, 1) * by_subset[name]["n"] for name in subsets if name in by_subset}
        if weights:
            right = sum(weight * by_subset[name]["pair_accuracy"] for name, weight in weights.items())
            count = sum(by_subset[name]["n"] for name in weights)
            found[section] = {"pair_accuracy": right / sum(weights.values()), "n": count}
    return found


def _print(summary: dict[str, Any], out: Path) -> None:
    console = Console(markup=False, highlight=False)  # tasks and paths are printed as they are
    console.print(visible_line(f"{summary['model']} on {summary['file']}"), soft_wrap=True)
    table = Table("", "pairs", "accuracy", "95 %", "ties", title="pair accuracy")
    for name, block in {"all": summary, **summary["by_task"], **summary.get("by_subset", {})}.items():
        low, high = block["ci95"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        share = f"{100 * block['pair_accuracy']:.1f} %"
        table.add_row(visible_line(name), f"{block['n']:,}", share, interval, str(block["ties"]))
    console.print(table)
    console.print(f"loss {summary['loss']:.4f} (0.6931 without any knowledge)")

    if "by_section" in summary:
        sections = Table("", "pairs", "accuracy", title="RewardBench's sections")
        for name, block in summary["by_section"].items():
            sections.add_row(name, f"{block['n']:,}", f"{100 * block['pair_accuracy']:.1f} %")
        if "reward_bench" in summary:
            sections.add_row("score", "", f"{100 * summary['reward_bench']:.1f} %")
        console.print(sections)

    scores = Table("", "mean", "lowest", "highest", title="scores")
    for answers, figures in summary["scores"].items():
        scores.add_row(answers, *(f"{figures[key]:+.3f}" for key in ("mean", "lowest", "highest")))
    console.print(scores)
    console.print(visible_line(f"Scores of every pair: {out}/scores.jsonl"), soft_wrap=True)


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.score")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="reward model, such as RUN/final")
    add("--file", required=True, type=Path, metavar="FILE",
        help="pairs, as data_prep.preferences writes them, or RewardBench's file")  # fmt: skip
    add("--out", type=output_folder, metavar="DIR", help="where to write (default: MODEL/score/STEM_OF_FILE)")
    add("--batch-size", type=positive, default=_BATCH_SIZE, metavar="N",
        help=f"pairs at once (default: {_BATCH_SIZE})")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only the first N pairs")
    return parser


if __name__ == "__main__":
    main()
