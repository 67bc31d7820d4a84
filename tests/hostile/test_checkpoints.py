"""A model's folder that was damaged or made to do harm: refused by name, at once, and nothing of it is run."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from r1_aqa_repro.common.escaping import visible
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.loading import load_model, load_processor
from tests.files import contents, read_json, write_json
from tests.hostile.conftest import Ends
from tests.model.damages import Change, cut_off, edit, edit_weights, remove

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def part(name: str, key: str, **values: Any) -> Change:
    """Change keys inside an object of a JSON file."""
    return lambda folder: edit(name, **{key: read_json(folder / name)[key] | values})(folder)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def in_its_place(name: str, make: Callable[[Path], Any]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


class Marks:
    """What is unpickled to a file that is there."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(name: str, weights: str) -> Change:
    """Pickled weights in place of safetensors, as an attacker writes them: as PyTorch does, and a bare pickle."""

    def change(folder: Path) -> None:
        (folder / weights).unlink()
        torch.save({"weight": Marks(folder.parent / "ran")}, folder / name)
        (folder / f"{name[:-4]}-2.bin").write_bytes(pickle.dumps(Marks(folder.parent / "ran")))

    return change


def code_of_its_own(*names: str, **more: Any) -> Change:
    """A configuration that names a Python file of the folder, which leaves a mark when it is imported."""

    def change(folder: Path) -> None:
        own = f"from pathlib import Path\nPath({str(folder.parent / 'ran')!r}).touch()\nclass Own: pass\n"
        (folder / "own.py").write_text(own)
        classes = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
        map_ = dict.fromkeys(classes, "own.Own") | {"AutoTokenizer": ["own.Own", "own.Own"]}
        for name in names:
            edit(name, auto_map=map_, **more)(folder)

    return change


def index_of(*shards: Any) -> Change:
    """An index that spreads the tensors over these files."""
    return lambda folder: write_json(
        folder / INDEX,
        {"weight_map": {name: shards[i % len(shards)] for i, name in enumerate(load_file(folder / WEIGHTS))}},
    )


def resize(name: str) -> Change:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = torch.zeros(7, 9)

    return edit_weights(change)


def template(text: str) -> Change:
    """A chat template wherever one is looked for."""
    return both(
        write("chat_template.jinja", text),
        lambda folder: (folder / "chat_template.json").unlink(missing_ok=True),
        edit("tokenizer_config.json", chat_template=text),
    )


def more_tokens(folder: Path) -> None:
    """A tokenizer that knows tokens that the model does not."""
    tokenizer = load_processor(folder).tokenizer
    tokenizer.add_tokens([f"<new {index}>" for index in range(1000)])
    tokenizer.save_pretrained(folder)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SIZES = "no number from 1 to"
DAMAGES: dict[str, tuple[Change, str, str]] = {
    # --- config.json
    "config that is no JSON": (write("config.json", "{"), "config.json", "malformed JSON"),
    "config that is a list": (write("config.json", "[]"), "config.json", "no JSON object but a list"),
    "config that is not UTF-8": (write("config.json", b'{"a": "\xff"}'), "config.json", "malformed JSON"),
    "config nested too deeply": (write("config.json", '{"a":' * 99999), "config.json", "nested too deeply"),
    "config without a type": (edit("config.json", model_type=None), "model", "no model can be read there"),
    "config of a type that is a list": (edit("config.json", model_type=[1]), "model", "can be read there"),
    "config with a part that is a text": (edit("config.json", text_config="x"), "model", "can be read there"),
    "config that is a folder": (in_its_place("config.json", Path.mkdir), "config.json", "it is a folder"),
    "config that is a pipe": (in_its_place("config.json", os.mkfifo), "config.json", "it is a pipe"),
    "config that has no end": (
        in_its_place("config.json", lambda file: file.symlink_to("/dev/zero")), "config.json", "it is a device",
    ),
    "hidden size of 10^12": (part("config.json", "text_config", hidden_size=10**12), "config.json", SIZES),
    "vocabulary of 10^12": (part("config.json", "text_config", vocab_size=10**12), "config.json", SIZES),
    "10^9 layers": (part("config.json", "text_config", num_hidden_layers=10**9), "config.json", SIZES),
    "10^9 layers of the encoder": (part("config.json", "audio_config", encoder_layers=10**9), "config.json", SIZES),
    "layers below 0": (part("config.json", "text_config", num_hidden_layers=-2), "config.json", SIZES),
    "no heads": (part("config.json", "text_config", num_attention_heads=0), "config.json", SIZES),
    "hidden size that is a text": (part("config.json", "text_config", hidden_size="wide"), "config.json", SIZES),
    "hidden size of Infinity": (part("config.json", "text_config", hidden_size=float("inf")), "config.json", SIZES),
    "heads of no size": (part("config.json", "text_config", head_dim=None), "model", "no configuration of a model"),
    "heads that do not divide": (
        part("config.json", "text_config", num_attention_heads=3, num_key_value_heads=2), "model", "the weights have",
    ),
    "another hidden size": (part("config.json", "text_config", hidden_size=96), "model", "mismatched keys"),
    "unknown activation": (
        part("config.json", "text_config", hidden_act="nonsense"), "model", "no configuration of a model",
    ),
    "unknown rotary embeddings": (
        part("config.json", "text_config", rope_parameters={"rope_type": "nonsense"}), "model", "can be read there",
    ),
    "audio token outside": (edit("config.json", audio_token_id=10**6), "model", "instead of 1000000"),
    "dtype that there is not": (edit("config.json", dtype="float7"), "model", "can be read there"),
    "quantisation that is not installed": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "model", "no model can be read",
    ),
    # --- other settings
    "generation config that is no JSON": (write("generation_config.json", "x"), "generation_config.json", "malformed"),
    "generation config with a word for a token": (
        edit("generation_config.json", eos_token_id="end"), "generation_config.json", "not the number of a token",
    ),
    "generation config with a huge token": (
        edit("generation_config.json", eos_token_id=[10**30]), "generation_config.json", "not the number of a token",
    ),
    "preprocessor that is no JSON": (write("preprocessor_config.json", "{"), "preprocessor_config.json", "malformed"),
    "Fourier transform of 10^12": (edit("preprocessor_config.json", n_fft=10**12), "preprocessor_config.json", SIZES),
    "hop below 0": (edit("preprocessor_config.json", hop_length=-160), "preprocessor_config.json", SIZES),
    "window of 10^9 s": (edit("preprocessor_config.json", chunk_length=10**9), "preprocessor_config.json", SIZES),
    "another sampling rate": (edit("preprocessor_config.json", sampling_rate=8000), "model", "takes 8000 samples"),
    "tokenizer that is no JSON": (write("tokenizer.json", "{"), "model", "no processor can be read there"),
    "tokenizer of wrong types": (write("tokenizer.json", '{"model": 3}'), "model", "no processor can be read there"),
    "tokenizer that is empty": (write("tokenizer.json", ""), "model", "no processor can be read there"),
    "tokenizer settings that are a list": (write("tokenizer_config.json", "[]"), "tokenizer_config.json", "a list"),
    "tokenizer of a class that is a number": (
        edit("tokenizer_config.json", tokenizer_class=7), "model", "no processor can be read there",
    ),
    "tokenizer larger than the embeddings": (more_tokens, "model", "the processor does not fit the model"),
    "template with an error": (template("{% for %}"), "model", "the chat template fails"),
    "template that divides by 0": (template("{{ 1 / 0 }}"), "model", "the chat template fails (division by zero)"),
    "template that calls itself": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "model", "the chat template fails",
    ),
    "template that does not end": (template(ENDLESS), "model", "it was not done after 0.5 s"),
    "template that reaches for Python": (
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "model", "the chat template",
    ),
    "template that leaves the text out": (template("<|AUDIO|>"), "model", "does not show 'What is heard?'"),
    "template that leaves the clip out": (
        template("{{ messages[0].content[1].text }}"), "model", "does not show '<|AUDIO|>'",
    ),
    # --- weights
    "weights cut off": (cut_off(WEIGHTS, 1000), WEIGHTS, "damaged or cut off"),
    "weights that are empty": (write(WEIGHTS, b""), WEIGHTS, "damaged or cut off"),
    "weights that are a folder": (in_its_place(WEIGHTS, Path.mkdir), WEIGHTS, "it is a folder"),
    "weights that are a pipe": (in_its_place(WEIGHTS, os.mkfifo), WEIGHTS, "it is a pipe"),
    "header of 2^60 bytes": (write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), WEIGHTS, "damaged or cut off"),
    "tensor beyond the end": (
        write(WEIGHTS, struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}       '),
        WEIGHTS, "damaged or cut off",
    ),
    "tensor of another shape": (resize("multi_modal_projector.linear.weight"), "model", "1 mismatched keys"),
    "index that is no JSON": (write(INDEX, "{"), INDEX, "malformed JSON"),
    "index of wrong types": (write(INDEX, '{"weight_map": [1]}'), INDEX, "no file of weights in this folder"),
    "index that leads out": (index_of("../../secret.safetensors"), INDEX, "'../../secret.safetensors'"),
    "index with an absolute path": (index_of("/etc/passwd"), INDEX, "'/etc/passwd'"),
    "index that names a pickle": (index_of("model-1.bin"), INDEX, "'model-1.bin'"),
    "index that names a number": (index_of(7), INDEX, "which is no file of weights"),
    "index that names what is not there": (index_of(WEIGHTS, "b.safetensors"), "model", "missing: b.safetensors"),
    "pickled weights": (pickled("pytorch_model.bin", WEIGHTS), "model", "its weights are pickled (pytorch_model"),
}  # fmt: skip


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def ask(ends: Ends, questions: list[AudioQuestion]) -> Ends:
    """Ask a checkpoint, which refuses: `ask(folder, names)`."""
    question = ("--audio", questions[0].audio_path, "--question", "What is heard?", "--choices", "low", "high")
    return lambda folder, *names, code=2: ends(
        "r1_aqa_repro.ask", "--ckpt", folder, *question, code=code, names=list(names)
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(
    damage: str, folder: Path, ask: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1_aqa_repro.model.folder._TEMPLATE_SECONDS", 0.5)
    change, named, what = DAMAGES[damage]
    change(folder)
    said = ask(folder, named, what).err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {folder}")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_is_not_run(folder: Path, ask: Ends, tmp_path: Path) -> None:
    names = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
    code_of_its_own(*names)(folder)
    ask(folder, code=0)
    code_of_its_own("config.json", model_type="own")(folder)
    ask(folder, "no model can be read there")
    assert not (tmp_path / "ran").exists()


# --- Adapters


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter; shared, so change a copy only."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    get_peft_model(load_model(model_folder), config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def ring(folder: Path) -> None:
    """An adapter whose base is an adapter whose base is the first."""
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    edit(CONFIG, base_model_name_or_path=str(other))(folder)
    edit(CONFIG, base_model_name_or_path=str(folder))(other)


CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"


def spoil_adapter(folder: Path) -> None:
    weights = load_file(folder / ADAPTER)
    next(weights[name] for name in weights if name.endswith("lora_B.weight"))[0, 0] = float("nan")
    save_file(weights, folder / ADAPTER, metadata={"format": "pt"})


ADAPTERS: dict[str, tuple[Change, str]] = {
    "its own base": (lambda folder: edit(CONFIG, **{BASE: str(folder)})(folder), "it is an adapter itself"),
    "a ring": (ring, "it is an adapter itself"),
    "no base": (edit(CONFIG, **{BASE: None}), "it names no base model (base_model_name_or_path is None)"),
    "a base that is a number": (edit(CONFIG, **{BASE: 7}), "it names no base model"),
    "a base that is not there": (edit(CONFIG, **{BASE: "/nowhere/at/all"}), "no model can be read there"),
    "a base that is a file": (
        lambda folder: edit(CONFIG, **{BASE: str(folder / CONFIG)})(folder), "it is a file",
    ),
    "a base with a zero in its name": (edit(CONFIG, **{BASE: "/a\0b"}), "it is no folder that can be read"),
    "a base with a name too long": (edit(CONFIG, **{BASE: "/" + 5000 * "a"}), "File name too long"),
    "no JSON": (write(CONFIG, "{"), "malformed JSON"),
    "a list": (write(CONFIG, "[1]"), "no JSON object but a list"),
    "a pipe": (in_its_place(CONFIG, os.mkfifo), "it is a pipe"),
    "another rank": (edit(CONFIG, r=3), "it says rank 3, the adapter's tensors have 2"),
    "rank of 10^12": (edit(CONFIG, r=10**12), "r is 1000000000000, no number from 1 to"),
    "rank of 10^9 for a part": (edit(CONFIG, rank_pattern={"q_proj": 10**9}), "it says rank 1000000000, 2"),
    "rank that is a text": (edit(CONFIG, r="two"), "r is 'two', no number from 1 to"),
    "modules that are not there": (edit(CONFIG, target_modules=["nothing"]), "the adapter does not fit its base"),
    "wrong types": (edit(CONFIG, target_modules=7), "the adapter does not fit its base"),
    "another kind": (edit(CONFIG, peft_type="NONSENSE"), "NONSENSE"),
    "cut off": (cut_off(ADAPTER, 300), "damaged or cut off"),
    "a weight that is NaN": (spoil_adapter, "lora_B.weight is not finite"),
    "no weights": (remove(ADAPTER), "the folder holds no weights"),
    "pickled": (pickled("adapter_model.bin", ADAPTER), "its weights are pickled (adapter_model"),
}  # fmt: skip


@pytest.mark.parametrize("damage", ADAPTERS)
def test_a_damaged_adapter(damage: str, adapter: Path, ends: Ends, tmp_path: Path) -> None:
    change, what = ADAPTERS[damage]
    change(adapter)
    said = ends("r1_aqa_repro.merge_adapter", "--adapter", adapter, "--out", tmp_path / "merged", code=2, names=[what])
    assert str(adapter) in said.err or visible(read_json(adapter / CONFIG)[BASE]) in said.err
    assert not (tmp_path / "merged").exists() and not (tmp_path / "ran").exists()


# --- Every command that loads a model

TRAIN = ("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "1", "--save_steps", "1")


@pytest.fixture
def commands(manifest: Path, questions: list[AudioQuestion], text_set: Path, tmp_path: Path) -> dict[str, tuple]:
    """By command: its module, and what it is given beside the model, which comes last."""
    out, package = tmp_path / "out", "r1_aqa_repro"
    audio, prompts = ("--train_file", manifest), ("--train_file", text_set / "prompts.jsonl")
    pairs, sft = text_set / "pairs_train.jsonl", ("--train_file", text_set / "sft.jsonl")
    preferred = ("--train_file", pairs)
    trained = ("--output_dir", out, *TRAIN)
    groups = ("--prompts_per_step", "1", "--num_generations", "2")
    short = ("--reward_funcs", "random", "--max_completion_length", "8")
    ppo = ("--prompts_per_step", "1", "--reward_funcs", "random")
    plan = tmp_path / "plan.yaml"
    plan.write_text("num_generations: 4\nprompts_per_step: 8\nmax_prompts_per_device: 4\n")
    return {
        "train_sft": (f"{package}.train_sft", *trained, *audio, "--model_name_or_path"),
        "train_grpo": (f"{package}.train_grpo", *trained, *audio, *groups, "--model_name_or_path"),
        "train_sft_text": (f"{package}.train_sft_text", *trained, *sft, "--model_name_or_path"),
        "train_reward_model": (f"{package}.train_reward_model", *trained, *preferred, "--model_name_or_path"),
        "train_dpo": (f"{package}.train_dpo", *trained, *preferred, "--model_name_or_path"),
        "train_grpo_text": (f"{package}.train_grpo_text", *trained, *prompts, *groups, *short, "--model_name_or_path"),
        "train_ppo_text": (f"{package}.train_ppo_text", *trained, *prompts, *ppo, "--model_name_or_path"),
        "mmau": ("eval.mmau", "--data", manifest, "--out", out, "--device", "cpu", "--ckpt"),
        "score": (f"{package}.score", "--file", pairs, "--out", out, "--model"),
        "best_of_n": (
            f"{package}.best_of_n", "--prompts", text_set / "prompts.jsonl", "--out", out, "--rewards", "random",
            "--model",
        ),
        "merge_adapter": (f"{package}.merge_adapter", "--adapter", tmp_path / "adapter", "--out", out, "--base"),
        "plan": (f"{package}.plan", "--config", plan, "--gpus", "1", "--gpu-memory", "80", "--model_name_or_path"),
    }  # fmt: skip


HEARS = ("train_sft", "train_grpo", "mmau", "merge_adapter", "plan")
READS = (
    "train_sft_text", "train_reward_model", "train_dpo", "train_grpo_text", "train_ppo_text", "score", "best_of_n",
)  # fmt: skip
SPOILT = "up_proj.weight is not finite"
EVERYWHERE: dict[str, tuple[Change, str]] = {
    "settings that are a pipe": (in_its_place("generation_config.json", os.mkfifo), "it is a pipe"),
    "absurd sizes": (edit("config.json", vocab_size=10**12), SIZES),
    "pickled": (pickled("pytorch_model.bin", WEIGHTS), "its weights are pickled"),
    "another shape": (edit_weights(lambda weights: _reshape(weights, "q_proj.weight")), "mismatched keys"),
    "a weight that is NaN": (edit_weights(lambda weights: _spoil(weights, torch.float32, float("nan"))), SPOILT),
    "an infinite one in bfloat16": (
        edit_weights(lambda weights: _spoil(weights, torch.bfloat16, float("-inf"))),
        SPOILT,
    ),
}
NO_WEIGHTS_NEEDED = ("settings that are a pipe", "absurd sizes")


def _reshape(weights: dict[str, torch.Tensor], end: str) -> None:
    name = next(name for name in weights if name.endswith(end))
    weights[name] = torch.zeros(7, 9)


def _spoil(weights: dict[str, torch.Tensor], dtype: torch.dtype, value: float) -> None:
    """One number of one tensor."""
    weights |= {name: tensor.to(dtype) for name, tensor in weights.items()}
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    weights[name][-1, -1] = value


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        (command, damage)
        for command in (*HEARS, *READS)
        for damage in EVERYWHERE
        if command != "plan" or damage in NO_WEIGHTS_NEEDED  # it reads none
    ],
)
def test_every_command_refuses_a_damaged_model(
    command: str,
    damage: str,
    commands: dict[str, tuple],
    model_folder: Path,
    policy: Path,
    reward_model: Path,
    adapter: Path,
    ends: Ends,
    tmp_path: Path,
) -> None:
    of = model_folder if command in HEARS else reward_model if command == "score" else policy
    folder = Path(shutil.copytree(of, tmp_path / "model"))
    change, what = EVERYWHERE[damage]
    change(folder)
    said = ends(*commands[command], folder, code=2, names=[str(folder), what])
    assert said.err.count("error: ") == 1
    assert not (tmp_path / "ran").exists()
    if command != "mmau" or damage != "another shape":  # shapes are compared once the folder of results is there
        assert not (tmp_path / "out").exists()


# --- The folder of a run that is to go on

RUNS: dict[str, tuple[dict[str, str], str]] = {
    "a config that is no mapping": ({"config.resolved.yaml": "[1]"}, "its records are damaged"),
    "a config with a part that is none": ({"config.resolved.yaml": "data: 7"}, "its records are damaged"),
    "a config that is no YAML": ({"config.resolved.yaml": "{"}, "its records are damaged"),
    "a record that is no JSON": ({"config.resolved.yaml": "{}", "run.json": "{"}, "run.json: malformed JSON"),
    "a record of wrong types": ({"config.resolved.yaml": "{}", "run.json": '{"data": 7}'}, "its records are damaged"),
    "a checkpoint that is empty": ({"config.resolved.yaml": "{}", "checkpoint-1/a": ""}, "trainer_state.json"),
    "a state that is no JSON": (
        {"config.resolved.yaml": "{}", "checkpoint-1/trainer_state.json": "{"}, "malformed JSON",
    ),
    "a state that tells nothing": (
        {"config.resolved.yaml": "{}", "checkpoint-1/trainer_state.json": "{}"}, "does not tell how far the run is",
    ),
    "weights that are cut off": (
        {
            "config.resolved.yaml": "{}",
            "checkpoint-1/trainer_state.json": '{"global_step": 1, "max_steps": 2}',
            "checkpoint-1/model.safetensors": "cut off",
        },
        "damaged or cut off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", RUNS)
def test_a_run_folder_that_is_damaged(
    damage: str, commands: dict[str, tuple], model_folder: Path, ends: Ends, tmp_path: Path
) -> None:
    files, what = RUNS[damage]
    for name, content in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    before = contents(tmp_path / "out")
    ends(*commands["train_sft"], model_folder, code=2, names=[str(tmp_path / "out"), what])
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("content", [b"", [1], None], ids=["empty", "a list", "a pipe"])
def test_a_training_state_that_is_damaged(
    name: str, content: Any, commands: dict[str, tuple], model_folder: Path, ends: Ends, tmp_path: Path
) -> None:
    module, *given = commands["train_sft"]
    given += [model_folder, "--max_steps", "2", "--save_steps", "1", "--save_total_limit", "2"]
    ends(module, *given, code=0, names=[])
    for later in ("checkpoint-2", "final"):
        shutil.rmtree(tmp_path / "out" / later)
    checkpoint = tmp_path / "out/checkpoint-1"
    if isinstance(content, bytes):
        (checkpoint / name).write_bytes(content)
    elif content is None:
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
    else:
        torch.save(content, checkpoint / name)
    said = (
        [f"{checkpoint}: the ", "in it cannot be restored"] if content is not None else [str(checkpoint / name), "pipe"]
    )
    ends(module, *given, code=2, names=[*said, "Delete the checkpoint"])
    assert not (tmp_path / "out/final").exists()


# --- Its own way of decoding

DECODINGS: dict[str, Any] = {
    "do_sample": "yes",
    "temperature": float("nan"),
    "top_k": -5,
    "top_p": 7.5,
    "min_p": -1,
    "typical_p": "a",
    "epsilon_cutoff": 9,
    "repetition_penalty": 0,
    "no_repeat_ngram_size": -1,
    "num_beams": "several",
    "bad_words_ids": 7,
    "suppress_tokens": ["a"],
    "sequence_bias": [[1]],
}


@pytest.mark.parametrize("key", DECODINGS)
def test_a_decoding_that_cannot_be(key: str, folder: Path, manifest: Path, ends: Ends, tmp_path: Path) -> None:
    edit("generation_config.json", **{"do_sample": True, key: DECODINGS[key]})(folder)
    words = ("--ckpt", folder, "--data", manifest, "--decoding", "checkpoint", "--out", tmp_path / "out")
    ends("eval.mmau", *words, code=2, names=["generation_config.json", "beam search" if key == "num_beams" else key])
    assert not (tmp_path / "out").exists()
