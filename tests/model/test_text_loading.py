"""Loading text-only Qwen2: what is loaded is complete and the right kind, and what is not is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, set_seed

from r1_aqa_repro.model.text_loading import check_reward_model, load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.rewards.reward_model import score_conversations
from tests.model.damages import Change, cut_off, edit, edit_weights, refusal_of, remove
from tests.text_world import answer_log_prob

PROMPT = [{"role": "user", "content": "Name a tool."}]
SAID = [*PROMPT, {"role": "assistant", "content": "saw."}]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


# --- Tokenizer


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (edit("tokenizer_config.json", chat_template=None), "the tokenizer has no chat template"),
        # transformers goes on with one that knows its special tokens alone: every text would be empty
        (remove("tokenizer.json", "vocab.json", "merges.txt"), "the tokenizer has no vocabulary"),
        (cut_off("tokenizer.json"), "no tokenizer can be read there"),
    ],
)
def test_tokenizers_that_are_refused(change: Change, what: str, policy: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(policy)
    assert load_tokenizer(folder).padding_side == "left"
    change(folder)
    assert refusal_of(load_tokenizer, folder).startswith(f"{folder}: {what}")


# --- Policy

# what a folder lacks is said by `check_model_folder`: test_loading.py
DAMAGES: list[tuple[Change, str]] = [
    (edit_weights(lambda weights: weights.pop("model.norm.weight")), "1 missing keys, such as model.norm.weight"),
    (edit_weights(lambda weights: weights.update(extra=torch.zeros(1))), "1 unexpected keys, such as extra"),
    (cut_off("model.safetensors"), "damaged or cut off"),
]


@pytest.mark.parametrize(("change", "what"), DAMAGES, ids=["a tensor is missing", "a tensor too many", "cut off"])
def test_models_that_are_incomplete_are_refused(
    change: Change,
    what: str,
    policy: Path,
    reward_model: Path,
    tokenizer: PreTrainedTokenizerBase,
    copy: Callable[[Path], Path],
) -> None:
    folder = copy(policy)
    change(folder)
    said = refusal_of(load_policy, folder)
    assert said.startswith(str(folder)) and what in said
    shutil.rmtree(folder)
    change(copy(reward_model))
    for new_head in (False, True):  # no excuse for any other tensor
        assert what in refusal_of(load_reward_model, folder, tokenizer, new_head=new_head)


def test_a_model_with_a_sliding_window_is_refused(policy: Path, copy: Callable[[Path], Path]) -> None:
    """Its layers would see the whole of a shared prompt."""
    folder = copy(policy)
    edit("config.json", use_sliding_window=True, sliding_window=16, layer_types=None, max_window_layers=0)(folder)
    assert "layers of it attend to a window of 16 tokens" in refusal_of(load_policy, folder)


def test_an_audio_model_is_refused(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for load in (load_policy, check_reward_model, lambda folder: load_reward_model(folder, tokenizer, new_head=True)):
        assert "the model is a qwen2_audio, not a qwen2" in refusal_of(load, model_folder)


def test_a_policy_with_tied_embeddings(policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """As the small models of Qwen2 have them: no head of its own in the file, neither missing nor at random."""
    config = Qwen2Config.from_pretrained(policy)
    config.tie_word_embeddings = True
    tied = Qwen2ForCausalLM(config)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_policy(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        own, again = (float(answer_log_prob(model.eval(), tokenizer, PROMPT, "saw.")) for model in (tied, loaded))
    assert own == pytest.approx(again, abs=1e-6)
    judge = load_reward_model(tmp_path, tokenizer, new_head=True)
    assert torch.equal(judge.model.embed_tokens.weight, tied.model.embed_tokens.weight)


def test_an_adapter_is_its_base_with_it(policy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    base = load_policy(policy)
    with torch.no_grad():
        without = float(answer_log_prob(base, tokenizer, PROMPT, "saw."))
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = get_peft_model(base, config).eval()
    wrapped.save_pretrained(tmp_path)
    models = (wrapped, load_policy(tmp_path).eval())
    with torch.no_grad():
        own, again = (float(answer_log_prob(model, tokenizer, PROMPT, "saw.")) for model in models)
    assert own == again != without
    edit("adapter_config.json", base_model_name_or_path="/gone/base")(tmp_path)
    assert refusal_of(load_policy, tmp_path).startswith("/gone/base: no model can be read there")


# --- Reward model


def test_a_new_head_is_drawn_from_the_random_generator(policy: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    heads = []
    for seed in (0, 0, 1):
        set_seed(seed)
        model = load_reward_model(policy, tokenizer, new_head=True)
        heads.append(model.score.weight.detach())
        assert model.config.pad_token_id == tokenizer.pad_token_id and model.score.out_features == 1
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    body = load_policy(policy).model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in model.model.state_dict().items())


def test_without_its_head_it_is_none(
    reward_model: Path, tokenizer: PreTrainedTokenizerBase, copy: Callable[[Path], Path]
) -> None:
    folder = copy(reward_model)
    edit_weights(lambda weights: weights.pop("score.weight"))(folder)
    for load in (check_reward_model, lambda where: load_reward_model(where, tokenizer)):
        assert f"{folder}: the model has no score head: it is no reward model" in refusal_of(load, folder)


def test_weights_in_several_files(reward_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """As large models are published: the head is in the last of them."""
    whole = load_reward_model(reward_model, tokenizer)
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and "score.weight" not in load_file(shards[0])
    check_reward_model(tmp_path)
    [scores, again] = (
        score_conversations(model, tokenizer, [SAID]) for model in (whole, load_reward_model(tmp_path, tokenizer))
    )
    assert scores == pytest.approx(again, abs=1e-6)  # memory that lies otherwise is summed in another order
    shards[0].unlink()
    assert f"weight files are missing: {shards[0].name}" in refusal_of(check_reward_model, tmp_path)
