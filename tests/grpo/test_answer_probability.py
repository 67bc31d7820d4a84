"""RLPR's reward: an independent formula on plain forwards, tokens by hand, and its filter by standard deviation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerState

from r1_aqa_repro import train_grpo_text
from r1_aqa_repro.grpo.answer_probability import AnswerProbability, with_reference
from r1_aqa_repro.grpo.rollout import Rollout
from r1_aqa_repro.grpo.selection import StdFilter, informative_groups
from r1_aqa_repro.grpo.trainer import SharedPrefixGRPOTrainer
from r1_aqa_repro.model.inputs import PromptInputs
from tests.distributed.answering_driver import AnsweringTrainer
from tests.files import read_json
from tests.grpo.conftest import MakeTrainer, World
from tests.text_world import arguments, asking

# log-probabilities of the two ways differ by up to 2e-5 (tests/grpo/test_shared_prefix.py), and so probabilities, which
# are below .005 of a model at random, by less than this
TOLERANCE = 1e-7
THINK = "<think>{}</think><answer>{}</answer>"
# each in the style think, but for the last, which do not come to an answer
COMPLETIONS = [
    THINK.format(text, " cat") for text in ("It barks.", "Hm.", "", "fig ", "3 + 4 = 7.", "b", "I do not know")
]
COMPLETIONS += ["<think>It is too lo", "<answer>7</answer>"]
G = len(COMPLETIONS)


def rewards_of(
    trainer: SharedPrefixGRPOTrainer, inputs: PromptInputs, golds: Sequence[str | None], share: bool
) -> tuple[list[Any], dict[str, float]]:
    tokenizer, logged = trainer._tokenizer, dict[str, float]()
    trainer.share = share
    with trainer._working_on(Rollout(inputs, torch.arange(len(golds)).repeat_interleave(G))):
        rewards = AnswerProbability(trainer)(
            completion_ids=tokenizer(COMPLETIONS * len(golds), add_special_tokens=False)["input_ids"],
            answer=[gold for gold in golds for _ in COMPLETIONS],
            prompt_style=["think"] * G * len(golds),
            log_metric=logged.__setitem__,
        )
    return rewards, logged


def mean_probability(
    trainer: SharedPrefixGRPOTrainer, inputs: PromptInputs, index: int, before: str, gold: str
) -> float:
    """One row alone, its text tokenised as a whole: the mean over the answer's tokens of softmax in float64."""
    text, tokenizer = f"{before}{gold}</answer>", trainer._tokenizer
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([inputs.prompt_ids[index] + tokens["input_ids"]])
    with torch.no_grad():
        audio = inputs.audio("cpu", torch.tensor([index]), trim=False)
        logits = trainer.model(input_ids=ids, attention_mask=torch.ones_like(ids), **audio).logits[0].double()
    first = len(inputs.prompt_ids[index])
    found = [
        logits[first + place - 1].softmax(-1)[token].item()
        for place, (token, span) in enumerate(zip(tokens["input_ids"], tokens["offset_mapping"], strict=True))
        if span[0] < len(before) + len(gold) and span[1] > len(before)
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("world", ["audio", "text"], indirect=True)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reward_is_an_independent_formula_on_plain_forwards(world: World, lora: bool) -> None:
    trainer = world.trainer(lora)
    trainer.model.train()
    inputs = world.inputs(trainer, world.asked)

    def with_and_without(index: int, gold: str) -> tuple[list[float], float]:
        heads = [text.partition("<answer>")[0] for text in COMPLETIONS[:-2]]
        reasoned = [mean_probability(trainer, inputs, index, f"{head}<answer> ", gold) for head in heads]
        return [*reasoned, 0.0, 0.0], mean_probability(trainer, inputs, index, "<answer>", gold)

    golds, expected, reasoned = list[str | None](), list[float](), list[float]()
    for index in (0, 1):
        for gold in ("dog", "7", "a plum", "red", "I can't", "horse", "b", "yes", "1. fig", "two", "bell", "0"):
            own, alone = with_and_without(index, gold)
            rewards = [min(1.0, max(0.0, value - alone)) for value in own]
            if any(rewards) and not all(rewards[:-2]):  # of a model at random some reasoning helps, some does not
                break
        golds, expected, reasoned = [*golds, gold], expected + rewards, reasoned + own
    assert any(expected) and 0 in expected[: G - 2] + expected[G:-2] and max(reasoned) < 0.005

    for share in (True, False):
        rewards, figures = rewards_of(trainer, inputs, [*golds, None], share)
        assert rewards[2 * G :] == [None] * G
        assert rewards[: 2 * G] == pytest.approx(expected, abs=TOLERANCE)
        assert figures["answer_probability/with_reasoning"] == pytest.approx(sum(reasoned) / (2 * G), abs=TOLERANCE)
        assert figures["answer_probability/no_answer"] == pytest.approx(2 / G)
        assert figures["answer_probability/without_reasoning"] > 0


@pytest.mark.parametrize("style", ["think", "answer"])
def test_reasoning_keeps_its_sampled_tokens(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Token by token, which is not how the tokenizer would write them, with a character cut in two."""
    text = "<think>Ünder <|im_end|> 1.</think>\n<answer>\nno</answer>"
    ids = [token for byte in text.encode() for token in byte_ids(tokenizer, byte)]
    row = with_reference(tokenizer, ids, "<|im_end|> dog", style)
    assert row is not None
    begun = len("<think>Ünder <|im_end|> 1.</think>\n".encode())
    assert row[0][:begun] == ids[:begun] and not any(row[1][:begun])
    assert tokenizer.decode(row[0]) == "<think>Ünder <|im_end|> 1.</think>\n<answer>\n<|im_end|> dog</answer>"
    counted = [token for token, own in zip(*row, strict=True) if own]
    assert "<|im_end|> dog" in tokenizer.decode(counted)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in row[0]  # the reference answer spells it


def byte_ids(tokenizer: PreTrainedTokenizerBase, byte: int) -> list[int]:
    """The token of a single byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [tokenizer.convert_tokens_to_ids(bytes_to_unicode()[byte])]


def test_what_is_too_long_for_the_model_does_not_come_to_an_answer(text_world: World) -> None:
    trainer = text_world.trainer()
    inputs = text_world.inputs(trainer, text_world.asked)
    config: Any = trainer.model.config
    config.max_position_embeddings = min(map(len, inputs.prompt_ids)) + 5
    rewards, logged = rewards_of(trainer, inputs, ["7"] * 3, share=True)
    assert rewards == [0] * 3 * G and logged["answer_probability/no_answer"] == 1


# --- The filter


def filter_of(**settings: Any) -> StdFilter:
    made: dict[str, Any] = {"beta": 0.5, "ema_ratio": 0.75, "ema_start_step": 2, "start_step": 4, "total": lambda x: x}
    return StdFilter(**(made | settings))


def step(std_filter: StdFilter, number: int, *stds: float) -> dict[str, float]:
    """A step whose groups of two have rewards of these standard deviations; what it logs."""
    logged: dict[str, float] = {}
    rewards = torch.tensor([[0, std * 2**0.5] for std in stds]).flatten()
    least = std_filter.count(rewards, 2, number, logged.update)
    assert logged["std_filter/threshold"] == least
    std_filter.on_step_end(None, TrainerState(global_step=number), None)
    return logged


def test_the_threshold_by_hand() -> None:
    """Steps 2 and 3 begin the average; from step 4 on it is used first and then moved by a quarter."""
    std_filter = filter_of()
    first = [step(std_filter, 1, 9, 9), step(std_filter, 2, 0.25, 0.5), step(std_filter, 3, 0.125)]
    assert first == [{"std_filter/threshold": 0, "std_filter/below": 0}] * 3
    average = (0.375 + 0.125) / 2
    assert step(std_filter, 4, 0.1, 0.2, 0.3) == pytest.approx(
        {"std_filter/threshold": 0.5 * average, "std_filter/below": 1 / 3}
    )
    average = 0.75 * average + 0.25 * 0.2
    assert step(std_filter, 5, 1)["std_filter/threshold"] == pytest.approx(0.5 * average)
    std_filter.on_step_end(None, TrainerState(global_step=6), None)  # goes on with the rollout of step 5
    average = 0.75 * average + 0.25 * 1
    assert step(std_filter, 7, 1)["std_filter/threshold"] == pytest.approx(0.5 * average)

    resumed, state = filter_of(), TrainerState(global_step=7, stateful_callbacks=[std_filter])
    resumed.on_train_begin(None, state, None)
    assert step(resumed, 8, 1) == step(std_filter, 8, 1)


def test_groups_below_the_threshold_are_not_informative() -> None:
    rewards = torch.tensor([0, 0.1, 0.5, 0.5, 0, 1])
    assert informative_groups(rewards, 2).tolist() == [True, False, True]
    assert informative_groups(rewards, 2, least_std=0.08).tolist() == [False, False, True]  # 0.1 / sqrt 2 = 0.07
    rollout = Rollout(SimpleNamespace(prompt_ids=[[1]] * 3), torch.arange(3).repeat_interleave(2))  # type: ignore[arg-type]
    rollout.reward = rewards
    assert rollout.kept("none", 1).all()
    rollout.least_std = 0.08
    assert rollout.kept("none", 1).tolist() == [False] * 4 + [True] * 2


# --- A run


REASONING = [
    *("--reward_funcs", "answer_probability", "--std_filter_beta", "1.0", "--std_filter_ema_start_step", "1"),
    *("--std_filter_start_step", "2", "--max_steps", "4", "--beta", "0"),
]


def test_a_run_is_filtered_and_resumes_exactly(
    text_set: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*REASONING, "--train_file", str(asking(tmp_path)), "--keep_optimizer", "all"]
    monkeypatch.setattr(train_grpo_text, "TextGRPOTrainer", AnsweringTrainer)
    runs = [tmp_path / name for name in ("whole", "resumed")]
    for run in runs:
        assert train_grpo_text.main([*arguments("grpo", run, text_set, policy), *settings]) == 0
    logs = [state_log(run) for run in runs]
    assert logs[0] == logs[1]
    assert [entry["std_filter/threshold"] > 0 for entry in logs[0]] == [False, True, True, True]
    assert any(0 < entry["std_filter/below"] < 1 for entry in logs[0][1:])
    assert 0 < logs[0][0]["rewards/answer_probability/mean"] < 1 and logs[0][0]["grad_norm"] > 0

    for name in ("checkpoint-4", "final"):
        shutil.rmtree(runs[1] / name)
    assert train_grpo_text.main([*arguments("grpo", runs[1], text_set, policy), *settings]) == 0
    assert state_log(runs[1]) == logs[0]
    assert (runs[0] / "final/model.safetensors").read_bytes() == (runs[1] / "final/model.safetensors").read_bytes()
    table = (runs[0] / "completions.csv").read_text(encoding="utf-8").splitlines()
    assert "answer_probability" in table[0]


def test_an_audio_run_that_never_comes_to_an_answer_earns_nothing(make_trainer: MakeTrainer) -> None:
    """Completions of a model at random; the reward is called as TRL calls it, by train_grpo's trainer."""
    trainer = make_trainer(reward_funcs=["answer_probability", "random"], prompt_style="think", max_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["answer_probability/no_answer"] == 1 and logged["rewards/answer_probability/mean"] == 0
    assert 0 < logged["answer_probability/without_reasoning"] < 0.01


def state_log(run: Path) -> list[dict[str, float]]:
    """What is logged of each step, without times and the length of the log."""
    log = read_json(run / "checkpoint-4" / "trainer_state.json")["log_history"]
    return [
        {
            name: value
            for name, value in entry.items()
            if not any(part in name for part in ("second", "time", "profiling"))
        }
        for entry in log
        if "loss" in entry
    ]
