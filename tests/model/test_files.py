"""The digest of a model: it changes with every file that answers depend on, and with no other."""

import json
import shutil

import pytest

from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.model.files import adapter_base, model_digest, processor_files

OF_THE_MODEL = (
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "processor_config.json",
    "chat_template.jinja",
)  # fmt: skip
OTHERS = ("trainer_state.json", "run.json", "training_args.bin", "optimizer.pt")


@pytest.fixture
def folder(tmp_path):
    for name in (*OF_THE_MODEL, *OTHERS):
        (tmp_path / name).write_text("before", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", [*OF_THE_MODEL, *OTHERS])
def test_digest_changes_with_the_files_of_the_model_alone(folder, name):
    before = model_digest(folder)
    (folder / name).write_text("after", encoding="utf-8")
    assert (model_digest(folder) != before) == (name in OF_THE_MODEL)


def test_digest_of_an_adapter_changes_with_its_base(folder):
    adapter, other = folder / "adapter", folder / "other"
    adapter.mkdir()
    other.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    (other / "model.safetensors").touch()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert adapter_base(adapter) == str(folder)
    before = model_digest(adapter)
    assert model_digest(adapter, base=other) != before
    (folder / "model.safetensors").write_text("after", encoding="utf-8")
    assert model_digest(adapter) != before


def test_digest_of_a_hub_id_is_the_id_and_an_empty_folder_has_none(tmp_path):
    assert model_digest("someone/a-model") == "someone/a-model"
    with pytest.raises(Refused, match="no weights"):
        model_digest(tmp_path)


def test_processor_files_of_a_hub_id_are_those_in_the_cache(model_folder, tmp_path, monkeypatch):
    repository, revision = tmp_path / "models--someone--a-model", "0" * 40
    shutil.copytree(model_folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = processor_files("someone/a-model")
    assert files == processor_files(model_folder)
    assert files["tokenizer.json"] == (model_folder / "tokenizer.json").read_bytes()
    assert "preprocessor_config.json" in files and "model.safetensors" not in files
    with pytest.raises(Refused, match="no files of a tokenizer or processor"):
        processor_files("someone/another")
