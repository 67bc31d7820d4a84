"""What a user may not read or write, and places where nothing can be written: named, before any work."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1_aqa_repro import ask
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.files import check_writable
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.model.files import make_portable, processor_files
from r1_aqa_repro.model.loading import load_model
from tests.data_prep.conftest import mmau_record, write_tar
from tests.files import contents, write_json
from tests.hostile.conftest import Ends

_OVERRIDING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@pytest.fixture
def bound() -> Iterator[None]:
    """Permission bits bind this test, also if root runs it."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, now = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == libc.capget(header, now) == 0
    now[0] &= ~_OVERRIDING  # of the capabilities in effect, those of the first 32
    assert libc.capset(header, now) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.fixture
def forbid(bound: None) -> Iterator[Callable[[Path, int], Path]]:
    """Take permissions of a path away until the test ends: `forbid(path, 0)`."""
    changed: list[tuple[Path, int]] = []

    def of(path: Path, mode: int = 0) -> Path:
        changed.append((path, path.stat().st_mode & 0o777))
        path.chmod(mode)
        return path

    yield of
    for path, mode in reversed(changed):
        path.chmod(mode)


TRAIN = ("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "1", "--save_steps", "1")


@pytest.fixture
def given(
    model_folder: Path, manifest: Path, questions: list[AudioQuestion], text_set: Path, policy: Path, tmp_path: Path
) -> dict[str, Path]:
    """Copies of what commands read, by name, in a folder of their own."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "plan.yaml").write_text("prompts_per_step: 8\nmax_prompts_per_device: 4\n")
    write_json(inputs / "mmau.json", [mmau_record(0)])
    write_json(inputs / "avqa.json", [{"id": 1}])
    (inputs / "clips").mkdir()
    clip = Path(shutil.copy(questions[0].audio_path, inputs / "clip.wav"))
    return {
        "model": Path(shutil.copytree(model_folder, inputs / "model")),
        "policy": Path(shutil.copytree(policy, inputs / "policy")),
        "manifest": manifest,
        "prompts": Path(shutil.copy(text_set / "prompts.jsonl", inputs)),
        "pairs": Path(shutil.copy(text_set / "pairs_train.jsonl", inputs)),
        "mmau": inputs / "mmau.json",
        "avqa": inputs / "avqa.json",
        "plan": inputs / "plan.yaml",
        "clip": clip,
        "clips": inputs / "clips",
        "archive": write_tar(inputs / "clips.tar", [("a.wav", clip.read_bytes())]),
        "out": tmp_path / "out",
    }


# by command: its module and arguments; of those in brackets the path of what is given
COMMANDS: dict[str, str] = {
    "ask": "r1_aqa_repro.ask --ckpt {model} --audio {clip} --question Q --choices a b",
    "mmau": "eval.mmau --ckpt {model} --data {manifest} --device cpu --out {out}",
    "train_grpo": "r1_aqa_repro.train_grpo --model_name_or_path {model} --train_file {manifest} --output_dir {out}",
    "train_dpo": "r1_aqa_repro.train_dpo --model_name_or_path {policy} --train_file {pairs} --output_dir {out}",
    "best_of_n": "r1_aqa_repro.best_of_n --model {policy} --prompts {prompts} --rewards random --out {out}",
    "score": "r1_aqa_repro.score --model {policy} --file {pairs} --out {out}",
    "plan": "r1_aqa_repro.plan --config {plan} --model_name_or_path {policy} --gpus 1 --gpu-memory 80 --json {out}/p",
    "prepare mmau": "data_prep.mmau --questions {mmau} --audio {archive} {clips} --out {out}",
    "prepare avqa": "data_prep.avqa --annotations {avqa} --media {clips} --out {out}",
    "preferences": "data_prep.preferences --input {pairs} --out {out}",
    "stats": "data_prep.stats {manifest} --out {out}",
    "split": "data_prep.split {manifest} --held-out 2 --out {out}",
    "validate": "data_prep.validate {manifest} --json {out}/found.json",
}


def line_of(command: str, given: dict[str, Path]) -> list[str]:
    words = [word.format(**given) for word in COMMANDS[command].split()]
    return [*words, *(TRAIN if command.startswith("train") else ())]


READ = {
    "the model's folder": ("ask", "model", ""),
    "the model's folder, evaluated": ("mmau", "model", ""),
    "the model's folder, trained": ("train_grpo", "model", ""),
    "a text model's folder, trained": ("train_dpo", "policy", ""),
    "the folder above the model's": ("best_of_n", "policy", "/.."),
    "config.json": ("ask", "model", "/config.json"),
    "the weights": ("mmau", "model", "/model.safetensors"),
    "the weights, trained": ("train_grpo", "model", "/model.safetensors"),
    "the tokenizer": ("best_of_n", "policy", "/tokenizer.json"),
    "the tokenizer's settings": ("score", "policy", "/tokenizer_config.json"),
    "the generation config": ("train_dpo", "policy", "/generation_config.json"),
    "the settings of a planned model": ("plan", "policy", "/config.json"),
    "the config": ("plan", "plan", ""),
    "the clip": ("ask", "clip", ""),
    "the questions": ("prepare mmau", "mmau", ""),
    "the archive": ("prepare mmau", "archive", ""),
    "the folder of clips": ("prepare mmau", "clips", ""),
    "the media": ("prepare avqa", "clips", ""),
    "the annotations": ("prepare avqa", "avqa", ""),
    "the pairs": ("preferences", "pairs", ""),
    "the prompts": ("best_of_n", "prompts", ""),
}


@pytest.mark.parametrize("what", READ)
def test_what_may_not_be_read(what: str, given: dict[str, Path], forbid: Callable[..., Path], ends: Ends) -> None:
    command, name, inside = READ[what]
    words = line_of(command, given)
    path = given[name].parent if inside == "/.." else Path(f"{given[name]}{inside}")
    forbid(path)
    error = ends(*words, code=2, names=["Permission denied"]).err
    assert str(given[name]) in error
    assert not given["out"].exists()


WRITE = [command for command in COMMANDS if "{out}" in COMMANDS[command]]


@pytest.mark.parametrize("command", WRITE)
def test_a_folder_that_may_not_be_written(
    command: str, given: dict[str, Path], forbid: Callable[..., Path], ends: Ends, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    given["out"] = forbid(closed, 0o500) / "new"
    error = ends(*line_of(command, given), code=2, names=["cannot be written to (Permission denied)"]).err
    assert str(given["out"]) in error
    assert not list(closed.iterdir())


PLACES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a file": (lambda folder: (folder / "x").touch(), "x", "it is not a folder"),
    "below a file": (lambda folder: (folder / "x").touch(), "x/y/z", "Not a directory"),
    "a pipe": (lambda folder: os.mkfifo(folder / "x"), "x", "it is not a folder"),
    "a name too long": (lambda folder: None, "a" * 300, "File name too long"),
    "a path too long": (lambda folder: None, "/".join(["a" * 200] * 30), "File name too long"),
    "a link in a ring": (lambda folder: (folder / "x").symlink_to("x"), "x/y", "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("command", ["mmau", "train_grpo", "best_of_n", "prepare mmau", "preferences", "validate"])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_no_folder(
    place: str, command: str, given: dict[str, Path], ends: Ends, tmp_path: Path
) -> None:
    make, name, reason = PLACES[place]
    (tmp_path / "places").mkdir()
    make(tmp_path / "places")
    given["out"] = tmp_path / "places" / name
    before = sorted(os.listdir(tmp_path / "places"))
    ends(*line_of(command, given), code=2, names=[name, reason])
    assert sorted(os.listdir(tmp_path / "places")) == before


def test_a_name_that_nothing_can_have(tmp_path: Path) -> None:
    """Of a config: no argument can hold it."""
    with pytest.raises(Refused, match="null byte"):
        check_writable(f"{tmp_path}/a\0b")


def test_a_disk_that_is_full_shows_at_once(given: dict[str, Path], ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 0 bytes a file gives the same error as a quota that is used up."""
    words = line_of("prepare mmau", given)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(Refused, match="cannot be written to"):
            check_writable(given["out"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.setattr("r1_aqa_repro.common.files.existing_folder", lambda folder: Path("/proc/self"))
    ends(*words, code=2, names=["cannot be written to"])
    assert not given["out"].exists()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_may_be_read_by_whom_the_umask_lets(umask: int, model_folder: Path, tmp_path: Path) -> None:
    files = processor_files(model_folder)
    before = os.umask(umask)
    try:
        load_model(model_folder).save_pretrained(tmp_path)
        make_portable(tmp_path, files)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_without_a_home(model_folder: Path, questions: list[AudioQuestion], ends: Ends) -> None:
    """A uid that has no entry, no HOME and may write nowhere gets the answer that root gets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        model = Path(shutil.copytree(model_folder, folder / "model"))
        (model / "model.safetensors").chmod(0o600)
        make_portable(model, processor_files(model_folder))  # as a training leaves it
        clip = shutil.copy(questions[0].audio_path, folder / "clip.wav")
        words = ["--ckpt", str(model), "--audio", str(clip), "--question", "What is heard?", "--choices", "low", "high"]
        expected = ends("r1_aqa_repro.ask", *words, code=0, names=[])  # which also imports all it needs
        before = contents(folder)
        (folder / "said").touch()
        (folder / "said").chmod(0o666)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                sys.stdout = sys.stderr = open(folder / "said", "w")  # noqa: SIM115 (it ends with the process)
                os.setgroups([])
                os.setgid(65_432)
                os.setuid(65_432)
                os.environ.pop("HOME", None)
                os.umask(0o077)
                os.chdir("/")
                code = ask.main(words)
                sys.stdout.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said = (folder / "said").read_text()
        assert os.waitstatus_to_exitcode(status) == 0, said
        assert expected.out in said
        (folder / "said").unlink()
        assert contents(folder) == before
    finally:
        shutil.rmtree(folder)
