"""Train a text-only Qwen2 by RLOO (arXiv 2402.14740): REINFORCE whose baseline is the prompt's other completions.

    python -m r1_aqa_repro.train_rloo_text --config configs/rloo_text_qwen2_7b.yaml [--key value ...]
    torchrun --nproc_per_node 8 -m r1_aqa_repro.train_rloo_text --config ...

The reward is a reward model, rule rewards, or both. Trainer and loss are TRL's. The same command again resumes an
interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import RLOOArguments, TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.RLOOConfig", TextRunArguments, RLOOArguments, RopeArguments)

from trl import get_peft_config

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.embedded import true_reward
from r1_aqa_repro.grpo.rloo import TextRLOOTrainer
from r1_aqa_repro.model.text_loading import load_configured_policy
from r1_aqa_repro.rewards.registry import check_rewards, trl_rewards
from r1_aqa_repro.run.checks import check_rollouts
from r1_aqa_repro.run.config import TextRLOOConfig, parse_text_config
from r1_aqa_repro.run.kinds import prompts_to_answer
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    true_reward.register()
    data, training, model_config = parse_text_config(TextRLOOConfig, argv)
    problems = check_rewards(training) + check_rollouts(training, model_config)
    kind = prompts_to_answer(training)
    with sole_run(training):
        prompts, _ = prepare(data, training, model_config, kind, problems)

        def build_trainer() -> TextRLOOTrainer:
            model, tokenizer = load_configured_policy(model_config)
            return TextRLOOTrainer(
                model=model,
                args=training,
                prompts=prompts,
                processing_class=tokenizer,
                peft_config=get_peft_config(model_config),
                **trl_rewards(training),
            )

        return run_training(build_trainer, training, "rloo", kind.sampled)


if __name__ == "__main__":
    main()
