"""Score preference pairs with a reward model: how often it prefers the chosen answer.

    python -m r1_aqa_repro.score --model runs/my-reward-model/final --file pairs_held_out.jsonl

prints the pair accuracy with its interval and the range of the scores, and writes score.json and scores.jsonl (of each
pair both scores and their margin, chosen less rejected).

Exit codes: 0 done; 1 a score is no number; 2 refused: no reward model, no such file, bad or too long pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from r1_aqa_repro.common.console import Options, positive
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, Problem, Refused, collecting, command
from r1_aqa_repro.common.escaping import visible_line
from r1_aqa_repro.common.files import LOCK, output_folder, sole_use, write_json, write_lines
from r1_aqa_repro.common.intervals import wilson
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 64


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
            {"id": pair.id, "chosen_score": better, "rejected_score": worse, "margin": margin}
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

    kind, problems = answered_prompts(read_pairs, None), list[Problem]()
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
    nothing.
    """
    margins = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    by_task: dict[str, list[tuple[float, float]]] = {}
    for pair, *both in zip(pairs, chosen, rejected, strict=True):
        if pair.columns.get("task") is not None:
            by_task.setdefault(str(pair.columns["task"]), []).append((both[0], both[1]))
    return {
        **pair_accuracy(chosen, rejected),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "by_task": {task: pair_accuracy(*zip(*scores, strict=True)) for task, scores in by_task.items()},
        "scores": {
            name: {"mean": sum(scores) / len(scores), "lowest": min(scores), "highest": max(scores)}
            for name, scores in (("chosen", chosen), ("rejected", rejected))
        },
    }


def _print(summary: dict[str, Any], out: Path) -> None:
    console = Console(markup=False, highlight=False)  # tasks and paths are printed as they are
    console.print(visible_line(f"{summary['model']} on {summary['file']}"), soft_wrap=True)
    table = Table("", "pairs", "accuracy", "95 %", "ties", title="pair accuracy")
    for name, block in {"all": summary, **summary["by_task"]}.items():
        low, high = block["ci95"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        share = f"{100 * block['pair_accuracy']:.1f} %"
        table.add_row(visible_line(name), f"{block['n']:,}", share, interval, str(block["ties"]))
    console.print(table)
    console.print(f"loss {summary['loss']:.4f} (0.6931 without any knowledge)")

    scores = Table("", "mean", "lowest", "highest", title="scores")
    for answers, figures in summary["scores"].items():
        scores.add_row(answers, *(f"{figures[key]:+.3f}" for key in ("mean", "lowest", "highest")))
    console.print(scores)
    console.print(visible_line(f"Scores of every pair: {out}/scores.jsonl"), soft_wrap=True)


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.score")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="reward model, such as RUN/final")
    add("--file", required=True, type=Path, metavar="FILE", help="pairs, as data_prep.preferences writes them")
    add("--out", type=output_folder, metavar="DIR", help="where to write (default: MODEL/score/STEM_OF_FILE)")
    add("--batch-size", type=positive, default=_BATCH_SIZE, metavar="N",
        help=f"pairs at once (default: {_BATCH_SIZE})")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only the first N pairs")
    return parser


if __name__ == "__main__":
    main()
