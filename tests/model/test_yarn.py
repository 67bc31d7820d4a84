"""YaRN: what it computes, against formulas written out here; what users may ask for; that every entry point has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.embedded.tiny_qwen2 import TEST_TEXT, build_tiny_qwen2
from r1_aqa_repro.model.files import add_older_names
from r1_aqa_repro.model.text_loading import checked_config, load_policy, load_reward_model, load_tokenizer
from r1_aqa_repro.model.yarn import apply_rope_parameters
from r1_aqa_repro.run.config import TextSFTConfig, parse_text_config
from tests.files import write_lines
from tests.text_world import ENTRIES, PPO_ENTRY, arguments

LENGTH = "original_max_position_embeddings"
TRAINED = 128  # positions of the small model
YARN = {"rope_type": "yarn", "factor": 2.0}
# head size, rope_theta and trained length: Qwen2-7B-Instruct and -0.5B-Instruct, and a small one
SIZES = {"7b": (128, 1e6, 32768), "0.5b": (64, 1e6, 32768), "small": (32, 300.0, 128)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    # large weights: attention then depends on positions enough to show in every log-prob
    geometry = replace(TEST_TEXT, max_positions=TRAINED, initializer_range=0.3)
    build_tiny_qwen2(out, texts=["Say it: aardvark."], seed=0, geometry=geometry)
    return out


def configuration(head: int = 32, theta: float = 1e6, length: int = 32768, **more: Any) -> Qwen2Config:
    rope = {"rope_type": "default", "rope_theta": theta}
    return Qwen2Config(
        hidden_size=2 * head, num_attention_heads=2, max_position_embeddings=length, rope_parameters=rope | more
    )


def problems_of(config: Qwen2Config, wanted: Any) -> list[str]:
    with pytest.raises(Refused) as refusal:
        apply_rope_parameters(config, wanted)
    return [str(problem) for problem in refusal.value.problems]


def logits(model: torch.nn.Module, length: int) -> torch.Tensor:
    ids = torch.randint(5, 200, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


class TestFormulas:
    @pytest.mark.parametrize(("factor", "scaling"), [(1.5, 1.04055), (4.0, 1.13863), (np.e**10, 2.0)])
    def test_queries_and_keys_are_scaled_at_every_position(self, factor, scaling):
        """By 0.1 ln(factor) + 1, sqrt(1/t) of the paper."""
        config = configuration()
        apply_rope_parameters(config, {"rope_type": "yarn", "factor": factor})
        cos, sin = Qwen2RotaryEmbedding(config)(torch.zeros(1), torch.arange(0, 50_000, 777)[None])
        # cos² + sin² of an angle is 1; float32
        torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, scaling**2), rtol=2e-5, atol=0)

    @pytest.mark.parametrize("factor", [2.0, 4.0])
    @pytest.mark.parametrize("size", SIZES)
    def test_inverse_frequencies(self, size, factor):
        """NTK-by-parts, with pairs of dimensions told apart by their turns within the trained length.

        From 32 turns a pair is left alone, up to 1 turn it is slowed down by the factor. Between, the authors' code,
        and transformers with it, goes linearly by the pair's index.
        """
        head, theta, length = SIZES[size]
        speeds = theta ** (-np.arange(0, head, 2) / head)
        turns = length * speeds / (2 * np.pi)
        last_fast = max(0, int((turns >= 32).sum()) - 1)
        first_slow = int((turns > 1).sum())
        slowed = np.clip((np.arange(head // 2) - last_fast) / (first_slow - last_fast), 0, 1)
        expected = speeds * (1 - slowed) + speeds / factor * slowed

        config = configuration(head, theta, length)
        plain = Qwen2RotaryEmbedding(config).inv_freq.numpy()
        apply_rope_parameters(config, {"rope_type": "yarn", "factor": factor})
        actual = Qwen2RotaryEmbedding(config).inv_freq.numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5)  # powers in float32
        np.testing.assert_allclose(plain, speeds, rtol=1e-5)


class TestCheckpoint:
    def test_a_saved_model_is_the_same_wherever_it_is_loaded(self, folder, tmp_path):
        model = load_policy(folder, rope_parameters=YARN)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(logits(model, 2 * TRAINED), logits(loaded, 2 * TRAINED))
        plain = logits(load_policy(folder), 2 * TRAINED)
        assert not torch.allclose(logits(loaded, 2 * TRAINED), plain, atol=1e-3)
        state, weights = loaded.state_dict(), load_policy(folder).state_dict()
        assert list(state) == list(weights)
        assert all(torch.equal(value, weights[name]) for name, value in state.items())

    def test_its_config_is_as_inference_engines_read_it(self, folder, tmp_path):
        """Of either generation: transformers 4.49 takes `max_position_embeddings` for the trained length."""
        load_policy(folder, rope_parameters=YARN).save_pretrained(tmp_path)
        add_older_names(tmp_path)
        content, before = (
            json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (tmp_path, folder)
        )
        theta = content["rope_theta"]
        assert theta == before["rope_theta"] == before["rope_parameters"]["rope_theta"]
        assert content["rope_scaling"] == YARN | {LENGTH: TRAINED}
        assert content["rope_parameters"] == content["rope_scaling"] | {"rope_theta": theta}
        assert content["max_position_embeddings"] == TRAINED
        assert checked_config(tmp_path).max_position_embeddings == 2 * TRAINED
        assert checked_config(tmp_path).rope_parameters == content["rope_parameters"]
        assert "rope_scaling" not in before

    def test_qwens_older_form_means_the_same(self, folder, tmp_path):
        """Qwen2's model cards have people write `rope_scaling` with `type` into config.json."""
        load_policy(folder).save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["rope_theta"] = content.pop("rope_parameters")["rope_theta"]
        content["rope_scaling"] = {"factor": 2.0, "original_max_position_embeddings": TRAINED, "type": "yarn"}
        file.write_text(json.dumps(content), encoding="utf-8")
        expected = logits(load_policy(folder, rope_parameters=YARN), 2 * TRAINED)
        assert torch.equal(logits(load_policy(tmp_path), 2 * TRAINED), expected)
        assert torch.equal(logits(load_policy(tmp_path, rope_parameters=YARN), 2 * TRAINED), expected)


class TestApplying:
    @pytest.mark.parametrize(
        ("present", "wanted", "trained", "positions"),
        [
            ({}, {"factor": 4.0}, 32768, 131072),
            ({}, {"factor": 4, LENGTH: 32768, "rope_theta": 1_000_000}, 32768, 131072),
            # a base model declares more positions than it was trained at
            ({}, {"factor": 2.0, LENGTH: 16384}, 16384, 32768),
            # a checkpoint with YaRN keeps its trained length
            ({"rope_type": "yarn", "factor": 4.0, LENGTH: 32768}, {"factor": 2.0}, 32768, 65536),
        ],
        ids=["what is absent", "everything", "a base model", "YaRN before"],
    )
    def test_what_is_absent_is_the_checkpoints(self, present, wanted, trained, positions, capfd):
        config = configuration(**present)
        given = {"rope_type": "yarn", **wanted}
        apply_rope_parameters(config, given)
        assert config.rope_parameters == {LENGTH: trained, "rope_theta": 1e6} | given
        assert config.max_position_embeddings == positions
        assert given == {"rope_type": "yarn", **wanted}
        config.validate_rope()  # transformers finds nothing to warn of
        assert capfd.readouterr().err == ""

    def test_default_makes_the_model_what_it_was(self, folder, tmp_path):
        load_policy(folder, rope_parameters=YARN).save_pretrained(tmp_path)
        model = load_policy(tmp_path, rope_parameters={"rope_type": "default"})
        assert torch.equal(logits(model, TRAINED), logits(load_policy(folder), TRAINED))
        assert model.config.to_dict()["rope_parameters"] == load_policy(folder).config.rope_parameters
        assert model.config.max_position_embeddings == TRAINED


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rope_type": None, "type": "yarn"}, "'type': 'yarn'} has no rope_type of yarn, default. "),
        ({"rope_type": "linear"}, "has no rope_type of yarn, default. "),
        ({"rope_type": ["yarn"]}, "has no rope_type of yarn, default. "),
        ({"rope_type": "default"}, "factor is no key of rope_type default."),
        ({"beta_quick": 32}, "beta_quick is no key of rope_type yarn."),
        ({"factor": None}, "factor is None. Give a number above 1"),
        ({"factor": 1}, "factor is 1."),
        ({"factor": True}, "factor is True."),
        ({"factor": "4"}, "factor is '4'."),
        ({"factor": float("nan")}, "factor is nan."),
        ({"factor": float("inf")}, "factor is inf."),
        ({"rope_theta": 10000.0}, "rope_theta is 10000.0, the checkpoint's is 1e+06."),
        ({LENGTH: 65536}, "is 65536, the checkpoint's trained length 32768."),
        ({LENGTH: 0}, "is 0, the checkpoint's trained length 32768."),
        ({LENGTH: 32768.0}, "is 32768.0, the checkpoint's"),
    ],
)
def test_wrong_rope_parameters_are_refused_by_name(changes, what):
    given = {key: value for key, value in ({**YARN} | changes).items() if value is not None}
    config = configuration()
    before = config.to_dict()
    [problem] = problems_of(config, given)
    assert problem.startswith("rope_parameters: ") and what in problem
    assert config.to_dict() == before


def test_everything_wrong_is_named_at_once():
    assert len(problems_of(configuration(), {**YARN, "factor": 1, "rope_theta": 1.0, "beta": 2})) == 3


@pytest.mark.parametrize(
    ("present", "wanted", "what"),
    [
        ({"rope_type": "yarn", "factor": 2.0, LENGTH: 32768}, {**YARN, LENGTH: 16384}, "is 16384, the checkpoint's"),
        ({"rope_type": "linear", "factor": 2.0}, YARN, "the checkpoint has rope_type linear"),
        ({}, [1], "[1] has no rope_type of yarn, default"),
    ],
)
def test_rope_parameters_that_do_not_fit_the_checkpoint_are_refused(present, wanted, what):
    [problem] = problems_of(configuration(**present), wanted)
    assert what in problem


def test_rope_parameters_stand_in_a_file_or_on_the_command_line(tmp_path):
    def rope(*argv: str) -> Any:
        return parse_text_config(TextSFTConfig, [*argv, "--bf16", "false", "--use_cpu", "true"])[2].rope

    file = tmp_path / "run.yaml"
    file.write_text("rope_parameters:\n  rope_type: yarn\n  factor: 4.0\n", encoding="utf-8")
    assert rope("--config", str(file)) == {"rope_type": "yarn", "factor": 4.0}
    overridden = rope("--config", str(file), "--rope_parameters", '{"rope_type": "default"}')
    assert overridden == {"rope_type": "default"}


# --- Entry points: all five, from the command line to a checkpoint

QUESTION = [{"role": "user", "content": "aardvark " * 28}]  # about 200 tokens with what the chat template adds
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("Say it.", "aardvark"))
# by what is trained: a record, what the log of the first step must hold if the reference has YaRN too
TRAINED_ON: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "sft": ({"prompt": QUESTION, "completion": GOOD}, {}),
    "reward_model": ({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}, {}),
    "dpo": ({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}, {"loss": np.log(2)}),
    "grpo": ({"prompt": QUESTION}, {"kl": 0.0}),
    "ppo": ({"prompt": QUESTION}, {"kl": 0.0}),
}


@pytest.mark.parametrize("kind", TRAINED_ON)
def test_every_entry_point_trains_beyond_the_trained_length(kind, folder, tmp_path, capfd):
    record, expected = TRAINED_ON[kind]
    data, run = write_lines(tmp_path / "data.jsonl", [record] * 8), tmp_path / "run"
    argv = [*arguments(kind, run, tmp_path, folder), "--train_file", str(data), "--max_steps", "1", "--save_steps", "1"]
    argv += ["--reward_funcs", "random"] if kind == "ppo" else []
    main = (PPO_ENTRY if kind == "ppo" else ENTRIES[kind])[0].main
    assert main(argv) == 2
    assert "tokens are more than the 1" in capfd.readouterr().err  # 128, or less with room for a completion

    assert main([*argv, "--rope_parameters", json.dumps(YARN)]) == 0
    log = json.loads((run / "checkpoint-1" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"][0]
    for name, value in expected.items():
        # float32 log-probs of the same weights, in batches of other shapes
        assert log[name] == pytest.approx(value, abs=1e-5)
    final = run / "final"
    assert checked_config(final).rope_parameters == checked_config(folder).rope_parameters | YARN | {LENGTH: TRAINED}
    assert checked_config(final).max_position_embeddings == 2 * TRAINED
    model = load_reward_model(final, load_tokenizer(final)) if kind == "reward_model" else load_policy(final)
    assert logits(model, 2 * TRAINED).isfinite().all()
