"""Train an audio language model by GRPO.

    python -m r1_aqa_repro.train_grpo --config configs/grpo_qwen2_audio_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_grpo --config ...

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from transformers import set_seed
from trl import get_peft_config

from r1_aqa_repro.common.distributed import start_distributed
from r1_aqa_repro.common.errors import Problem, command
from r1_aqa_repro.grpo.checks import check_adapter, check_signal
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model.loading import freeze, load_configured
from r1_aqa_repro.rewards.registry import check_names
from r1_aqa_repro.rewards.rules import REWARDS
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_config(AudioGRPOConfig, argv)
    problems = (
        check_names(training.reward_funcs, training.reward_weights, REWARDS)
        + check_signal(training)
        + check_adapter(model_config)
    )
    if model_config.use_peft and training.trained_parts != "all":
        what = f"{training.trained_parts} beside an adapter, which leaves everything but itself as it is"
        problems.append(Problem("trained_parts", what, "Choose the adapter's modules with lora_target_modules."))
    questions = prepare(data, training, model_config, problems)

    def build_trainer() -> AudioGRPOTrainer:
        start_distributed(training)
        set_seed(training.seed)  # an adapter's weights are drawn before any trainer seeds
        model, processor = load_configured(model_config)
        freeze(model, training.trained_parts)
        evaluator = None
        if training.eval_file is not None:
            from eval.during_training import HarnessEvaluator  # only here: the library does not depend on `eval`

            evaluator = HarnessEvaluator.of(data, training, processor)
        return AudioGRPOTrainer(
            model=model,
            args=training,
            questions=questions,
            processing_class=processor,
            prompt_style=data.prompt_style,
            audio_channel=data.audio_channel,
            evaluator=evaluator,
            peft_config=get_peft_config(model_config),
        )

    return run_training(build_trainer, training, "grpo")


if __name__ == "__main__":
    main()
