"""Reward models: the Bradley-Terry loss and its gradient, learning, saving, and scoring that is the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from trl import GRPOTrainer

from r1_aqa_repro import train_reward_model
from r1_aqa_repro.data.conversations import TextPrompt, answer, read_pairs
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import check_reward_model, load_reward_model
from r1_aqa_repro.rewards.reward_model import RewardModel, score_conversations
from r1_aqa_repro.score import pair_accuracy, pair_scores
from tests.files import read_lines, write_lines
from tests.model.damages import refusal_of
from tests.text_world import LORA, Build, arguments, first_batch, perturb, state_of

# float32: a score is a sum of 32 products of size 1 after one layer; other paddings and batches sum in another order
SCORE_TOLERANCE = 1e-5
SEQ_CLS = ("--lora_task_type", "SEQ_CLS")


def test_a_score_is_the_head_on_the_last_token(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    model = load_reward_model(reward_model, tokenizer)
    conversation = pairs[0].conversations[0]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = model.score.weight[0] @ model.model(input_ids=ids).last_hidden_state[0, -1]
    assert score_conversations(model, tokenizer, [conversation]) == [pytest.approx(float(expected), abs=1e-6)]


def test_padding_and_batches_change_no_score(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    model = load_reward_model(reward_model, tokenizer).train()
    long = [{"role": "user", "content": "Name 2 tools. " * 30}, *answer("saw, drill.")]
    conversations = [long, *(pair.conversations[0] for pair in pairs)]
    alone = [score_conversations(model, tokenizer, [each])[0] for each in conversations]
    for batch_size in (2, 7, 64):
        scores = score_conversations(model, tokenizer, conversations, batch_size)
        np.testing.assert_allclose(scores, alone, rtol=0, atol=SCORE_TOLERANCE)
    assert np.std(alone) > 1000 * SCORE_TOLERANCE
    assert model.training  # as it was


def test_an_answer_of_special_tokens_keeps_the_last_token(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The model finds a conversation's end by its padding token, which an answer may spell out."""
    model = load_reward_model(reward_model, tokenizer)
    odd = [{"role": "user", "content": "Why?"}, *answer(tokenizer.pad_token * 3)]
    other = [{"role": "user", "content": "Why? " * 20}, *answer("Because.")]
    together = score_conversations(model, tokenizer, [odd, other])
    assert together[0] == pytest.approx(score_conversations(model, tokenizer, [odd])[0], abs=SCORE_TOLERANCE)


# --- Loss


def bradley_terry(chosen: list[float], rejected: list[float]) -> float:
    """Mean of -log sigmoid(chosen - rejected) (arXiv 2203.02155, equation 1) in float64."""
    return float(np.mean([np.log1p(np.exp(worse - better)) for better, worse in zip(chosen, rejected, strict=True)]))


def test_the_loss_is_that_of_the_scores(
    build: Build, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    trainer = build("reward_model")
    perturb(trainer.model, 0.1)
    chosen, rejected = pair_scores(trainer.model, tokenizer, pairs[:8])
    expected = bradley_terry(chosen, rejected)
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert loss.item() == pytest.approx(expected, abs=SCORE_TOLERANCE)
    # a hundred times the tolerance: the scores do tell the answers apart
    assert abs(expected - np.log(2)) > 1e-3 and abs(bradley_terry(rejected, chosen) - expected) > 1e-3
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert logged["accuracy"] == np.mean(np.greater(chosen, rejected))
    assert logged["margin"] == pytest.approx(np.mean(np.subtract(chosen, rejected)), abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("source", ["column", "scores", "none"])
def test_a_margin_moves_the_loss_and_centring_adds_to_it(
    source: str, build: Build, tokenizer: PreTrainedTokenizerBase, text_set: Path, tmp_path: Path
) -> None:
    """Mean of -log sigmoid(chosen - rejected - m) + c (chosen + rejected)^2, by hand; scores are 1.5 m apart."""
    margins = [0.25 * (index % 4) for index in range(8)]
    records = [
        {key: value for key, value in record.items() if key not in ("score_chosen", "score_rejected")}
        | {"margin": margin, "score_chosen": 1.5 * margin - 1, "score_rejected": -1.0}
        for record, margin in zip(read_lines(text_set / "pairs_train.jsonl"), margins, strict=False)
    ]
    file = write_lines(tmp_path / "pairs.jsonl", records)
    settings = ("--train_file", str(file), "--margin", source, "--center_rewards_coefficient", "0.5")
    trainer = build("reward_model", *settings)
    perturb(trainer.model, 0.1)
    chosen, rejected = map(np.array, pair_scores(trainer.model, tokenizer, read_pairs(file).records))
    margin = np.array(margins) * {"column": 1.0, "scores": 1.5, "none": 0.0}[source]
    expected = np.log1p(np.exp(rejected + margin - chosen)).mean() + 0.5 * np.square(chosen + rejected).mean()
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    # the centring is of the order of the scores squared, each of them known to the tolerance
    assert loss.item() == pytest.approx(expected, abs=4 * SCORE_TOLERANCE)


def test_pairs_that_cannot_have_their_margin_are_refused(
    text_set: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = read_lines(text_set / "pairs_train.jsonl")
    cases: dict[str, tuple[list[dict[str, Any]], str]] = {
        "scores": ([first | {"score_rejected": 2.0}], "its margin is -1: the rejected answer is the better one"),
        "column": ([first | {"margin": 1.0}, second], "1 of its 2 pairs have no margin, pair-train-00001 the first"),
    }
    cases["scores"][0][0]["score_chosen"] = 1.0
    for source, (records, what) in cases.items():
        file = write_lines(tmp_path / f"{source}.jsonl", records)
        settings = ["--train_file", str(file), "--margin", source]
        assert train_reward_model.main([*arguments("reward_model", tmp_path / "run", text_set, policy), *settings]) == 2
        assert what in capsys.readouterr().err
    lacking = write_lines(tmp_path / "lacking.jsonl", [{**first, "score_chosen": None}])
    (problem,) = read_pairs(lacking, "scores").problems
    assert "score_chosen is absent or null, expected a number" in str(problem)


def test_the_gradient_is_the_slope_of_the_formula(
    build: Build, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    """In float64: the loss along the gradient by differences, and the head's gradient written out.

    d loss / d w = -mean sigmoid(-margin) (h_chosen - h_rejected), h being the last token's hidden state.
    """
    trainer = build("reward_model")
    model = trainer.model.double()
    perturb(model, 0.1)
    trainer.compute_loss(model, first_batch(trainer)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())

    rows = token_ids(tokenizer, [each for pair in pairs[:8] for each in pair.conversations], True)

    def scores() -> torch.Tensor:  # [8, 2], one conversation after the other
        return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in rows]).view(8, 2)

    with torch.no_grad():
        hidden = torch.stack([model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows])
        margins = scores() @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        by_hand = -(torch.sigmoid(-margins)[:, None] * (hidden[0::2] - hidden[1::2])).mean(0)
        torch.testing.assert_close(gradients["score.weight"][0], by_hand, rtol=1e-9, atol=1e-12)

        slope = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
        h, losses = 1e-3, []
        for step in (h, -2 * h):  # to h, then to -h
            for name, parameter in model.named_parameters():
                parameter.add_(gradients[name], alpha=step / slope)
            losses.append(bradley_terry(*scores().T.tolist()))
    # Qwen2 normalises in float32 whatever the weights are: losses are off by up to 1e-7, differences over 2 h by 1e-4
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, abs=2e-4)
    assert slope > 0.1


# --- Training


def easy_pairs(file: Path, count: int, first: int) -> Path:
    """An answer that says apple is better than one that says hammer, whatever was asked."""
    pairs = [
        {
            "id": f"easy-{number}",
            "prompt": [{"role": "user", "content": f"Name {number % 9} things of {number}."}],
            "chosen": [{"role": "assistant", "content": f"{number % 7} apple."}],
            "rejected": [{"role": "assistant", "content": f"{number % 5} hammer."}],
        }
        for number in range(first, first + count)
    ]
    return write_lines(file, pairs)


def test_training_learns_and_what_is_saved_scores_the_same_everywhere(
    text_set: Path, policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    train, test = easy_pairs(tmp_path / "train.jsonl", 32, 0), easy_pairs(tmp_path / "test.jsonl", 40, 32)
    argv = [*arguments("reward_model", tmp_path / "run", text_set, policy), "--train_file", str(train)]
    argv += ["--max_steps", "12", "--learning_rate", "1e-2", "--eval_file", str(test), "--eval_steps", "6"]
    assert train_reward_model.main(argv) == 0
    trained = load_reward_model(tmp_path / "run" / "final", tokenizer)
    held_out = read_pairs(test).records
    scores = pair_scores(trained, tokenizer, held_out)
    after = pair_accuracy(*scores)
    # a head at random is as good as a coin on average, but gives all of these pairs much the same verdict
    assert after["pair_accuracy"] == 1.0, after
    state = json.loads((tmp_path / "run" / "checkpoint-12" / "trainer_state.json").read_text(encoding="utf-8"))
    log = state["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(2), abs=0.1) and losses[-1] < 0.1
    [first, last] = [entry for entry in log if "eval_loss" in entry]
    assert first["step"] == 6 and last["step"] == 12
    assert last["eval_accuracy"] == 1.0 and last["eval_loss"] == pytest.approx(bradley_terry(*scores), abs=1e-4)

    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final").eval()
    assert pair_scores(other, tokenizer, held_out) == scores  # the same numbers and operations
    check_reward_model(tmp_path / "run" / "final")


def test_the_new_head_is_drawn_from_the_seed(build: Build) -> None:
    heads = [build("reward_model", "--seed", seed).model.score.weight for seed in ("1", "1", "2")]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_reward_model_is_trained_further_with_its_own_head(build: Build, reward_model: Path) -> None:
    trainer = build("reward_model", "--model_name_or_path", str(reward_model))
    own = load_reward_model(reward_model, trainer.processing_class)
    assert torch.equal(trainer.model.score.weight, own.score.weight)


# --- LoRA


def test_lora_trains_the_head_and_reloads_with_the_same_scores(
    build: Build, tokenizer: PreTrainedTokenizerBase, pairs: list[TextPrompt]
) -> None:
    trainer = build("reward_model", *LORA, *SEQ_CLS, "--learning_rate", "1e-2")
    before = state_of(trainer.model)
    trainer.train()
    after = trainer.model.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("score.modules_to_save" in name for name in moved)
    assert all("lora_" in name or "score.modules_to_save" in name for name in moved)
    expected = pair_scores(trainer.model, tokenizer, pairs)
    final = trainer.save_final()
    assert not (final / "model.safetensors").exists()  # the adapter alone
    check_reward_model(final)
    torch.manual_seed(99)  # the base gets a head from here, which the adapter's must replace
    scores = pair_scores(load_reward_model(final, tokenizer), tokenizer, pairs)
    # the same adapter on the same base: the same operations
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert np.std(scores) > 1e-3


# --- As a reward


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_trl_scores_in_grpo_as_the_reward_function_does(
    kind: str, build: Build, reward_model: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = reward_model if kind == "model" else build("reward_model", *LORA, *SEQ_CLS).save_final()
    trainer = build("grpo", "--reward_funcs", "reward_model", "--reward_model_name_or_path", str(folder))
    rows = [trainer.train_dataset[index] for index in range(6)]
    texts = ["apple, plum.", "", "I can't help with that.", "x " * 40, "```python\n1\n```", tokenizer.pad_token]
    prompts, completions = [row["prompt"] for row in rows], [answer(text) for text in texts]
    by_trl = GRPOTrainer._calculate_rewards(trainer, rows, prompts, completions, [[1]] * 6)[:, 0]
    own = RewardModel(load_reward_model(folder, tokenizer), tokenizer)
    np.testing.assert_allclose(own(prompts, completions), by_trl.tolist(), rtol=0, atol=SCORE_TOLERANCE)
    assert own(prompts, texts) == own(prompts, completions)  # a completion in either form
    assert by_trl.std() > 300 * SCORE_TOLERANCE
    assert trainer.reward_func_names == ["reward_model"]


def test_a_model_without_one_output_is_refused(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_reward_model(reward_model, tokenizer)
    model.score, model.config.num_labels = torch.nn.Linear(model.config.hidden_size, 3, bias=False), 3
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "the model has 3 outputs, not 1" in refusal_of(check_reward_model, tmp_path)
