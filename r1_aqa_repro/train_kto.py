"""Kahneman-Tversky optimisation of a text-only Qwen2 on answers that were judged one by one (arXiv 2402.01306).

    python -m r1_aqa_repro.train_kto --config configs/kto_qwen2_7b.yaml [--key value ...]

Each example is an answer with a label, good or bad; a preference pair stands for two of them. Trainer and loss are
TRL's. The reference is that of `train_dpo`. The same command again resumes an interrupted run; `--overwrite` starts
anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import TextExampleArguments, TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.KTOConfig", TextRunArguments, TextExampleArguments, RopeArguments)

import random
from typing import Any

from trl import KTOTrainer

from r1_aqa_repro.common.errors import Problem, command
from r1_aqa_repro.data.conversations import read_judged
from r1_aqa_repro.model.text_loading import load_configured_policy, load_configured_reference
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import JudgedKTOConfig, parse_text_config
from r1_aqa_repro.run.folder import trl_arguments
from r1_aqa_repro.run.kinds import answered_prompts, check_labels
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


class JudgedKTOTrainer(ResumableTrainer, KTOTrainer):
    """TRL's KTOTrainer, whose interrupted runs continue exactly."""

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._compute_loss(*args, **kwargs)
        for figures in self._metrics.values():  # of a whole answer: GRPO's `kl` is a token's
            if "kl" in figures:
                figures["kl_per_answer"] += figures.pop("kl")
        return loss


def check_kto(training: JudgedKTOConfig) -> list[Problem]:
    """A problem for each setting with which TRL cannot estimate the KL from the other answers of a batch."""
    if training.loss_type != "kto":
        return []
    problems = []
    if training.per_device_train_batch_size < 2:
        what = "the KL is estimated from the other examples that a device has at once, and there are none"
        problems.append(Problem("max_examples_per_device", what, "Raise it to 2 or more."))
    if training.train_sampling_strategy != "sequential":
        what = f"{training.train_sampling_strategy}: TRL pairs each example with its neighbour beforehand"
        problems.append(Problem("train_sampling_strategy", what, "Leave it out: examples are shuffled once, by seed."))
    return problems


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(JudgedKTOConfig, argv)
    kind = answered_prompts(read_judged, training.max_length, check_all=check_labels)
    with sole_run(training):
        examples, held_out = prepare(data, training, model_config, kind, check_kto(training))
        # TRL goes through them as they stand: good and bad answers, and prompts, must be mixed
        random.Random(training.seed).shuffle(examples)

        def build_trainer() -> JudgedKTOTrainer:
            model, tokenizer = load_configured_policy(model_config)
            reference = None if training.precompute_ref_log_probs else load_configured_reference(model_config)
            rest = trl_arguments(training, model_config, examples, held_out)
            return JudgedKTOTrainer(model=model, ref_model=reference, processing_class=tokenizer, **rest)

        return run_training(build_trainer, training, "kto", kind.sampled)


if __name__ == "__main__":
    main()
