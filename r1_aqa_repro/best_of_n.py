"""Best of n: sample n answers to each prompt, score them, and write preference pairs of the best against the worst.

    python -m r1_aqa_repro.best_of_n --model runs/my-sft/final --prompts prompts.jsonl \\
        --reward-model runs/my-reward-model/final --num 8 --out runs/best_of_8

writes pairs.jsonl, which `train_dpo` and `train_reward_model` read, samples.jsonl (every answer with its scores) and
summary.json. An answer's score is the weighted sum of the reward model's reward and the rule rewards. Prompts whose
answers all have one score give no pair, and an answer that is empty or was cut off is in none; both are counted.

Interrupted, the same command goes on, and ends with the same bytes.

Exit codes: 0 done; 1 not a single pair; 2 refused: bad prompts, no sound model, samples made with other settings.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from r1_aqa_repro.common.console import Options, finite, not_negative, positive, positive_number, say
from r1_aqa_repro.common.errors import EXIT_DONE, Failed, collecting, command
from r1_aqa_repro.common.files import output_folder, sha256_of
from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.samples import PAIRS, Sampled, SampleFile, write_results
from r1_aqa_repro.rewards.arguments import REWARD_MODEL

if TYPE_CHECKING:
    from r1_aqa_repro.rewards.rules import RewardFunction


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.reward_model_name_or_path is not None:
        arguments.reward_funcs = [REWARD_MODEL, *arguments.reward_funcs]
    prompts = prepare(arguments)
    settings = settings_of(arguments)
    with SampleFile(arguments.out, settings, [prompt.id for prompt in prompts]) as file:
        if len(file.recorded) < len(prompts):
            _sample(arguments, prompts, file)
        summary = write_results(arguments.out, settings, prompts, file.recorded)
    say(
        f"{summary['pairs']} pairs of {summary['prompts']} prompts ({summary['ties']} ties, "
        f"{summary['without_two_whole_answers']} without two whole answers); of {summary['samples']} answers "
        f"{summary['cut_off']} cut off, {summary['empty']} empty; mean score {summary['mean_score']:.3f}, of the best "
        f"of {arguments.num} {summary['mean_best_score']:.3f}, which is at most {summary['kl_bound']:.2f} nats away"
    )
    if not summary["pairs"]:
        raise Failed(
            f"{arguments.out / PAIRS}: not a single pair: "
            f"of {summary['ties']} prompts no reward tells the answers apart, "
            f"{summary['without_two_whole_answers']} have fewer than two that are whole "
            f"(--max-new-tokens {arguments.max_completion_length})"
        )
    return EXIT_DONE


def prepare(arguments: Any) -> list[TextPrompt]:
    """The prompts to answer, after every check.

    Raises:
        Refused: with everything that is wrong.
    """
    from r1_aqa_repro.embedded import true_reward
    from r1_aqa_repro.model.text_loading import check_text_model
    from r1_aqa_repro.rewards.registry import check_rewards
    from r1_aqa_repro.run.kinds import prompts_to_answer

    true_reward.register()
    # in training they are keys of the configuration
    options = {action.dest: action.option_strings[0] for action in _parser()._actions}
    problems = [replace(each, where=options.get(each.where, each.where)) for each in check_rewards(arguments)]
    kind = prompts_to_answer(arguments, "lower --max-new-tokens, ")
    with collecting(problems):
        kind.model = check_text_model(arguments.model)
    return kind.all_sound(str(arguments.prompts), arguments.limit, problems)


def settings_of(arguments: Any) -> dict[str, Any]:
    """Everything that the samples and their scores depend on."""
    from r1_aqa_repro.model.files import model_digest
    from r1_aqa_repro.model.folder import check_finite, folder_of
    from r1_aqa_repro.model.generation import device_and_dtype

    reward_model = arguments.reward_model_name_or_path
    for folder in filter(None, map(folder_of, filter(None, (arguments.model, reward_model)))):
        check_finite(folder)  # before anything is written
    return {
        "model": model_digest(arguments.model),
        "prompts": sha256_of(arguments.prompts),
        "limit": arguments.limit,
        "num": arguments.num,
        "rewards": arguments.reward_funcs,
        "reward_weights": arguments.reward_weights,
        "reward_model": None if reward_model is None else model_digest(reward_model),
        "persona_rubric": None if arguments.persona_rubric is None else sha256_of(arguments.persona_rubric),
        "length_penalty_cache": arguments.length_penalty_cache,
        "code_limits": [arguments.code_timeout, arguments.code_memory_mb],
        "temperature": arguments.temperature,
        "max_new_tokens": arguments.max_completion_length,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "device": device_and_dtype()[0],
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers")},
    }


def _sample(arguments: Any, prompts: Sequence[TextPrompt], file: SampleFile) -> None:
    """Sample and score what is not recorded yet, in a fixed grid of batches each with a seed of its own."""
    from transformers.utils import logging

    from r1_aqa_repro.model.generation import device_and_dtype
    from r1_aqa_repro.model.text_loading import load_policy, load_tokenizer
    from r1_aqa_repro.rewards.registry import load_rewards

    logging.disable_progress_bar()
    device, dtype = device_and_dtype()
    rewards = load_rewards(arguments, dtype, device)
    sampler = Sampler(
        load_policy(arguments.model, dtype).to(device).eval(),
        load_tokenizer(arguments.model),
        rewards,
        arguments.reward_weights or [1.0] * len(rewards),
        arguments.num,
        arguments.max_completion_length,
        arguments.temperature,
    )
    done, size = len(file.recorded), arguments.batch_size
    with tqdm(total=len(prompts), initial=done, desc="sampling", unit="prompt", delay=5) as progress:
        for number in range(done // size, -(-len(prompts) // size)):
            # a batch that a kill has cut in two is sampled again as a whole: its samples depend on all of it
            batch = prompts[number * size : (number + 1) * size]
            seed = batch_seed(arguments.seed, number)
            random.seed(seed)  # what the reward `random` draws from
            new = sampler(batch, seed)[max(0, done - number * size) :]
            file.add(new)
            progress.update(len(new))


def batch_seed(seed: int, number: int) -> int:
    """The seed of a batch: another one for each run's seed and each number."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8])


@dataclass(frozen=True)
class Sampler:
    """Samples `num` answers to each prompt, of at most `max_new_tokens`, and scores them; the weights are one a reward.

    The policy is in evaluation mode.
    """

    model: Any
    tokenizer: Any
    rewards: dict[str, RewardFunction]
    weights: Sequence[float]
    num: int
    max_new_tokens: int
    temperature: float = 1.0

    def __call__(self, prompts: Sequence[TextPrompt], seed: int) -> list[Sampled]:
        """The answers to each prompt, which itself is computed once."""
        import torch

        from r1_aqa_repro.model.generation import generate, sampling_config
        from r1_aqa_repro.model.inputs import text_inputs

        config = sampling_config(self.model, self.tokenizer, self.max_new_tokens, self.temperature)
        rows = torch.arange(len(prompts)).repeat_interleave(self.num)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inputs = text_inputs(self.tokenizer, [prompt.messages for prompt in prompts])
            token_ids = generate(self.model, inputs, rows, config)
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        finished = [ids[-1] in config.eos_token_id for ids in token_ids]
        rewards = self._rewards([prompts[row] for row in rows.tolist()], texts, token_ids)
        sampled = []
        for index, prompt in enumerate(prompts):
            group = slice(index * self.num, (index + 1) * self.num)
            own = {name: values[group] for name, values in rewards.items()}
            scores = [
                sum(weight * value for weight, value in zip(self.weights, values, strict=True))
                for values in zip(*own.values(), strict=True)
            ]
            sampled.append(Sampled(prompt.id, texts[group], finished[group], own, scores))
        return sampled

    def _rewards(
        self, prompts: Sequence[TextPrompt], texts: Sequence[str], token_ids: Sequence[Sequence[int]]
    ) -> dict[str, list[float]]:
        """The rewards of N answers to N prompts by name; the reward functions are called as a trainer calls them."""
        from r1_aqa_repro.data.conversations import answer
        from r1_aqa_repro.rewards.rules import require_finite

        names = sorted({name for prompt in prompts for name in prompt.columns})
        columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in names} | {
            "prompts": [prompt.messages for prompt in prompts],
            "completions": [answer(text) for text in texts],
            "completion_ids": token_ids,
        }
        return {
            name: [0.0 if value is None else value for value in require_finite(name, reward(**columns), texts)]
            for name, reward in self.rewards.items()
        }


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.best_of_n")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB_ID", help="the policy that answers")
    add("--prompts", required=True, type=Path, metavar="FILE", help="prompts as JSON lines")
    add("--out", required=True, type=output_folder, metavar="DIR", help="folder to write")
    add("--num", type=_several, default=8, metavar="N", help="answers a prompt (default: 8)")
    add("--reward-model", dest="reward_model_name_or_path", metavar="DIR_OR_HUB_ID", help="a model that scores them")
    add("--rewards", dest="reward_funcs", nargs="+", default=[], metavar="NAME",
        help="rule rewards of them, such as math")  # fmt: skip
    add("--reward-weights", nargs="+", type=finite, metavar="W",
        help="one a reward, the reward model's first (default: 1 each)")  # fmt: skip
    add("--persona-rubric", metavar="FILE", help="YAML rubric of the reward persona")
    add("--length-penalty-cache", type=positive, default=64, metavar="N",
        help="the reward length_penalty falls over so many last tokens (default: 64)")  # fmt: skip
    add("--code-timeout", type=positive_number, default=5.0, metavar="S",
        help="the reward code gives a program so many seconds (default: 5)")  # fmt: skip
    add("--code-memory-mb", type=positive, default=512, metavar="N", help="and so many MiB (default: 512)")
    add("--temperature", type=positive_number, default=1.0, metavar="T", help="of the sampling (default: 1)")
    add("--max-new-tokens", dest="max_completion_length", type=positive, default=256, metavar="N",
        help="longest answer (default: 256)")  # fmt: skip
    add("--batch-size", type=positive, default=16, metavar="N", help="prompts at once, times --num (default: 16)")
    add("--seed", type=not_negative, default=0, metavar="N", help="of the sampling (default: 0)")
    add("--limit", type=positive, metavar="N", help="answer the first so many prompts only")
    return parser


def _several(text: str) -> int:
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text} is too few: one must be better than another; give 2 or more")
    return number


if __name__ == "__main__":
    main()
