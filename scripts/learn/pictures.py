"""Put the pictures that the course's commands have drawn into the folder of the documentation, small.

    python scripts/learn/pictures.py --out docs/images [--runs runs]

A picture whose command has not been run yet is left as it is, and named.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project also without an installation

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.files import output_folder, whole_file

PICTURES = {  # of the pages, and where in the folder of runs their commands draw them
    "learn_bandit.png": "learn/bandit/regret.png",
    "learn_dynamic_programming.png": "learn/dynamic_programming/values.png",
    "learn_td_prediction.png": "learn/td_prediction/error.png",
    "learn_cliff.png": "learn/cliff/paths.png",
    "learn_dyna_q.png": "learn/dyna_q/planning.png",
    "learn_dqn.png": "learn/dqn/learning_curve.png",
    "learn_policy_gradients.png": "learn/policy_gradients/learning_curves.png",
    "learn_overview.png": "learn/overview/map.png",
    "learn_sparse_reward.png": "sparse_reward_text/learning_curve.png",
    "learn_margins.png": "learn/margins/margins.png",
    "learn_ppo_text.png": "train_ppo_text/learning_curve.png",
    "learn_reward_hacking.png": "learn/reward_hacking/reward_hacking.png",
    "learn_dpo.png": "train_dpo/learning_curve.png",
    "learn_dpo_log_probs.png": "learn/dpo_log_probs/log_probs.png",
    "learn_group_advantages.png": "learn/group_advantages/advantages.png",
    "learn_grpo_text.png": "train_grpo_text/learning_curve.png",
    "learn_verified_rewards.png": "learn/verified_rewards/verified_rewards.png",
    "learn_unseen_fault.png": "learn/unseen_fault/unseen_fault.png",
    "learn_grpo_audio.png": "embedded/learning_curve.png",
    "learn_two_stages.png": "two_stage_text/stages.png",
    "learn_comparison.png": "compare_algorithms/comparison.png",
}
COLOURS = 64  # enough for lines and letters; a third of the bytes


@command
def main(argv: list[str]) -> int:
    """Copy what is there. Returns the exit code."""
    parser = Options(__doc__)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="where the pages' pictures are")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="(default: runs)")
    own = parser.parse_args(argv)
    from PIL import Image

    for name, drawn in PICTURES.items():
        if not (own.runs / drawn).exists():
            say(f"{name} stays as it is: {own.runs / drawn} is not there")
            continue
        with whole_file(own.out / name) as file:
            Image.open(own.runs / drawn).convert("RGB").quantize(COLOURS).save(file, format="png", optimize=True)
    return EXIT_DONE


if __name__ == "__main__":
    main()
