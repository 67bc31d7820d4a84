"""`eval.verify`: what agrees, which byte does not, and which figures move."""

import json
import re

import pytest

from eval.verify import compared, main, markdown, verify
from r1_aqa_repro.common.files import sha256_of
from tests.files import contents, read_json, read_lines, write_json, write_lines

SEED = "evaluations/grpo/seed-1"


def answer(bundle, place, number, text):
    """Let the answer to a question be another one."""
    file = bundle / place / "predictions.jsonl"
    lines = read_lines(file)
    lines[number] |= {"completion": f"<answer>{text}</answer>", "answer": text}
    write_lines(file, lines)


def on_one_line(capsys):
    """What was shown, whatever the width of the terminal."""
    return " ".join(capsys.readouterr().out.split())


def moved(found):
    """{name: (sealed, recomputed)} of the figures that move."""
    return {one["figure"]: (one["sealed"], one["recomputed"]) for one in found["figures"] if not one["agrees"]}


def test_an_untouched_bundle_agrees_in_every_figure(sealed, tmp_path, capsys):
    before = contents(sealed)
    assert main([str(sealed), "--out", str(tmp_path / "checked")]) == 0
    assert contents(sealed) == before
    found = read_json(tmp_path / "checked/verification.json")
    assert found["agrees"] and all(one["agrees"] for one in found["figures"])
    assert found["sha256"] == sha256_of(sealed / "bundle.json")
    names = [one["figure"] for one in found["figures"]]
    assert len(set(names)) == len(names) > 500
    # every number of figures.json is part of a figure
    numbers = len(re.findall(r"(?<=[\s\[])-?\d+\.?[\d.e-]*(?=,?\n)", (sealed / "figures.json").read_text()))
    assert numbers == sum(map(count_numbers, (one["sealed"] for one in found["figures"])))
    shown = on_one_line(capsys)
    assert f"all {len(names)} figures follow from them" in shown and found["sha256"][:20] in shown


def count_numbers(value):
    return sum(map(count_numbers, value)) if isinstance(value, list) else type(value) in (int, float)


def test_one_prediction_moves_exactly_the_figures_that_rest_on_it(bundle, capsys):
    answer(bundle, f"{SEED}/test", 0, "cat")  # q0: a sound, Counting; it was wrong
    assert main([str(bundle)]) == 1
    found = verify(bundle)
    assert found["files"] == {
        "n": found["files"]["n"], "changed": [f"{SEED}/test/predictions.jsonl"], "missing": [], "additional": [],
    }  # fmt: skip
    figures = moved(found)
    assert figures["table/grpo/seeds/1/total/correct"] == (10, 11)
    assert figures["table/grpo/mean"] == pytest.approx((100 * 19 / 24, 100 * 20 / 24))
    assert figures["table/grpo/task/sound"] == (87.5, 100)
    assert figures["findings/rl_beats_sft/difference"] == pytest.approx((100 * 10 / 24, 100 * 11 / 24))
    assert figures["changes/total/first_only"] == (2, 1)
    parts = {"/".join(name.split("/")[:2]) for name in figures}
    assert parts == {
        "table/grpo",
        "matrix/grpo test",
        "findings/rl_beats_sft",
        "findings/data_suffice",
        "findings/thinking_does_not_help",
        "changes/total",
        "changes/labels",
        "changes/lost",
    }
    assert {name.split("/")[2] for name in figures if name.startswith("changes/labels")} == {"Counting"}
    stay = ("table/grpo/seeds/2", "table/grpo/task/music", "table/grpo/controls/no_audio/mean", "table/grpo/chosen")
    assert not any(name.startswith(stay) for name in figures)
    said = on_one_line(capsys)
    assert "verdicts: findings/thinking_does_not_help/verdict from undecided to reproduced" in said
    assert "1 changed, 0 missing; 0 additional" in said and f"{len(figures)} of {len(found['figures'])}" in said


def test_a_checkpoint_on_held_out_questions_moves_its_curve_and_whether_it_was_chosen(bundle):
    answer(bundle, f"{SEED}/held_out/checkpoint-300", 4, "cat")  # 5 of 6 where the chosen one has 4
    assert moved(verify(bundle)) == {
        "table/grpo/seeds/1/chosen_is_best": (True, False),
        "curves/grpo/1/held_out/2": ([300, pytest.approx(400 / 6)], [300, pytest.approx(500 / 6)]),
    }


def test_a_completion_that_reads_the_same_changes_bytes_and_the_examples_alone(bundle):
    answer(bundle, f"{SEED}/test", 3, "Cat")
    found = verify(bundle)
    assert found["files"]["changed"] == [f"{SEED}/test/predictions.jsonl"]
    assert moved(found) == {"changes/gained/q3/after": ("<answer>cat</answer>", "<answer>Cat</answer>")}


@pytest.mark.parametrize("name", ["trainings/grpo/seed-1/config.resolved.yaml", f"{SEED}/chosen.json", "study.json"])
def test_a_changed_byte_is_named_also_where_no_figure_moves(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content + b"\n")
    found = verify(bundle)
    assert found["files"]["changed"] == [name] and moved(found) == {} and not found["agrees"]
    assert main([str(bundle)]) == 1


def test_a_changed_figure_is_named(bundle):
    figures = read_json(bundle / "figures.json")
    figures["findings"][0]["verdict"] = "not reproduced"
    write_json(bundle / "figures.json", figures)
    found = verify(bundle)
    assert found["files"]["changed"] == ["figures.json"]
    assert moved(found) == {"findings/rl_beats_sft/verdict": ("not reproduced", "reproduced")}


def test_figures_that_were_sealed_anew_still_do_not_follow(bundle):
    """Whoever changes figures.json can change its hash too."""
    figures = read_json(bundle / "figures.json")
    figures["table"][3]["mean"] = 64.5
    write_json(bundle / "figures.json", figures)
    seal = read_json(bundle / "bundle.json")
    seal["files"]["figures.json"] = sha256_of(bundle / "figures.json")
    write_json(bundle / "bundle.json", seal)
    found = verify(bundle)
    assert found["files"]["changed"] == [] and not found["agrees"]
    assert moved(found) == {"table/grpo/mean": (64.5, pytest.approx(100 * 19 / 24))}
    assert "All 5" in markdown(found) and "have the bytes that were sealed" in markdown(found)


def test_files_that_are_missing_and_additional_are_named(bundle, capsys):
    (bundle / "trainings/grpo/seed-2/log.jsonl").unlink()
    (bundle / "evaluations/new.txt").touch()
    found = verify(bundle)
    assert found["files"]["missing"] == ["trainings/grpo/seed-2/log.jsonl"]
    assert found["files"]["additional"] == ["evaluations/new.txt"]
    assert {name.rpartition("/")[0] for name in moved(found)} == {
        "curves/grpo/2", "curves/grpo/2/reward", "curves/grpo/2/kl", "curves/grpo/2/length", "curves/grpo/2/loss",
    }  # fmt: skip
    assert main([str(bundle)]) == 1
    said = on_one_line(capsys)
    assert "trainings/grpo/seed-2/log.jsonl" in said and "evaluations/new.txt" in said


def test_a_file_that_stops_the_figures_is_named_with_what_is_wrong_in_it(bundle, capsys):
    file = bundle / SEED / "test/predictions.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"q3"', b'"q4"', 1))
    assert main([str(bundle)]) == 1
    found = verify(bundle)
    assert found["files"]["changed"] == [f"{SEED}/test/predictions.jsonl"] and found["figures"] == []
    assert "predictions.jsonl" in found["not_recomputed"][0]
    assert "cannot be computed" in on_one_line(capsys)


def test_what_is_no_bundle_is_refused(bundle, tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "bundle.json: it cannot be read" in capsys.readouterr().err
    write_json(bundle / "bundle.json", read_json(bundle / "bundle.json") | {"format": 2})
    assert main([str(bundle)]) == 2
    assert "its format is 2" in capsys.readouterr().err
    write_json(bundle / "bundle.json", {"format": 1, "files": ["a"]})
    assert main([str(bundle)]) == 2
    assert "does not name the files" in capsys.readouterr().err


def test_a_study_that_cannot_be_computed_though_every_byte_is_as_sealed_is_refused(bundle, capsys):
    write_json(bundle / "study.json", read_json(bundle / "study.json") | {"seeds": []})
    seal = read_json(bundle / "bundle.json")
    seal["files"]["study.json"] = sha256_of(bundle / "study.json")
    write_json(bundle / "bundle.json", seal)
    assert main([str(bundle)]) == 2
    assert "seeds is []" in capsys.readouterr().err


def test_figures_without_a_bottom_are_refused(bundle, capsys):
    (bundle / "figures.json").write_text('{"table": ' + "[" * 500 + "]" * 500 + "}")
    assert main([str(bundle)]) == 1
    assert "nested too deeply" in on_one_line(capsys)


def test_the_report_may_not_be_written_into_the_bundle(bundle, capsys):
    assert main([str(bundle), "--out", str(bundle / "checked")]) == 2
    assert "it lies in the bundle" in capsys.readouterr().err and not (bundle / "checked").exists()


def test_names_in_a_seal_lead_nowhere(bundle, tmp_path):
    (tmp_path / "secret").write_text("x")
    seal = read_json(bundle / "bundle.json")
    seal["files"]["../secret"] = sha256_of(tmp_path / "secret")
    write_json(bundle / "bundle.json", seal)
    assert verify(bundle)["files"]["missing"] == ["../secret"]


def test_figures_are_compared_by_name_within_rounding():
    sealed = {"a": [{"id": "x", "v": 1.0}, {"id": "y", "v": 2}], "b": [[1, 2.0]], "c": None, "d": "old", "e": {}}
    now = {"a": [{"id": "y", "v": 2.5}, {"id": "x", "v": 1 + 1e-12}], "b": [[1, 2.5]], "c": 3, "f": True}
    by_name = {one["figure"]: one for one in compared(json.loads(json.dumps(sealed)), now)}
    assert {name: one["agrees"] for name, one in by_name.items()} == {
        "a/x/id": True, "a/x/v": True, "a/y/id": True, "a/y/v": False, "b/0": False, "c": False, "d": False, "e": False,
        "f": False,
    }  # fmt: skip
    assert by_name["a/y/v"]["difference"] == 0.5 and by_name["b/0"]["difference"] == [0, 0.5]
    assert by_name["d"]["recomputed"] is None and by_name["c"]["difference"] is None
