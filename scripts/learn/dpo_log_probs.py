"""Why both log-probabilities fall in DPO, and what keeps them up.

    python scripts/learn/dpo_log_probs.py --out runs/learn/dpo_log_probs [--seed N] [--runs DIR]

DPO's loss sees only the difference of two log-probabilities. First the plain loss (arXiv 2305.18290), then the run of
scripts/train_dpo.sh, the same but for a second term that raises the chosen answer (arXiv 2404.19733). Of both: what has
become of the log-probabilities of held-out pairs, and of answers that the start itself samples, which fall on average
whatever is learned: their mean change is minus a KL divergence. answers.txt has answers to read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

import numpy as np
import torch
from numpy.typing import NDArray
from trl.trainer.utils import selective_log_softmax

from r1_aqa_repro import train_dpo
from r1_aqa_repro.common.errors import EXIT_DONE
from r1_aqa_repro.data.conversations import Message, answer, read_pairs
from r1_aqa_repro.model.inputs import pad_right, token_ids
from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
from scripts.learn.lesson import report, running_mean, text_options, write_answers
from scripts.shown import plotted, table
from scripts.workshop import (
    TextWorkshop,
    answers_of,
    command_of_stages,
    evaluated,
    log_of,
    true_rewards,
    with_half_width,
    without_rewards,
)

PICTURE, ANSWERS = "log_probs.png", "answers.txt"
READ = 12  # prompts of answers.txt, lists and safety by turns
WINDOW = 5  # steps of the mean that is drawn
AT_ONCE = 100  # answers
START, PLAIN, WITH_SFT = "start", "plain loss", "with the sft term"


@command_of_stages
def main(argv: list[str]) -> int:
    """Train, evaluate and report. Returns the exit code."""
    own = text_options(__doc__).parse_args(argv)
    workshop = TextWorkshop(own.runs, own.seed)
    start, pairs = workshop.policy(), workshop.data() / "pairs_train.jsonl"
    runs = {PLAIN: own.out / "run", WITH_SFT: own.runs / "train_dpo"}
    loss = ["--loss_type", "sigmoid", "--loss_weights", "1.0"]
    models = {
        START: start,
        PLAIN: workshop.train(train_dpo, "dpo_embedded", runs[PLAIN], start, pairs, loss, stage="dpo, plain loss"),
        WITH_SFT: workshop.train(train_dpo, "dpo_embedded", runs[WITH_SFT], start, pairs),
    }
    found = measured(workshop, models, own.seed)
    draw(own.out / PICTURE, {name: log_of(run) for name, run in runs.items()})
    prompts = workshop.prompts("assist_prompts_held_out")[:READ]
    answers = {}
    for name, model in models.items():
        texts = answers_of(model, prompts, own.seed)
        worth = true_rewards(prompts, texts)
        answers[name] = [f"worth {true:.2f}  {text}" for true, text in zip(worth, texts, strict=True)]
    write_answers(own.out / ANSWERS, [prompt.messages[-1]["content"] for prompt in prompts], answers)
    log_probs = {
        name: {
            "chosen": f"{each['chosen']:.2f}",
            "rejected": f"{each['rejected']:.2f}",
            "start's own": f"{each['own']:.2f}",
            "ranked right": f"{each['ranked_right']:.3f}" if "ranked_right" in each else "",
            "worth": with_half_width(each["worth"], "true_reward", "ci95"),
            "greedy": with_half_width(each["worth"], "greedy", "greedy_ci95"),
        }
        for name, each in found.items()
    }
    title = "log-probabilities of answers to held-out prompts"
    words = "In nats an answer. Ranked right: the chosen answer has gained more than the rejected one. Worth: the true "
    words += f"reward of the model's own answers, sampled and greedy. To read: {own.out}/{ANSWERS}"
    report(own.out, PICTURE, {"seed": own.seed, "models": found}, table(title, log_probs), words)
    return EXIT_DONE


def measured(workshop: TextWorkshop, models: Mapping[str, Path], seed: int) -> dict[str, Any]:
    """By model: mean log-probabilities of the answers of held-out pairs and of the start's own samples, the share of
    pairs that it ranks right against the start, and what its answers are worth."""
    pairs = read_pairs(workshop.data() / "pairs_held_out.jsonl").records
    prompts = workshop.prompts("assist_prompts_held_out")
    texts = answers_of(models[START], prompts, seed)
    own = [(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]
    before: dict[str, NDArray[np.float64]] = {}
    found: dict[str, Any] = {}
    for name, model in models.items():
        sums = {
            "chosen": log_probs(model, [(pair.messages, pair.answers["chosen"]) for pair in pairs]),
            "rejected": log_probs(model, [(pair.messages, pair.answers["rejected"]) for pair in pairs]),
            "own": log_probs(model, own),
        }
        found[name] = {kind: float(values.mean()) for kind, values in sums.items()}
        if before:
            margins = (sums["chosen"] - before["chosen"]) - (sums["rejected"] - before["rejected"])
            found[name]["ranked_right"] = float((margins > 0).mean())
        before = before or sums
        found[name]["worth"] = without_rewards(evaluated(model, prompts, seed))
    return found


def log_probs(checkpoint: Path, answered: Sequence[tuple[Sequence[Message], str]]) -> NDArray[np.float64]:
    """log p(answer and its end of turn | prompt) of each of N prompts with its answer, in nats: N values."""
    tokenizer, model = load_tokenizer(checkpoint), load_policy(checkpoint).eval()
    sums: list[float] = []
    for first in range(0, len(answered), AT_ONCE):
        own = answered[first : first + AT_ONCE]
        before = token_ids(tokenizer, [messages for messages, _ in own], complete=False)
        rows = token_ids(tokenizer, [[*messages, *answer(text)] for messages, text in own], complete=True)
        ids = pad_right(rows, tokenizer.pad_token_id)
        scored = pad_right([[0] * len(b) + [1] * (len(r) - len(b)) for b, r in zip(before, rows, strict=True)], 0)
        mask = pad_right([[1] * len(row) for row in rows], 0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        sums += (selective_log_softmax(logits, ids[:, 1:]) * scored[:, 1:]).sum(dim=1).tolist()
    return np.array(sums)


def draw(path: Path, logs: Mapping[str, Any]) -> None:
    """Log-probabilities of chosen and rejected answers of the training pairs over steps, and the pairs ranked right."""
    with plotted(path, *(f"{name}: nats an answer" for name in logs), "pairs ranked right") as axes:
        for axis, (name, log) in zip(axes, logs.items(), strict=False):
            for kind in ("chosen", "rejected"):
                values = log[f"logps/{kind}"].dropna()
                axis.plot(values.index, running_mean(values.to_numpy(), WINDOW), label=kind)
            values = log["rewards/accuracies"].dropna()
            axes[-1].plot(values.index, running_mean(values.to_numpy(), WINDOW), label=name)
        axes[1].sharey(axes[0])


if __name__ == "__main__":
    main()
