"""Train a reward model on preference pairs: a Qwen2 with a scalar head, by the Bradley-Terry loss.

    python -m r1_aqa_repro.train_reward_model --config configs/reward_model_qwen2_7b.yaml [--key value ...]

The loss of a pair is -log sigmoid(r(x, y_chosen) - r(x, y_rejected) - m) (arXiv 2203.02155, equation 1; with a margin
m that is not 0 arXiv 2307.09288, equation 2); the reward is read at the last token of the conversation.
`center_rewards_coefficient` adds its multiple of (r(x, y_chosen) + r(x, y_rejected))^2, which keeps rewards around 0
(arXiv 2312.09244, equation 2): by itself the loss sees their differences alone.
The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import RewardModelArguments, TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.RewardConfig", TextRunArguments, RewardModelArguments, RopeArguments)

from functools import partial

from transformers import Qwen2ForSequenceClassification
from trl import RewardTrainer

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.conversations import read_pairs
from r1_aqa_repro.model.text_loading import load_configured_reward_model
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.checks import check_reward_adapter
from r1_aqa_repro.run.config import RewardModelConfig, parse_text_config
from r1_aqa_repro.run.folder import trl_arguments
from r1_aqa_repro.run.kinds import answered_prompts, check_margins
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


class RewardModelTrainer(ResumableTrainer, RewardTrainer):
    """TRL's RewardTrainer, whose interrupted runs continue exactly."""


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(RewardModelConfig, argv)
    problems = check_reward_adapter(model_config)
    read = partial(read_pairs, margin=training.margin)
    kind = answered_prompts(read, training.max_length, Qwen2ForSequenceClassification, check_margins)
    with sole_run(training):
        pairs, held_out = prepare(data, training, model_config, kind, problems)

        def build_trainer() -> RewardModelTrainer:
            model, tokenizer = load_configured_reward_model(model_config)
            rest = trl_arguments(training, model_config, pairs, held_out)
            return RewardModelTrainer(model=model, processing_class=tokenizer, **rest)

        return run_training(build_trainer, training, "reward_model", kind.sampled)


if __name__ == "__main__":
    main()
