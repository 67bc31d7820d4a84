"""The loop that samples over a shared cache against `generate()`, and what a token costs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from r1_aqa_repro.model import generation
from r1_aqa_repro.model.generation import Completions, Loop, complete
from r1_aqa_repro.model.inputs import PromptInputs
from r1_aqa_repro.model.shared_attention import Rows, share_prefixes, shared_cache
from r1_aqa_repro.planning.counting import operations_a_token
from r1_aqa_repro.planning.estimate import KERNELS

PROMPTS = PromptInputs([[5, 6, 7, 8, 9], [10, 11, 12]])
ROWS = torch.arange(2).repeat_interleave(3)
SAMPLED = {"do_sample": True, "top_k": 0}


def text_model(**sizes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{"eos_token_id": 1, "pad_token_id": 0} | sizes)).eval()
    share_prefixes(model)
    return model


def small_model(kv_heads: int = 2) -> Qwen2ForCausalLM:
    return text_model(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, initializer_range=0.3,
    )  # fmt: skip


def decoding(new: int = 24, **settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": new, "eos_token_id": [1, 7, 20], "pad_token_id": 0} | settings)


def from_one_seed(model: Qwen2ForCausalLM, config: GenerationConfig, **options: Any) -> tuple[Completions, float]:
    """The completions, and the next random number after them."""
    torch.manual_seed(1)
    return complete(model, PROMPTS, ROWS, config, **options), torch.rand(1).item()


@pytest.fixture(params=["apart", "interleaved"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of caches: that of CPUs and that of GPUs."""

    def cache(*args: Any, interleaved: bool, **options: Any) -> Cache:
        return shared_cache(*args, interleaved=request.param == "interleaved", **options)

    monkeypatch.setattr(generation, "shared_cache", cache)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["multi-head", "grouped-query"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        SAMPLED,
        SAMPLED | {"temperature": 1.3, "suppress_tokens": [4, 9]},
        SAMPLED | {"top_k": 5, "top_p": 0.8},
        SAMPLED | {"min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    ],
    ids=["greedy", "sampled", "temperature", "top-k and top-p", "all other warpers"],
)
def test_the_loop_takes_the_tokens_and_random_numbers_of_generate(settings: dict[str, Any], kv_heads: int) -> None:
    model, config = small_model(kv_heads), decoding(**settings)
    plain, after_plain = from_one_seed(model, config, share=False)
    looped, after_loop = from_one_seed(model, config)
    assert looped.token_ids == plain.token_ids and after_loop == after_plain
    assert any(len(ids) < 24 for ids in looped.token_ids), "no row ends early: the test shows less than it should"


@pytest.mark.usefixtures("layers")
def test_log_probs_are_those_of_the_full_softmax_over_the_temperature() -> None:
    model = small_model()
    completions, _ = from_one_seed(model, decoding(**SAMPLED, temperature=1.5, suppress_tokens=[4]))
    assert completions.log_probs is not None
    for row, ids, log_probs in zip(ROWS.tolist(), completions.token_ids, completions.log_probs, strict=True):
        prompt = PROMPTS.prompt_ids[row]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 1.5
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=0)  # sums of float32 logits to 20


@pytest.mark.usefixtures("layers")
def test_what_the_loop_lacks_is_left_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    assert Loop.of(model, decoding(repetition_penalty=1.0)) is not None
    # the second reads numbers on the host, with the third transformers samples from the 50 likeliest
    for settings in ({"repetition_penalty": 1.7}, SAMPLED | {"top_h": 0.4}, {"do_sample": True}):
        config = decoding(**settings)
        assert Loop.of(model, config) is None
        shared, plain = from_one_seed(model, config)[0], from_one_seed(model, config, share=False)[0]
        assert shared.token_ids == plain.token_ids and shared.log_probs is None
    monkeypatch.setattr(generation, "is_deepspeed_zero3_enabled", lambda: True)
    assert Loop.of(model, decoding()) is None, "under ZeRO-3 every process must make as many steps"


class Recorder(TorchDispatchMode):
    """A CUDA graph on the CPU: the operations of one step, done again on the very same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "the host waits for the device"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def __call__(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if not any(returned.alias_info for returned in func._schema.returns):  # views and writes need no more
                for to, value in zip(result, again, strict=True) if isinstance(result, tuple) else [(result, again)]:
                    to.copy_(value)


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """As `generation._recorded`, whose recording executes nothing: what this one changes is put back."""
    cells = [cell.cell_contents for cell in step.__closure__ or ()]
    rows: Any = next(cell for cell in cells if isinstance(cell, Rows))
    cache: Any = next(cell for cell in cells if isinstance(cell, Cache))
    tensors = [cell for cell in cells if isinstance(cell, torch.Tensor)] + [rows.mask, rows.new]
    tensors += [buffer for layer in cache.layers for buffer in (layer.keys, layer.values)]
    kept, generator = [tensor.clone() for tensor in tensors], torch.get_rng_state()
    with Recorder() as recorder:
        step()
    for tensor, before in zip(tensors, kept, strict=True):
        tensor.copy_(before)
    torch.set_rng_state(generator)
    return recorder


@pytest.mark.parametrize("layers", ["interleaved"], indirect=True)
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_recorded_step_replayed_gives_the_same_tokens(
    settings: dict[str, Any], layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of one shape are recorded once; nothing in them waits for the device."""
    recordings = []

    def counted(step: Callable[[], None]) -> Callable[[], None]:
        recordings.append(step)
        return recorded(step)

    monkeypatch.setattr(generation, "_recorded", counted)
    monkeypatch.setattr(generation, "_GRAPH_BLOCK", 8)
    model, config = small_model(), decoding(**settings)
    expected, _ = from_one_seed(model, config, share=False)
    assert from_one_seed(model, config, cuda_graphs=True)[0].token_ids == expected.token_ids
    assert len(recordings) == -(-max(map(len, expected.token_ids)) // 8) > 1


@pytest.mark.parametrize("layers", ["interleaved"], indirect=True)
def test_a_token_costs_no_more_kernels_than_a_plain_one(layers: None) -> None:
    """The head shapes and layers of Qwen2-Audio-7B, two prompts, 16 rows; widths that cost no time do not count."""
    model = text_model(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, head_dim=128, torch_dtype=torch.bfloat16,
    ).bfloat16()  # fmt: skip

    def a_token(**options: Any) -> tuple[float, float]:
        rows = torch.arange(2).repeat_interleave(8)
        return operations_a_token(
            lambda new: complete(model, PROMPTS, rows, decoding(new, **SAMPLED, eos_token_id=99), **options)
        )

    operations, kernels = a_token()
    assert operations <= 2850 and kernels <= 1350
    plain = a_token(share=False)[1]
    assert kernels < plain
    for shared, counted in ((True, kernels), (False, plain)):  # what the planner goes by
        a_layer, beside = KERNELS[shared]
        assert counted == pytest.approx(32 * a_layer + beside, abs=2)
