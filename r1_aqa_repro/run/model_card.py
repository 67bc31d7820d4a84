"""The model card (README.md) of a run's checkpoints: what the model is, what it was made of, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from transformers import Trainer

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

_TEMPLATE = """---
library_name: {library}
{base_model}tags:
- {method_tag}
- r1-aqa-repro
---

# {name}, step {step}

{what}, trained from `{base}` by {method} with r1_aqa_repro{commit}.

## Figures

Of the last step that was logged; those that begin with `eval_` are of held-out data.

{figures}

## Data

{data}

## Configuration

Every setting is in `{config_file}` of the run's folder.

```yaml
{settings}```

## Loading

```python
{loading}
```

Made with {versions}.
"""


def write_card(run: Path, folder: Path, trainer: Trainer) -> None:
    """Write the card of the model that a run has just saved.

    Args:
        run: the run's folder, which holds its configuration and record.
        folder: where the model was saved, and where the card goes.
        trainer: whose model it is.
    """
    record = json.loads((run / RUN).read_text(encoding="utf-8"))
    parts = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    config = parts["data"] | parts["training"] | parts["model"]
    base = config["model_name_or_path"]
    keys = [*_SETTINGS, *(_LORA if config["use_peft"] else ())]
    # TRL's trainers have a name for their method
    method = getattr(trainer, "_name", None) or type(trainer).__name__.removeprefix("Audio").removesuffix("Trainer")
    architecture, loading = _loading(folder, trainer, base, config["use_peft"])
    card = _TEMPLATE.format(
        library="peft" if config["use_peft"] else "transformers",
        base_model="" if Path(base).is_dir() else f"base_model: {base}\n",
        method_tag=method.lower(),
        name=run.absolute().name,
        step=trainer.state.global_step,
        what=f"A LoRA adapter of a {architecture}" if config["use_peft"] else f"A {architecture}",
        base=base,
        method=method,
        commit=f" (commit {record['git_commit']})" if record.get("git_commit") else "",
        figures=_figures(trainer.state.log_history),
        data="\n".join(f"- `{path}`, SHA-256 {digest}" for path, digest in record["data"].items()),
        config_file=CONFIG,
        settings=yaml.safe_dump({key: config[key] for key in keys if config.get(key) is not None}, sort_keys=False),
        loading=loading,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    )
    write_atomically(folder / CARD, card)


def _figures(log_history: Sequence[Mapping[str, float]]) -> str:
    latest = {name: value for entry in log_history for name, value in entry.items()}
    return "\n".join(f"- {name}: {latest[name]:.4g}" for name in _FIGURES if name in latest) or "None was logged."


def _loading(folder: Path, trainer: Trainer, base: str, adapter: bool) -> tuple[str, str]:
    """The class of the saved model, or of an adapter's base, and the lines that load it."""
    if adapter:
        architecture = type(trainer.accelerator.unwrap_model(trainer.model).get_base_model()).__name__
    else:
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    reader, name = ("AutoProcessor", "processor") if "Audio" in architecture else ("AutoTokenizer", "tokenizer")
    lines = [f"from transformers import {reader}, {architecture}", ""]
    lines += ['folder = "path/to/this/folder"', f"{name} = {reader}.from_pretrained(folder)"]
    if adapter:
        head = ", num_labels=1" if architecture.endswith("ForSequenceClassification") else ""
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'model = {architecture}.from_pretrained("{base}"{head})')
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    else:
        lines.append(f"model = {architecture}.from_pretrained(folder)")
    return architecture, "\n".join(lines)
