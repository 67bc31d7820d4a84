"""Merge a LoRA adapter into its base model: a complete checkpoint that any tool can load without PEFT.

    python -m r1_aqa_repro.merge_adapter --adapter runs/my-run/final --out runs/my-run/merged

The base is a Qwen2-Audio or a text-only Qwen2, as a policy or a reward model. The merged folder can be evaluated
(`eval.mmau --ckpt`) and trained further (`model_name_or_path`). The sum is taken in float32; with `--dtype bfloat16` it
is rounded when it is written, which takes half the disk space.

Exit codes: 0 done; 1 the disk filled up; 2 refused before anything was written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, collecting, command
from r1_aqa_repro.common.files import lock_beside, output_folder, size_of, sole_use, whole_folder
from r1_aqa_repro.model.files import (
    ADAPTER_CONFIG,
    adapter_base,
    adapter_config,
    make_portable,
    processor_files,
    require_no_adapter,
)
from r1_aqa_repro.model.folder import check_files, folder_of
from r1_aqa_repro.model.loading import (
    MODEL_TYPE,
    TEXT_MODEL_TYPE,
    check_model_folder,
    load_adapter,
    load_model,
    load_processor,
    num_parameters,
)
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.run.checks import check_free_space

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    out = merge_adapter(arguments.adapter, arguments.out, arguments.base, arguments.dtype)
    size = size_of(out) / 1e6
    say(f"wrote {out} ({size:,.1f} MB, {arguments.dtype})")
    return EXIT_DONE


def merge_adapter(adapter: Path, out: Path, base: str | None = None, dtype: str = "float32") -> Path:
    """Write base + adapter to `out`: model, the base's processor and generation config, whole or not at all.

    Returns `out`.

    Raises:
        Refused: `out` exists, the adapter is not a LoRA or does not fit, its base cannot be read, too little space.
        Failed: it could not be written, such as when the disk filled up; nothing is left of `out`.
    """
    with sole_use(lock_beside(out), "Choose another --out."):
        base = _check(adapter, out, base, dtype)
        merged = _load(adapter, base).merge_and_unload(safe_merge=True).to(DTYPES[dtype])
        files = processor_files(base)
        with whole_folder(out) as folder:
            merged.save_pretrained(folder)
            make_portable(folder, files)
    return out


def _load(adapter: Path, base: str) -> PreTrainedModel:
    """The adapter on its base in float32, the base's processor or tokenizer being sound."""
    if _base_config(base).model_type == MODEL_TYPE:
        load_processor(base)
        return load_model(adapter, "float32", base=base)
    tokenizer = load_tokenizer(base)
    config = adapter_config(adapter) or {}
    is_reward_model = config.get("task_type") == "SEQ_CLS"
    own = load_reward_model(base, tokenizer, new_head=True) if is_reward_model else load_policy(base)
    return load_adapter(own, adapter)


def _check(adapter: Path, out: Path, base: str | None, dtype: str) -> str:
    """The base model's folder or hub id.

    Raises:
        Refused: see `merge_adapter`, with everything that is wrong.
    """
    problems = []
    if out.exists():
        problems.append(Problem(str(out), "is there already", "Choose another --out, or delete it."))
    folder, remedy = folder_of(adapter), "Give the folder of an adapter, such as RUN/final."
    config = adapter_config(adapter)
    if folder is None or config is None:
        raise Refused([*problems, Problem(str(adapter), f"the folder holds no {ADAPTER_CONFIG}", remedy)])
    with collecting(problems):
        check_files(folder, remedy)
    if config.get("peft_type") != "LORA":
        what = f"the adapter is a {config.get('peft_type')}, not a LORA"
        problems.append(Problem(str(adapter), what, "Only LoRA adapters can be merged here."))
    base = base or str(adapter_base(adapter))
    try:
        require_no_adapter(base)
        needed = num_parameters(_base_config(base)) * DTYPES[dtype].itemsize
        remedy = "Free some space, or choose another --out."
        full = check_free_space(out.parent, needed, "the merged weights")
    except Refused as refusal:
        remedy = "Give the base model that the adapter was trained on as --base."
        full = refusal.problems
    problems += [replace(problem, remedy=remedy) for problem in full]
    if problems:
        raise Refused(problems)
    return base


def _base_config(base: str) -> PreTrainedConfig:
    return check_model_folder(base, (MODEL_TYPE, TEXT_MODEL_TYPE))


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.merge_adapter")
    add = parser.add_argument
    add("--adapter", required=True, type=Path, metavar="DIR", help="folder of the adapter, such as RUN/final")
    add("--out", required=True, type=output_folder, metavar="DIR", help="folder to make")
    add("--base", metavar="DIR_OR_HUB_ID", help="base model (default: the one that the adapter names)")
    add("--dtype", choices=DTYPES, default="float32", help="of the written weights (default: float32)")
    return parser


if __name__ == "__main__":
    main()
