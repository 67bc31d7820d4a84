"""A small embedded text set, a real Qwen2 that fits it, and the text trainers as their commands build them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from r1_aqa_repro import (
    train_dpo,
    train_grpo_text,
    train_kto,
    train_ppo_text,
    train_reward_model,
    train_rloo_text,
    train_sft_text,
)
from r1_aqa_repro.data.conversations import TextPrompt, read_pairs, read_prompts
from r1_aqa_repro.embedded.text_set import write_text_set
from r1_aqa_repro.embedded.text_tasks import vocabulary_texts
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.rules import Completion, completion_text
from tests.files import write_lines

COMMON = [
    "--learning_rate", "1e-3", "--max_steps", "2", "--save_steps", "2", "--logging_steps", "1", "--report_to", "none",
    "--bf16", "false", "--activation_checkpointing", "false", "--dataloader_pin_memory", "false", "--use_cpu", "true",
    "--seed", "1",
]  # fmt: skip
EXAMPLES = ["--examples_per_step", "4", "--max_examples_per_device", "4"]
PROMPTS = [
    "--prompts_per_step", "4", "--max_prompts_per_device", "4", "--num_generations", "4", "--max_completion_length",
    "8", "--beta", "0.04", "--loss_type", "grpo", "--use_bias_correction_kl", "false", "--top_k", "0",
]  # fmt: skip
PPO = [
    "--prompts_per_step", "8", "--max_prompts_per_device", "8", "--max_completion_length", "6", "--num_ppo_epochs", "2",
    "--num_mini_batches", "2", "--vf_coef", "0.5", "--reward_funcs", "letter",
]  # fmt: skip
LORA = [
    "--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0", "--lora_target_modules",
    r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
]  # fmt: skip
# by what is trained: the entry point, its file of the text set, its settings
ENTRIES: dict[str, tuple[Any, str, list[str]]] = {
    "sft": (train_sft_text, "sft.jsonl", EXAMPLES),
    "reward_model": (train_reward_model, "pairs_train.jsonl", EXAMPLES),
    "dpo": (train_dpo, "pairs_train.jsonl", EXAMPLES),
    "grpo": (train_grpo_text, "assist_prompts_train.jsonl", [*PROMPTS, "--reward_funcs", "random"]),
}
FURTHER: dict[str, tuple[Any, str, list[str]]] = {  # held to their own tests alone
    "kto": (train_kto, "pairs_train.jsonl", EXAMPLES),
    "rloo": (
        train_rloo_text,
        "prompts.jsonl",
        [*PROMPTS[:8], "--beta", "0.1", "--top_k", "0", "--reward_funcs", "random"],
    ),
}
PPO_ENTRY = (train_ppo_text, "prompts.jsonl", PPO)  # beside the others: its reward is the test's own
NUM_TRAIN = 24  # records of each file: an epoch is 6 steps of 4

Build = Callable[..., Any]


@pytest.fixture(scope="session")
def text_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first records of the embedded set, as its own files; prompts of different lengths, some with an answer."""
    folder = tmp_path_factory.mktemp("text") / "set"
    write_text_set(folder, seed=0, num_sft=NUM_TRAIN, num_pairs_train=NUM_TRAIN, num_pairs_held_out=20)
    for file in folder.glob("*_prompts_*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:NUM_TRAIN]), encoding="utf-8")
    prompts = [
        {"id": f"p{index}", "prompt": [{"role": "user", "content": f"Say {'aardvark ' * (index % 4)}{index}."}]}
        | ({"answer": str(index)} if index % 3 == 0 else {})
        for index in range(NUM_TRAIN)
    ]
    write_lines(folder / "prompts.jsonl", prompts)
    return folder


def asking(folder: Path) -> Path:
    """A file of prompts with reference answers, asked for reasoning."""
    records = [
        {"prompt": [{"role": "user", "content": f"What is {a} + 1?"}], "answer": str(a + 1), "prompt_style": "think"}
        for a in range(NUM_TRAIN)
    ]
    return write_lines(folder / "asking.jsonl", records)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights, as users have it on disk."""
    folder = tmp_path_factory.mktemp("models") / "policy"
    build_tiny_qwen2(folder, texts=vocabulary_texts()[::4], seed=0, geometry=TEST_TEXT)
    ends = GenerationConfig.from_pretrained(folder)
    ends.eos_token_id = [ends.eos_token_id, *range(300, 400)]  # of 730 tokens: completions end early and late
    ends.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(policy: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of both models; shared, so change none of it."""
    return load_tokenizer(policy)


@pytest.fixture(scope="session")
def reward_model(policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a head at random, large enough for scores that differ by more than rounding."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    set_seed(0)
    model = load_reward_model(policy, tokenizer, new_head=True)
    with torch.no_grad():
        model.score.weight.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(text_set: Path) -> list[TextPrompt]:
    return read_prompts(text_set / "prompts.jsonl").records


@pytest.fixture(scope="session")
def pairs(text_set: Path) -> list[TextPrompt]:
    return read_pairs(text_set / "pairs_train.jsonl").records


def arguments(kind: str, folder: Path, text_set: Path, model: Path) -> list[str]:
    """The command line of an entry point that writes to `folder`; further keys may be appended."""
    _, file, settings = PPO_ENTRY if kind == "ppo" else (ENTRIES | FURTHER)[kind]
    where = {"output_dir": folder, "train_file": text_set / file, "model_name_or_path": model}
    return [*COMMON, *settings, *(part for key, value in where.items() for part in (f"--{key}", str(value)))]


@pytest.fixture
def build(text_set: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds the trainer of an entry point, everything before training included: `build(kind, "--key", "value")`.

    Each gets a folder of its own.
    """
    folders = (tmp_path / f"run-{number}" for number in count())

    def of(kind: str, *overrides: str) -> Trainer:
        entry = (ENTRIES | FURTHER)[kind][0]
        built: list[Trainer] = []

        def keep(build_trainer: Callable[[], Trainer], training: TrainingArguments, *_: Any) -> int:
            set_seed(training.seed)
            built.append(build_trainer())
            return 0

        monkeypatch.setattr(entry, "run_training", keep)
        assert entry.main([*arguments(kind, next(folders), text_set, policy), *overrides]) == 0
        built[0].model.train()
        return built[0]

    return of


def letter_reward(completions: Sequence[Completion], **_: Any) -> list[float]:
    """The share of the letter a in a completion."""
    texts = [completion_text(completion) for completion in completions]
    return [text.count("a") / max(1, len(text)) for text in texts]


def first_batch(trainer: Trainer, size: int = 8) -> dict[str, torch.Tensor]:
    """The first records of the training file as the trainer's loss gets them."""
    return dict(trainer.data_collator([trainer.train_dataset[index] for index in range(size)]))


def answer_log_prob(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]], text: str
) -> torch.Tensor:
    """log p(answer, its end of turn | prompt): one conversation alone, no padding, softmax in float64."""
    before = token_ids(tokenizer, [prompt], complete=False)[0]
    ids = token_ids(tokenizer, [[*prompt, {"role": "assistant", "content": text}]], complete=True)[0]
    assert ids[: len(before)] == before
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    positions = torch.arange(len(before) - 1, len(ids) - 1)
    return logits.log_softmax(-1)[positions, torch.tensor(ids[len(before) :])].sum()


def perturb(model: torch.nn.Module, size: float = 0.02) -> None:
    """Move every trainable weight a little, always in the same way: a policy that is no longer its own reference."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
