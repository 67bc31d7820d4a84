"""Direct preference optimisation of a text-only Qwen2 on preference pairs (arXiv 2305.18290, equation 7).

    python -m r1_aqa_repro.train_dpo --config configs/dpo_qwen2_7b.yaml [--key value ...]

The reference is the model that training starts from: a second copy of it, with LoRA the base without the adapter, with
`precompute_ref_log_probs` nothing but its log-probs. `loss_type` takes TRL's losses and `relative`, relative preference
optimisation (arXiv 2402.10958). Logged among others: `rewards/chosen` and `rewards/rejected`,
which are beta times how far the log-probs have moved from the reference, and `logps/chosen` and `logps/rejected`
themselves.
The same command again resumes an interrupted run; `--overwrite` starts anew.
"""

from __future__ import annotations

from r1_aqa_repro.common.console import show_help_if_asked
from r1_aqa_repro.model.arguments import RopeArguments
from r1_aqa_repro.run.arguments import DPOArguments, TextRunArguments

# without the imports below, which take seconds
show_help_if_asked(__name__, __doc__, "trl.DPOConfig", TextRunArguments, DPOArguments, RopeArguments)

from r1_aqa_repro.common.errors import command
from r1_aqa_repro.data.conversations import read_pairs
from r1_aqa_repro.dpo.trainer import PairDPOTrainer, check_relative
from r1_aqa_repro.model.text_loading import load_configured_policy, load_configured_reference
from r1_aqa_repro.run.config import PairDPOConfig, parse_text_config
from r1_aqa_repro.run.folder import trl_arguments
from r1_aqa_repro.run.kinds import answered_prompts
from r1_aqa_repro.run.loop import run_training
from r1_aqa_repro.run.preflight import prepare, sole_run


@command
def main(argv: list[str]) -> int:
    """Check everything, load, train or resume, and save `<output_dir>/final`. Returns the exit code."""
    data, training, model_config = parse_text_config(PairDPOConfig, argv)
    kind = answered_prompts(read_pairs, training.max_length)
    with sole_run(training):
        pairs, held_out = prepare(data, training, model_config, kind, check_relative(training))

        def build_trainer() -> PairDPOTrainer:
            model, tokenizer = load_configured_policy(model_config)
            reference = None if training.precompute_ref_log_probs else load_configured_reference(model_config)
            rest = trl_arguments(training, model_config, pairs, held_out)
            return PairDPOTrainer(model=model, ref_model=reference, processing_class=tokenizer, **rest)

        return run_training(build_trainer, training, "dpo", kind.sampled)


if __name__ == "__main__":
    main()
