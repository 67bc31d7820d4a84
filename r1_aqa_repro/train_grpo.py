"""Train an audio language model by GRPO.

    python -m r1_aqa_repro.train_grpo --config configs/grpo_qwen2_audio_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_grpo --config ...

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from pathlib import Path

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.run.arguments import AudioGRPOArguments, DataArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.GRPOConfig", DataArguments, AudioGRPOArguments)

from trl import get_peft_config

from eval.during_training import HarnessEvaluator
from r1_aqa_repro.common.errors import command
from r1_aqa_repro.grpo.trainer import AudioGRPOTrainer
from r1_aqa_repro.model.loading import freeze, load_configured
from r1_aqa_repro.rewards.registry import check_names
from r1_aqa_repro.rewards.rules import REWARDS
from r1_aqa_repro.run.checks import check_contribution, check_grpo, check_reasoning
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioGRPOConfig, parse_config
from r1_aqa_repro.run.health import Doctor
from r1_aqa_repro.run.kinds import AudioQuestions
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_config(AudioGRPOConfig, argv)
    problems = check_names(training.reward_funcs, training.reward_weights, REWARDS) + check_grpo(training, model_config)
    problems += check_contribution(data) + check_reasoning(data, training)
    clips = Clips(Path(str(training.output_dir)), data.check_audio, data.max_bad_clips, data.overwrite)
    with sole_run(training):
        is_weighted = data.contribution_weight is not None
        room = training.max_completion_length
        kind = AudioQuestions(clips, data.prompt_style, room, data.contribution, is_weighted)
        questions, _ = prepare(data, training, model_config, kind, problems)

        def build_trainer() -> AudioGRPOTrainer:
            model, processor = load_configured(model_config)
            freeze(model, training.trained_parts)
            return AudioGRPOTrainer(
                model=model,
                args=training,
                questions=questions,
                processing_class=processor,
                prompt_style=data.prompt_style,
                audio_channel=data.audio_channel,
                weak_weight=data.contribution_weight,
                clips=clips,
                evaluator=HarnessEvaluator(data, training, processor, model.config) if training.eval_file else None,
                peft_config=get_peft_config(model_config),
                callbacks=[Doctor(Path(str(training.output_dir)))],
            )

        return run_training(build_trainer, training, "grpo")


if __name__ == "__main__":
    main()
