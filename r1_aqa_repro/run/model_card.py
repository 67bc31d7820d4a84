"""The model card (README.md) of a run's checkpoints: what the model is, what it was made of, and how to load it.

Other cards take their parts from here. Nothing heavy is imported: a report on a laptop needs no model.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from r1_aqa_repro.common.escaping import code, code_fence, visible
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.run.samples import parts_of, samples_of

if TYPE_CHECKING:
    from transformers import Trainer

CARD = "README.md"
_SETTINGS = (
    "prompt_style", "audio_channel", "max_length", "max_completion_length", "prompts_per_step", "examples_per_step",
    "num_generations", "num_iterations", "num_ppo_epochs", "reward_funcs", "reward_weights",
    "reward_model_name_or_path", "temperature", "top_k", "top_p", "beta", "kl_coef", "target_kl", "loss_type",
    "advantage_filter", "dynamic_sampling", "learning_rate", "lr_scheduler_type", "weight_decay", "max_steps",
    "num_train_epochs", "bf16", "dtype", "rope_parameters", "trained_parts", "use_peft", "seed",
)  # fmt: skip
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
_FIGURES = (
    "loss",
    "reward",
    "reward_std",
    "kl",
    "kl_per_answer",
    "entropy",
    "rewards/accuracies",
    "eval_accuracy",
    "eval_loss",
)


def write_card(run: Path, folder: Path, trainer: Trainer) -> None:
    """Write the card of the trainer's model into the `folder` where it was just saved; `run` is that of the run."""
    from r1_aqa_repro.run.folder import CONFIG, RUN  # PyTorch and all: who trains has them already

    parts = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    config = parts["data"] | parts["training"] | parts["model"]
    adapter = config["use_peft"]
    if adapter:
        architecture = type(trainer.accelerator.unwrap_model(trainer.model).get_base_model()).__name__
    else:
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    logged = (figure for entry in trainer.state.log_history for figure in entry.items())
    latest = {name: value for name, value in logged if value is not None}
    settings, samples = shown_settings(config), samples_of(run)
    if any(sample["after"] is None for sample in samples):  # the training goes on
        samples = []
    card = (
        _templates()
        .get_template("model_card.md.jinja")
        .render(
            name=run.absolute().name,
            step=trainer.state.global_step,
            # TRL's trainers have a name for their method
            method=getattr(trainer, "_name", type(trainer).__name__.removeprefix("Audio").removesuffix("Trainer")),
            architecture=architecture,
            adapter=adapter,
            base=base_line(config["model_name_or_path"]),
            on_hub=not Path(config["model_name_or_path"]).is_dir(),
            config=config,
            record=json.loads((run / RUN).read_text(encoding="utf-8")),
            figures={name: latest[name] for name in _FIGURES if name in latest},
            samples=[(sample["prompt"], list(parts_of(sample))) for sample in samples],
            settings=settings,
            fence=code_fence(settings),
            loading=loading(architecture, adapter, config["model_name_or_path"]),
        )
    )
    write_atomically(folder / CARD, card)


def shown_settings(config: Mapping[str, Any]) -> str:
    """What a card says of how a model was trained, as YAML; `config` holds all parts of a config.resolved.yaml."""
    keys = [*_SETTINGS, *(_LORA if config["use_peft"] else ())]
    return yaml.safe_dump({key: config[key] for key in keys if config.get(key) is not None}, sort_keys=False)


def base_line(name: str) -> str:
    """The line of a card's front matter that names the model which was trained, with its end of line."""
    return yaml.safe_dump({"base_model": name}, width=math.inf)


def loading(architecture: str, adapter: bool, base: str) -> str:
    """How a model is loaded with transformers, as a block of Python in Markdown.

    Args:
        architecture: name of the class.
        adapter: it is a LoRA adapter of `base`, a folder or hub id.
    """
    values = {"architecture": architecture, "adapter": adapter, "base": base}
    return _templates().get_template("loading.md.jinja").render(values)


def licence_of(name: str, *, asks_hub: bool) -> str | None:
    """What the card of a model says its licence is; None if it has no card, or the card says nothing.

    Args:
        name: folder or hub id.
        asks_hub: whether a card that is not on this disk is fetched.
    """
    from huggingface_hub import ModelCard  # these take seconds, and the trainers need none of it
    from transformers.utils.hub import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    card = cached_file(name, CARD, local_files_only=not asks_hub, **quiet)
    if card is None:
        return None
    data = ModelCard(Path(card).read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data
    named = data.get("license_name") if data.get("license") == "other" else None
    licence = named or data.get("license")
    return licence if isinstance(licence, str) else None


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("r1_aqa_repro.run", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"code": code, "fence": code_fence, "json": json.dumps, "visible": visible}
    return templates
