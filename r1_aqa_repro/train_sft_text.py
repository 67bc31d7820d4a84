"""Supervised fine-tuning of a text-only Qwen2 on answers to imitate: the common start of what follows.

    python -m r1_aqa_repro.train_sft_text --config configs/sft_text_qwen2_0_5b.yaml [--key value ...]

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import TextExampleArguments, TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.SFTConfig", TextRunArguments, TextExampleArguments, RopeArguments)

from typing import Any

from trl import SFTTrainer

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.conversations import read_sft
from r1_aqa_repro.model.loading import widen_adapter
from r1_aqa_repro.model.text_loading import load_configured_policy
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import TextSFTConfig, parse_text_config
from r1_aqa_repro.run.folder import trl_arguments
from r1_aqa_repro.run.kinds import answered_prompts
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


class TextSFTTrainer(ResumableTrainer, SFTTrainer):
    """TRL's SFTTrainer, whose interrupted runs continue exactly."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        widen_adapter(self.model)


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(TextSFTConfig, argv)
    kind = answered_prompts(read_sft, training.max_length)
    with sole_run(training):
        examples, held_out = prepare(data, training, model_config, kind, [])

        def build_trainer() -> TextSFTTrainer:
            model, tokenizer = load_configured_policy(model_config)
            rest = trl_arguments(training, model_config, examples, held_out)
            return TextSFTTrainer(model=model, processing_class=tokenizer, **rest)

        return run_training(build_trainer, training, "sft", kind.sampled)


if __name__ == "__main__":
    main()
