"""Supervised fine-tuning of a text-only Qwen2 on answers to imitate: the common start of what follows.

    python -m r1_aqa_repro.train_sft_text --config configs/sft_text_qwen2_0_5b.yaml [--key value ...]

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from transformers import set_seed
from trl import SFTTrainer, get_peft_config

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.model.text_loading import load_configured_policy
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import TextSFTConfig, parse_text_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.text_examples import dataset_of, sft_row
from r1_aqa_repro.run.text_preflight import demonstrations, prepare_text


class TextSFTTrainer(ResumableTrainer, SFTTrainer):
    """TRL's SFTTrainer, whose interrupted runs continue exactly."""


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(TextSFTConfig, argv)
    kind = demonstrations(training.max_length)
    examples, held_out = prepare_text(data, training, model_config, [], kind)

    def build_trainer() -> TextSFTTrainer:
        start_distributed(training)
        set_seed(training.seed)  # an adapter's weights are drawn before any trainer seeds
        model, tokenizer = load_configured_policy(model_config)
        return TextSFTTrainer(
            model=model,
            args=training,
            train_dataset=dataset_of("train", map(sft_row, examples), training),
            eval_dataset=dataset_of("held_out", map(sft_row, held_out), training) if held_out else None,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )

    return run_training(build_trainer, training, "sft")


if __name__ == "__main__":
    main()
