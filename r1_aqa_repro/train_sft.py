"""Supervised fine-tuning on the right answers: the warm start of GRPO, and R1-AQA's SFT baselines (full and LoRA).

    python -m r1_aqa_repro.train_sft --config configs/sft_qwen2_audio_7b.yaml [--key value ...]

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from peft import get_peft_model
from transformers import set_seed
from trl import get_peft_config

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import Problem, command
from r1_aqa_repro.model.loading import load_configured
from r1_aqa_repro.run.arguments import DataArguments
from r1_aqa_repro.run.config import AudioSFTConfig, parse_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare
from r1_aqa_repro.sft.trainer import AudioSFTTrainer


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_config(AudioSFTConfig, argv)
    questions = prepare(data, training, model_config, check_style(data))

    def build_trainer() -> AudioSFTTrainer:
        start_distributed(training)
        set_seed(training.seed)  # an adapter's weights are drawn before any trainer seeds
        model, processor = load_configured(model_config)
        peft_config = get_peft_config(model_config)
        evaluator = None
        if training.eval_file is not None:
            from eval.during_training import HarnessEvaluator  # only here: the library does not depend on `eval`

            evaluator = HarnessEvaluator.of(data, training, processor)
        return AudioSFTTrainer(
            model=get_peft_model(model, peft_config) if peft_config else model,
            args=training,
            questions=questions,
            processing_class=processor,
            prompt_style=data.prompt_style,
            audio_channel=data.audio_channel,
            evaluator=evaluator,
        )

    return run_training(build_trainer, training, "sft")


def check_style(data: DataArguments) -> list[Problem]:
    """Thinking cannot be imitated: the data holds answers only."""
    if data.prompt_style != "think":
        return []
    return [Problem("prompt_style", "think has no thoughts to imitate", "Use direct or answer for SFT.")]


if __name__ == "__main__":
    main()
