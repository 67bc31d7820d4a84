"""What saved models answer, in the transformers that runs this file: tests import it, 4.49 is started with it.

python tests/generations.py OUT FOLDER...      # written with torch.save: the answers, in the order of the folders
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

OLDER = ("transformers==4.49.0", "tokenizers==0.21.0", "huggingface-hub==0.29.3")
Answer = tuple[torch.Tensor, torch.Tensor]


def answer(folder: Path) -> Answer:
    """Token ids [1, T] of a conversation by the folder's own processor and template, and the model's logits for it:
    [1, T, V], or [1, 1] of a reward model."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert model.dtype == torch.float32
    content: Any = "Name 3 fruits."
    if name == "Qwen2AudioForConditionalGeneration":
        processor = transformers.AutoProcessor.from_pretrained(folder)
        content = [{"type": "audio", "audio": "clip.wav"}, {"type": "text", "text": content}]
        wave = np.sin(np.arange(16_000) / 10).astype(np.float32)
        audio = {"audio" if transformers.__version__ >= "5" else "audios": [wave], "sampling_rate": 16_000}
    else:
        processor, audio = transformers.AutoTokenizer.from_pretrained(folder), {}
    conversation = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], return_tensors="pt", padding=True, **audio)
    with torch.no_grad():
        return inputs["input_ids"], model.eval()(**inputs).logits


@pytest.fixture(scope="session")
def check_older(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Checks that transformers 4.49 answers as transformers 5 does from each of the folders."""
    venv = tmp_path_factory.mktemp("older") / "venv"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *OLDER]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers 4.49 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    # everything else is the project's own; what is installed above comes before it
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "project.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def check(*folders: Path) -> None:
        out = tmp_path_factory.mktemp("answers") / "answers.pt"
        done = subprocess.run([python, __file__, out, *folders], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        version, *answers = torch.load(out)
        assert version == "4.49.0"
        for folder, (ids, logits) in zip(folders, answers, strict=True):
            expected_ids, expected = answer(folder)
            assert torch.equal(ids, expected_ids), folder
            assert logits.shape == expected.shape and (logits - expected).abs().max() < 1e-5, folder

    return check


if __name__ == "__main__":
    torch.save([transformers.__version__, *map(answer, map(Path, sys.argv[2:]))], sys.argv[1])
