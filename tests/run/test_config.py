"""Configurations: every published file is understood, nothing is ignored, and a step is the same everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainingArguments
from transformers.integrations import HfDeepSpeedConfig
from trl import ModelConfig

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.yaml_file import read_yaml
from r1_aqa_repro.model.text_loading import TextModelConfig
from r1_aqa_repro.ppo.trainer import PPOConfig
from r1_aqa_repro.run.arguments import DataArguments, TextRunArguments, batch_plan
from r1_aqa_repro.run.config import (
    AudioGRPOConfig,
    AudioSFTConfig,
    JudgedKTOConfig,
    PairDPOConfig,
    RewardModelConfig,
    SharedPrefixGRPOConfig,
    TextGRPOConfig,
    TextRLOOConfig,
    TextSFTConfig,
    has_bf16,
    parse_as,
)
from tests.conftest import ROOT, TRAINING_CONFIGS

# by how a file's name begins; the longest counts
KINDS: dict[str, tuple[type, type[TrainingArguments], type]] = {
    "grpo": (DataArguments, AudioGRPOConfig, ModelConfig),
    "sft": (DataArguments, AudioSFTConfig, ModelConfig),
    "sft_text": (TextRunArguments, TextSFTConfig, TextModelConfig),
    "reward_model": (TextRunArguments, RewardModelConfig, TextModelConfig),
    "dpo": (TextRunArguments, PairDPOConfig, TextModelConfig),
    "grpo_text": (TextRunArguments, TextGRPOConfig, TextModelConfig),
    "ppo_text": (TextRunArguments, PPOConfig, TextModelConfig),
    "kto": (TextRunArguments, JudgedKTOConfig, TextModelConfig),
    "rloo_text": (TextRunArguments, TextRLOOConfig, TextModelConfig),
}
ON_CPU = ["--bf16", "false"]  # without a GPU TrainingArguments refuses bf16; `use_cpu` would connect processes
FROM_EXAMPLES = ("sft", "sft_text", "reward_model", "dpo", "kto")
HELD_OUT = ["--eval_file", "held_out.jsonl", "--save_steps", "7"]


def kind_of(path: Path) -> str:
    return max((kind for kind in KINDS if path.name.startswith(f"{kind}_")), key=len)


def parsed(kind: str, *argv: str) -> tuple[Any, Any, Any]:
    data, training, model = parse_as(KINDS[kind], [*ON_CPU, *argv])
    return data, training, model


def published(path: Path) -> tuple[Any, Any, Any]:
    return parsed(kind_of(path), "--config", str(path))


def refusal_of(*argv: str, kind: str = "grpo") -> str:
    with pytest.raises(Refused) as refusal:
        parsed(kind, *argv)
    assert all(problem.remedy for problem in refusal.value.problems)
    return str(refusal.value)


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


class TestPublishedFiles:
    def test_they_are_found(self):
        assert set(KINDS) == set(map(kind_of, TRAINING_CONFIGS))

    @pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda path: path.stem)
    def test_every_key_arrives(self, path, monkeypatch):
        monkeypatch.chdir(ROOT)
        data, training, model = published(path)
        assert training.batch_problem is None
        arrived = vars(data) | vars(model) | training.to_dict()
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key not in ("bf16", "lora_target_modules", "report_to"):
                assert arrived[key] == value, key
        if training.deepspeed:
            assert Path(training.deepspeed).is_file()

    @pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda path: path.stem)
    @pytest.mark.parametrize("processes", [1, 2, 4, 8])
    def test_a_step_is_the_same_on_any_number_of_devices(self, path, processes, monkeypatch):
        monkeypatch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: processes)
        training = published(path)[1]
        if path.stem == "grpo_text_sparse_embedded" and processes > 1:  # one prompt a step
            assert training.batch_problem == f"prompts_per_step: 1 does not divide among {processes} processes"
            return
        assert training.batch_problem is None
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
        if isinstance(training, SharedPrefixGRPOConfig | TextRLOOConfig):
            assert rows == training.prompts_per_step * training.num_generations
            assert training.per_device_train_batch_size % training.num_generations == 0
            assert training.steps_per_generation == 1
            if isinstance(training, AudioGRPOConfig) and "small" not in path.stem:
                assert rows == 16 * 8  # the paper's
        elif isinstance(training, PPOConfig):
            assert rows * training.num_mini_batches == training.prompts_per_step
        else:
            assert rows == training.examples_per_step

    @pytest.mark.parametrize(
        ("name", "base", "differing"),
        [
            ("grpo_qwen2_audio_7b_beta0001", "grpo_qwen2_audio_7b", {"beta"}),
            ("grpo_small_think", "grpo_small", {"prompt_style", "max_completion_length", "max_prompts_per_device"}),
            (
                "grpo_qlora_qwen2_audio_7b",
                "grpo_lora_qwen2_audio_7b",
                {"load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "max_prompts_per_device"}
                | {"activation_checkpointing"},
            ),
        ],
    )
    def test_a_variant_differs_from_its_base_in_what_it_is_for(self, name: str, base: str, differing: set[str]):
        own, other = (read_yaml(str(ROOT / "configs" / f"{each}.yaml")) for each in (name, base))
        assert {key for key in own | other if own.get(key) != other.get(key)} == differing | {"output_dir"}

    def test_the_papers_settings(self):
        path = ROOT / "configs" / "grpo_qwen2_audio_7b.yaml"
        data, training, model = published(path)
        assert (training.learning_rate, training.beta, training.num_generations) == (1e-6, 0.04, 8)
        assert (training.temperature, training.top_k, training.top_p) == (1.0, 50, 1.0)
        assert (training.loss_type, training.scale_rewards, training.max_completion_length) == ("grpo", "group", 256)
        assert (training.max_steps, training.save_steps, training.seed) == (1000, 100, 42)
        assert (data.prompt_style, data.audio_channel, model.dtype) == ("answer", "first", "float32")

    @pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.json")), ids=lambda path: path.stem)
    def test_deepspeed(self, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        stage = int(path.stem[4])  # zero2, zero3, ...
        assert content["zero_optimization"]["stage"] == stage
        # derived by TrainingArguments: a number here would contradict `prompts_per_step`
        assert content["train_batch_size"] == content["train_micro_batch_size_per_gpu"] == "auto"
        assert content["gradient_accumulation_steps"] == content["gradient_clipping"] == "auto"
        # without it a ZeRO-3 checkpoint holds no weights that can be evaluated
        assert content["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", False) == (stage == 3)
        parsed = HfDeepSpeedConfig(str(path))
        assert parsed.is_offload() == ("offload" in path.stem)


class TestPrecedence:
    def test_the_command_line_overrides_the_file(self, config_file):
        file = config_file("learning_rate: 1.0e-4\nbeta: 0.5\nprompt_style: think\n")
        data, training, _ = parsed("grpo", "--config", file, "--learning_rate", "3e-4", "--prompt_style", "direct")
        assert (training.learning_rate, training.beta, data.prompt_style) == (3e-4, 0.5, "direct")

    @pytest.mark.parametrize(
        ("argv", "beta"),
        [
            (["--config", "FILE"], 0.5),
            (["--config=FILE"], 0.5),
            (["--beta", "0.1", "--config", "FILE"], 0.1),
            (["--beta", "0.1"], 0.1),
        ],
    )
    def test_wherever_the_file_is_named(self, config_file, argv, beta):
        file = config_file("beta: 5e-1")  # YAML 1.1 needs a point to see a number
        assert parsed("grpo", *(part.replace("FILE", file) for part in argv))[1].beta == beta

    @pytest.mark.parametrize("kind", ["grpo", "grpo_text"])
    @pytest.mark.parametrize("text", ["sharing: off", "sharing: 'off'"])
    def test_off_is_a_word_though_yaml_reads_false(self, config_file, text, kind):
        assert parsed(kind, "--config", config_file(text))[1].sharing == "off"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", None])
    def test_bf16_auto_is_what_the_cpu_has(self, config_file, kind, instruction, monkeypatch, capsys):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, str(instruction): True})
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        training = parse_as(KINDS[kind], ["--config", config_file("bf16: auto")])[1]
        assert (training.bf16, training.use_cpu) == (instruction is not None, True)
        assert f"bf16: auto is {str(training.bf16).lower()} on this CPU" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["--bf16", "auto", "--beta", "0.1"], True),
            (["--beta", "0.1", "--bf16=auto"], True),
            (["--beta", "0.1", "--bf16", "false"], False),
        ],
    )
    def test_the_command_line_decides_on_bf16_too(self, config_file, argv, expected, monkeypatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        file = config_file("bf16: auto\nuse_cpu: true")
        training = parse_as(KINDS["grpo"], ["--config", file, *argv])[1]
        assert (training.bf16, training.beta) == (expected, 0.1)

    @pytest.mark.parametrize("native", [True, False])
    def test_bf16_auto_on_a_gpu_leaves_out_what_it_emulates(self, native, monkeypatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not native})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
        )
        assert has_bf16(on_cpu=False) == native
        assert has_bf16(on_cpu=True) != native

    def test_rewards_follow_from_what_is_rewarded(self):
        assert parsed("grpo")[1].reward_funcs == ["accuracy", "format"]
        assert parsed("grpo_text")[1].reward_funcs == ["reward_model"]

    @pytest.mark.parametrize("kind", FROM_EXAMPLES)
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (HELD_OUT, ("steps", 7)),
            ([*HELD_OUT, "--eval_steps", "3"], ("steps", 3)),
            ([*HELD_OUT, "--eval_strategy", "epoch"], ("epoch", 7)),
            ([], ("no", None)),
        ],
    )
    def test_an_eval_file_decides_when_to_evaluate(self, kind, argv, expected):
        training = parsed(kind, *argv)[1]
        assert (str(training.eval_strategy.value), training.eval_steps) == expected

    @pytest.mark.parametrize("given", ["file", "command line"])
    def test_rope_parameters(self, config_file, given):
        yarn = {"rope_type": "yarn", "factor": 4.0}
        file = config_file(yaml.safe_dump({"rope_parameters": yarn}))
        argv = ["--config", file] if given == "file" else ["--rope_parameters", json.dumps(yarn)]
        assert parsed("sft_text", *argv)[2].rope == yarn
        assert parsed("sft_text")[2].rope is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("beta: 0.1\nbeta: 0.2", "the key 'beta' stands twice"),
            ("learning_rat: 1.0", "learning_rat"),  # a misspelling, an abbreviation
            ("nope: 1", "nope"),
            ("per_device_train_batch_size: 8", "per_device_train_batch_size cannot be set: it is derived"),
            ("gradient_accumulation_steps: 2", "gradient_accumulation_steps cannot be set: it is derived"),
            ("steps_per_generation: 2", "steps_per_generation cannot be set: it is derived"),
            ("prompt_style: poem", "prompt_style is 'poem'. Choose among direct, answer, think"),
            ("audio_channel: left", "audio_channel is 'left'"),
            ("sharing: maybe", "sharing is 'maybe'"),
            ("num_generations: eight", "num_generations is 'eight'. Give an integer"),
            ("num_generations: 1", "num_generations is 1. Give an integer from 2 to"),
            ("prompts_per_step: 2.5", "prompts_per_step is 2.5. Give an integer"),
            ("prompts_per_step: true", "prompts_per_step is True"),
            ("learning_rate: null", "learning_rate is None. Give a finite number"),
            ("skip_bad_records: 1", "skip_bad_records is 1. Give true or false"),
            ("reward_funcs: accuracy", "reward_funcs is 'accuracy'. Give a list"),
            ("learning_rate: [", "the config cannot be read"),
            ("- beta", "the config is no mapping"),
            ("", "the config is no mapping"),
        ],
    )
    def test_file(self, config_file, text, what):
        file = config_file(text)
        refusal = refusal_of("--config", file)
        assert what in refusal
        assert refusal.startswith(file)

    def test_every_wrong_value_of_a_file_is_named(self, config_file):
        refusal = refusal_of("--config", config_file("prompt_style: poem\nprompts_per_step: 0.5\n"))
        assert "prompt_style is 'poem'" in refusal and "prompts_per_step is 0.5" in refusal

    @pytest.mark.parametrize(
        ("argv", "what"),
        [
            (["--nope", "1"], "--nope"),
            (["--learning_rat", "1"], "--learning_rat"),
            (["stray"], "stray"),
            (["--num_generations", "eight"], "num_generations is 'eight'. Give an integer"),
            (["--prompt_style", "poem"], "invalid choice: 'poem'"),
            (["--per_device_train_batch_size", "8"], "it is derived"),
            (["--per-device-train-batch-size", "8"], "it is derived"),
            (["--gradient_accumulation_steps=2"], "it is derived"),
            (["--config"], "command line: --config has no value"),
            (["--config", "nowhere.yaml"], "nowhere.yaml: the config cannot be read"),
        ],
    )
    def test_command_line(self, argv, what, capsys):
        assert what in refusal_of(*argv)
        assert capsys.readouterr().err == ""  # one message, not pages of usage

    @pytest.mark.parametrize(
        ("kind", "key"),
        [
            ("sft", "prompts_per_step"), ("sft_text", "beta"), ("reward_model", "beta"), ("dpo", "num_generations"),
            ("grpo_text", "eval_file"), ("grpo_text", "prompt_style"), ("ppo_text", "num_generations"),
        ],
    )  # fmt: skip
    def test_a_key_of_another_entry_point_is_unknown(self, kind, key):
        assert f"--{key}" in refusal_of(f"--{key}", "1", kind=kind)

    def test_rope_parameters_that_are_no_json(self):
        said = refusal_of("--rope_parameters", "yarn", kind="sft_text")
        assert 'rope_parameters is no JSON object such as {"rope_type": "yarn", "factor": 4.0}' in said


class TestBatchPlan:
    @pytest.mark.parametrize(
        ("sizes", "plan"),
        [
            ((16, 2, 1), (2, 8)),
            ((16, 2, 16), (1, 1)),
            ((16, 16, 4), (4, 1)),
            ((16, 5, 1), (4, 4)),  # the largest size up to 5 that divides 16
            ((7, 4, 1), (1, 7)),
        ],
    )
    def test_by_hand(self, sizes, plan):
        assert batch_plan(*sizes) == plan

    @pytest.mark.parametrize(
        ("sizes", "what"),
        [
            ((16, 2, 3), "16 does not divide among 3 processes"),
            ((16, 2, 32), "16 does not divide among 32 processes"),
            *((sizes, "at least 1") for sizes in [(0, 2, 1), (16, 0, 1), (16, 2, 0), (-16, 2, 1)]),
        ],
    )
    def test_sizes_that_give_no_plan(self, sizes, what):
        with pytest.raises(ValueError, match=what):
            batch_plan(*sizes)

    @pytest.mark.parametrize("kind", ["grpo", "grpo_text"])
    @pytest.mark.parametrize(("processes", "plan"), [(1, (12, 4)), (4, (12, 1)), (8, (6, 1))])
    def test_a_group_of_grpo_stays_on_one_device(self, kind, processes, plan, monkeypatch):
        monkeypatch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: processes)
        argv = ["--prompts_per_step", "8", "--max_prompts_per_device", "2", "--num_generations", "6"]
        training = parsed(kind, *argv)[1]
        assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == plan

    @pytest.mark.parametrize("kind", ["grpo", "sft", "dpo", "grpo_text"])
    def test_what_does_not_divide_is_kept_for_the_preflight(self, kind, monkeypatch):
        """Raised here it would hide everything else that is wrong."""
        monkeypatch.setattr("r1_aqa_repro.run.arguments.num_processes", lambda: 3)
        key = "prompts_per_step" if "grpo" in kind else "examples_per_step"
        assert parsed(kind, f"--{key}", "16")[1].batch_problem == f"{key}: 16 does not divide among 3 processes"
