"""A tiny checkpoint with random weights, a few questions with clips, and the command on both."""

import shutil
from itertools import count
from pathlib import Path

import pytest
import soundfile
import torch

import eval.generation
from eval.mmau import main
from eval.settings import EvalSettings
from r1_aqa_repro.data.audio import SAMPLING_RATE
from r1_aqa_repro.embedded.question_set import make_question
from r1_aqa_repro.embedded.tiny_model import TEST, build_tiny_qwen2_audio
from r1_aqa_repro.model import generation
from r1_aqa_repro.model.loading import load_model
from tests.files import read_json, read_lines, write_json, write_lines

NUM_QUESTIONS = 12
# the repetition penalty makes a completion depend on what the batch is padded with, unless that is taken care of
OWN = {"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.3}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The manifest of a question set, shared by all tests: copy before changing."""
    folder = tmp_path_factory.mktemp("held_out")
    (folder / "audio").mkdir()
    records = []
    for index in range(NUM_QUESTIONS):
        record, clip = make_question(0, "held_out", index)
        records.append({**record, "audio_path": f"audio/{record['id']}.wav"})
        soundfile.write(folder / records[-1]["audio_path"], clip, SAMPLING_RATE)
    return write_lines(folder / "manifest.jsonl", records)


@pytest.fixture(scope="session")
def model(data, tmp_path_factory) -> Path:
    """A tiny checkpoint, shared by all tests: copy before changing."""
    folder = tmp_path_factory.mktemp("evaluation") / "model"
    texts = [" ".join([record["question"], *record["choices"]]) for record in read_lines(data)]
    build_tiny_qwen2_audio(folder, texts=texts, seed=0, geometry=TEST)
    _make_attentive(folder)
    return folder


def _make_attentive(folder: Path) -> None:
    """Enlarge the random weights until every question and every clip gets an answer of its own."""
    model = load_model(folder)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed_positions" not in name:
                weights.mul_(160 if "projector" in name else 16)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def sampling(model, tmp_path_factory) -> Path:
    """A checkpoint whose generation config samples."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("sampling") / "model"))
    set_own_decoding(folder, **OWN)
    return folder


@pytest.fixture
def checkpoint(model, tmp_path) -> Path:
    """A copy of the tiny checkpoint."""
    return Path(shutil.copytree(model, tmp_path / "run" / "checkpoint-1"))


@pytest.fixture
def manifest(data, tmp_path) -> Path:
    """A copy of the question set's manifest, with its clips beside it."""
    return Path(shutil.copytree(data.parent, tmp_path / "held_out")) / "manifest.jsonl"


@pytest.fixture(scope="session")
def whole(model, data, tmp_path_factory) -> Path:
    """The folder of an uninterrupted evaluation: copy before changing."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert evaluate(model, data, out) == 0
    return out


@pytest.fixture
def answers(tmp_path):
    """The completions of an evaluation in a folder of its own, by question and repeat."""
    numbers = count()

    def of(checkpoint, data, *more):
        out = tmp_path / f"answers-{next(numbers)}"
        assert evaluate(checkpoint, data, out, *more) == 0
        return completions(out)

    return of


@pytest.fixture
def asked(monkeypatch):
    """The ids that are put to the model, in their order."""
    seen = []
    before_each_batch(monkeypatch, lambda prompts: seen.extend(one.question.id for one in prompts))
    return seen


def before_each_batch(monkeypatch, do):
    """Let something be done with the prompts of a batch before they are put to the model."""
    answer = eval.generation.Generator.answer

    def doing(self, prompts, warn):
        do(prompts)
        return answer(self, prompts, warn)

    monkeypatch.setattr(eval.generation.Generator, "answer", doing)


def limit_memory(monkeypatch, most):
    """Let batches of more prompts than `most` run out of memory; returns the sizes that are tried, as they are."""
    tried = []
    generate = generation.generate

    def limited(model, inputs, rows, *args, **options):
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return generate(model, inputs, rows, *args, **options)

    monkeypatch.setattr(generation, "generate", limited)
    return tried


def arguments_of(checkpoint, data, out, *more):
    """Options of the command; what comes later counts."""
    given = ["--ckpt", checkpoint, "--data", data, "--out", out, "--batch-size", 5, "--max-new-tokens", 6]
    return list(map(str, [*given, "--device", "cpu", *more]))


def evaluate(checkpoint, data, out, *more):
    """The exit code of the command."""
    return main(arguments_of(checkpoint, data, out, *more))


def load_generator(checkpoint, own_decoding=None, **settings):
    given = {"prompt_style": "answer", "max_new_tokens": 6, "dtype": "float32", "device": "cpu"} | settings
    return eval.generation.Generator.load(EvalSettings(ckpt=str(checkpoint), **given), own_decoding)


def set_own_decoding(checkpoint, **own):
    path = checkpoint / "generation_config.json"
    write_json(path, read_json(path) | own)


def flip_a_bit(checkpoint):
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def completions(out):
    """By question and repeat."""
    return {(one["id"], one["repeat"]): one["completion"] for one in read_lines(out / "predictions.jsonl")}


def cut(out, share):
    """Leave a copy's first so much (0-1) of the predictions, as an interruption would."""
    content = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(content[: int(share * len(content))])
