"""A file that is broken as a whole: every command names it and makes nothing."""

import pytest

from data_prep import avqa, mmau, preferences, split, stats, validate
from tests.data_prep.conftest import wav

COMMANDS = {
    "avqa": (avqa, ["--annotations", "FILE", "--media", "media", "--out", "out"]),
    "mmau": (mmau, ["--questions", "FILE", "--out", "out"]),
    "preferences": (preferences, ["--input", "FILE", "--out", "out"]),
    "split": (split, ["FILE", "--held-out", "1", "--by", "clip", "--out", "out"]),
    "stats": (stats, ["FILE", "--out", "out"]),
    "validate": (validate, ["FILE", "--json", "out"]),
}


@pytest.mark.parametrize("content", [None, b"", b'[{"id": 1}, {"id"', b"PAR1 and no more"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_broken_as_a_whole_is_refused_and_nothing_is_made(command, content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wav(tmp_path / "media" / "ID_1.wav")
    if content is not None:
        (tmp_path / "FILE").write_bytes(content)
    module, arguments = COMMANDS[command]
    assert module.main([str(tmp_path / part) if part == "FILE" else part for part in arguments]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {tmp_path / 'FILE'}:")
    assert not (tmp_path / "out").exists()
