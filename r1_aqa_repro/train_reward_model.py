"""Train a reward model on preference pairs: a Qwen2 with a scalar head, by the Bradley-Terry loss.

    python -m r1_aqa_repro.train_reward_model --config configs/reward_model_qwen2_7b.yaml [--key value ...]

The loss of a pair is -log sigmoid(r(x, y_chosen) - r(x, y_rejected)) (arXiv 2203.02155, equation 1); the reward is read
at the last token of the conversation. The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from transformers import Qwen2ForSequenceClassification, set_seed
from trl import RewardTrainer, get_peft_config

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import Problem, command
from r1_aqa_repro.model.text_loading import TextModelConfig, load_configured_reward_model
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import RewardModelConfig, parse_text_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.text_examples import dataset_of, pair_row
from r1_aqa_repro.run.text_preflight import preference_pairs, prepare_text


class RewardModelTrainer(ResumableTrainer, RewardTrainer):
    """TRL's RewardTrainer, whose interrupted runs continue exactly."""


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(RewardModelConfig, argv)
    pairs, held_out = prepare_text(
        data,
        training,
        model_config,
        check_adapter(model_config),
        preference_pairs(training.max_length),
        Qwen2ForSequenceClassification,
    )

    def build_trainer() -> RewardModelTrainer:
        start_distributed(training)
        set_seed(training.seed)  # the new head's weights are drawn before any trainer seeds
        model, tokenizer = load_configured_reward_model(model_config)
        return RewardModelTrainer(
            model=model,
            args=training,
            train_dataset=dataset_of("train", map(pair_row, pairs), training),
            eval_dataset=dataset_of("held_out", map(pair_row, held_out), training) if held_out else None,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )

    return run_training(build_trainer, training, "reward_model")


def check_adapter(model: TextModelConfig) -> list[Problem]:
    """A problem where an adapter would leave the head, which starts at random, as it is."""
    if not model.use_peft or model.lora_task_type == "SEQ_CLS":
        return []
    what = f"{model.lora_task_type}: the adapter would leave the reward head as it was drawn"
    return [Problem("lora_task_type", what, "Set it to SEQ_CLS.")]


if __name__ == "__main__":
    main()
