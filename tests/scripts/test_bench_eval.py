"""The evaluation benchmark: both ways do the same work, and its figures are what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import bench_eval as bench


def test_both_ways_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    size = ["--batch_size", "3", "--repeats", "2", "--completion-tokens", "4", "--rounds", "2"]
    assert bench.main(["--geometry", "tiny", *size, "--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert (report["geometry"], report["batch_size"], report["completion_tokens"]) == ("tiny", 3, 4)
    assert (report["greedy"]["same_completions"], report["greedy"]["questions"]) == (3, 3)
    assert (report["greedy"]["repeats"], report["sampled"]["repeats"]) == (1, 2)
    for name in ("greedy", "sampled"):
        one = report[name]
        for way in ("harness", "plain"):
            # rounded to 5e-5 of some 0.05 s
            assert one[way]["questions_per_second"] == pytest.approx(3 / one[way]["seconds"], rel=0.01)
        assert one["ratio"]["min"] <= one["ratio"]["median"] <= one["ratio"]["max"]
    assert "greedy completions that are the same: 3 of 3" in capsys.readouterr().out


def test_every_completion_has_the_forced_length(tmp_path: Path) -> None:
    bench.prepare(bench.replace(bench.SETUPS["tiny"], prompts=2), tmp_path)
    questions = bench.read_questions(tmp_path / "manifest.jsonl").records
    ways = bench.Ways(tmp_path / "model", questions, 3, True, 5)
    assert (ways.harness.config.min_new_tokens, ways.reference_config.min_new_tokens) == (5, 5)
    assert (ways.reference_config.max_new_tokens, ways.reference_config.do_sample) == (5, True)
    for texts in (ways.run_harness(), ways.run_plain()):
        assert [len(answers) for answers in texts] == [3, 3]
        assert len({text for answers in texts for text in answers}) > 1  # it samples
