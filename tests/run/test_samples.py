"""What is kept of held-out prompts before and after training: the model's words, which leave the run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from r1_aqa_repro import train_ppo_text
from r1_aqa_repro.data.conversations import read_pairs, read_prompts
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model
from r1_aqa_repro.rewards import registry
from r1_aqa_repro.rewards.reward_model import score_conversations
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.samples import samples_of
from tests.files import read_json, read_lines, write_lines
from tests.run.conftest import Killed, Start, kill_at
from tests.text_world import arguments, letter_reward

SHORT = ["--max_steps", "3", "--save_steps", "1"]
PROMPTS = "objective_prompts_held_out.jsonl"


def greedy(folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[Any], length: int) -> list[str]:
    """What transformers' own generation answers to each prompt alone."""
    model, texts = load_policy(folder), []
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=length)[0, inputs["input_ids"].size(1) :]
        texts.append(tokenizer.decode(ids, skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("name", [pytest.param("dpo lora", marks=pytest.mark.slow), "grpo"])
def test_the_answers_of_start_and_end_are_kept_through_kills_and_change_no_weight(
    name: str,
    start: Start,
    policy: Path,
    text_set: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, run, file = tmp_path / "plain", tmp_path / "run", text_set / PROMPTS
    sampled = [*SHORT, "--sample_file", str(file), *([] if name == "grpo" else ["--max_length", "100"])]
    assert start(name, plain, *sampled[: len(SHORT)], *sampled[len(SHORT) + 2 :]) == 0 and not samples_of(plain)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("r1_aqa_repro.run.loop.StopOnSignal", kill_at(2))
        start(name, run, *sampled)
    assert [one["after"] for one in samples_of(run)] == [None] * 8

    def killed(trainer: ResumableTrainer) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ResumableTrainer, "save_final", killed)
        start(name, run, *sampled)
    assert "Samples" not in (run / "checkpoint-1" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert start(name, run, *sampled) == 0

    kept, prompts = read_json(run / "samples.json"), read_prompts(file).records[:8]
    length = kept["max_new_tokens"]
    assert (kept["file"], kept["decoding"]) == (str(file), "greedy") and (length == 8) == (name == "grpo")
    samples = kept["samples"]
    assert [one["prompt"] for one in samples] == [prompt.messages[0]["content"] for prompt in prompts]
    for when, folder in (("before", policy), ("after", run / "final")):
        assert [one[when] for one in samples] == greedy(folder, tokenizer, prompts, length)
    assert [one["before"] for one in samples] != [one["after"] for one in samples]
    weights = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    assert (run / "final" / weights).read_bytes() == (plain / "final" / weights).read_bytes()
    card = (run / "final" / "README.md").read_text(encoding="utf-8")
    assert "## Samples" in card and all(one["prompt"] in card for one in samples)
    said = capsys.readouterr().err
    assert (
        "8 held-out prompts before and after training" in said and f"\n  {samples[0]['prompt']}\n    before: " in said
    )


def test_a_reward_model_keeps_the_scores_of_pairs(
    start: Start, text_set: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = text_set / "pairs_held_out.jsonl"
    assert start("reward_model", tmp_path, *SHORT, "--eval_file", str(file)) == 0
    samples, pairs = samples_of(tmp_path), read_pairs(file).records[:8]
    conversations = [conversation for pair in pairs for conversation in pair.conversations]
    scores = score_conversations(load_reward_model(tmp_path / "final", tokenizer), tokenizer, conversations)
    found = [one["after"][name] for one in samples for name in ("chosen", "rejected")]
    assert found == pytest.approx(scores, abs=1e-4)  # sums in batches of other sizes
    assert [one["chosen"] for one in samples] == [pair.answers["chosen"] for pair in pairs]
    assert all(one["before"] != one["after"] for one in samples)
    assert "[chosen, score " in (tmp_path / "final" / "README.md").read_text(encoding="utf-8")


def test_ppo_keeps_what_its_actor_says(
    text_set: Path, policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.RULES, "letter", registry.Rule(lambda args: letter_reward))
    file = text_set / PROMPTS
    assert train_ppo_text.main([*arguments("ppo", tmp_path, text_set, policy), "--sample_file", str(file)]) == 0
    prompts = read_prompts(file).records[:8]
    for when, folder in (("before", policy), ("after", tmp_path / "final")):
        assert [one[when] for one in samples_of(tmp_path)] == greedy(folder, tokenizer, prompts, 6)


def test_prompts_that_are_no_held_out_ones_are_refused(
    start: Start, text_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = read_lines(text_set / "pairs_train.jsonl")[:3]
    long = {"id": "long", "prompt": [{"role": "user", "content": "Why? " * 600}]}
    file = write_lines(tmp_path / "samples.jsonl", [{"prompt": trained[2]["prompt"]}, long, {"prompt": "Why?"}])
    assert start("dpo", tmp_path / "run", "--sample_file", str(file)) == 2
    said = capsys.readouterr().err
    assert f"{file}: line 1: its prompt is trained on ({trained[2]['id']}). Take it out of train_file or of sam" in said
    assert f"{file}: long: " in said and "more than the 511 that the model can take" in said
    assert f"{file}:line 3: prompt is 'Why?'" in said
    assert start("sft", tmp_path / "run", "--sample_file", str(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()
