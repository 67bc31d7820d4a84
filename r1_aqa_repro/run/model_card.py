"""The model card (README.md) of a run's checkpoints: what the model is, what it was made of, and how to load it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import Trainer

from r1_aqa_repro.common.escaping import code, code_fence
from r1_aqa_repro.common.files import write_atomically
from r1_aqa_repro.run.folder import CONFIG, RUN

CARD = "README.md"
_SETTINGS = (
    "prompt_style", "audio_channel", "max_length", "max_completion_length", "prompts_per_step", "examples_per_step",
    "num_generations", "num_iterations", "num_ppo_epochs", "reward_funcs", "reward_weights",
    "reward_model_name_or_path", "temperature", "top_k", "top_p", "beta", "kl_coef", "loss_type", "advantage_filter",
    "dynamic_sampling", "learning_rate", "lr_scheduler_type", "weight_decay", "max_steps", "num_train_epochs", "bf16",
    "dtype", "rope_parameters", "trained_parts", "use_peft", "seed",
)  # fmt: skip
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
_FIGURES = ("loss", "reward", "reward_std", "kl", "entropy", "rewards/accuracies", "eval_accuracy", "eval_loss")


def write_card(run: Path, folder: Path, trainer: Trainer) -> None:
    """Write the card of the trainer's model into the `folder` where it was just saved; `run` is that of the run."""
    parts = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    config = parts["data"] | parts["training"] | parts["model"]
    adapter = config["use_peft"]
    if adapter:
        architecture = type(trainer.accelerator.unwrap_model(trainer.model).get_base_model()).__name__
    else:
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    keys = [*_SETTINGS, *(_LORA if adapter else ())]
    logged = (figure for entry in trainer.state.log_history for figure in entry.items())
    latest = {name: value for name, value in logged if value is not None}
    settings = yaml.safe_dump({key: config[key] for key in keys if config.get(key) is not None}, sort_keys=False)
    templates = Environment(
        loader=PackageLoader("r1_aqa_repro.run", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"code": code, "json": json.dumps}
    card = templates.get_template("model_card.md.jinja").render(
        name=run.absolute().name,
        step=trainer.state.global_step,
        # TRL's trainers have a name for their method
        method=getattr(trainer, "_name", type(trainer).__name__.removeprefix("Audio").removesuffix("Trainer")),
        architecture=architecture,
        adapter=adapter,
        base=yaml.safe_dump({"base_model": config["model_name_or_path"]}, width=math.inf),
        on_hub=not Path(config["model_name_or_path"]).is_dir(),
        config=config,
        record=json.loads((run / RUN).read_text(encoding="utf-8")),
        figures={name: latest[name] for name in _FIGURES if name in latest},
        settings=settings,
        fence=code_fence(settings),
    )
    write_atomically(folder / CARD, card)
