"""Supervised fine-tuning on the right answers: the warm start of GRPO, and R1-AQA's SFT baselines (full and LoRA).

    python -m r1_aqa_repro.train_sft --config configs/sft_qwen2_audio_7b.yaml [--key value ...]

The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from pathlib import Path

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.run.arguments import AudioSFTArguments, DataArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "transformers.TrainingArguments", DataArguments, AudioSFTArguments)

from peft import get_peft_model
from trl import get_peft_config

from eval.during_training import HarnessEvaluator
from r1_aqa_repro.common.errors import Problem, command
from r1_aqa_repro.model.loading import freeze, load_configured
from r1_aqa_repro.run.checks import check_contribution
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.config import AudioSFTConfig, parse_config
from r1_aqa_repro.run.kinds import AudioQuestions
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run
from r1_aqa_repro.sft.trainer import AudioSFTTrainer


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_config(AudioSFTConfig, argv)
    problems = check_contribution(data)
    if data.prompt_style == "think":
        problems.append(Problem("prompt_style", "think has no thoughts to imitate", "Use direct or answer for SFT."))
    clips = Clips(Path(str(training.output_dir)), data.check_audio, data.max_bad_clips, data.overwrite)
    with sole_run(training):
        is_weighted = data.contribution_weight is not None
        room = training.max_completion_length
        kind = AudioQuestions(clips, data.prompt_style, room, data.contribution, is_weighted)
        questions, _ = prepare(data, training, model_config, kind, problems)

        def build_trainer() -> AudioSFTTrainer:
            model, processor = load_configured(model_config)
            freeze(model, training.trained_parts)
            peft_config = get_peft_config(model_config)
            return AudioSFTTrainer(
                model=get_peft_model(model, peft_config) if peft_config else model,
                args=training,
                questions=questions,
                processing_class=processor,
                prompt_style=data.prompt_style,
                audio_channel=data.audio_channel,
                weak_weight=data.contribution_weight,
                clips=clips,
                evaluator=HarnessEvaluator(data, training, processor, model.config) if training.eval_file else None,
            )

        return run_training(build_trainer, training, "sft")


if __name__ == "__main__":
    main()
