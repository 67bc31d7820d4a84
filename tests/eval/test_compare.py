"""Two evaluations, question by question."""

import json
from dataclasses import replace

import pytest

from eval.compare import compare, difference, main, markdown, read_run
from eval.score_predictions import score_file
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.common.intervals import paired_gain, paired_test
from tests.eval.made_up import CHOICES, mmau_records
from tests.files import write_json

WRONG, RIGHT = "Man", "Woman"


@pytest.fixture
def data(tmp_path):
    return write_json(tmp_path / "data.json", mmau_records(12))


def predicted(path, right, n=12, answer=RIGHT):
    """A file of predictions, right on the questions whose numbers are in `right`."""
    given = [{"id": f"q{index}", "model_output": answer if index in right else WRONG} for index in range(n)]
    return write_json(path, given)


def evaluated(folder, data, right, **more):
    """The folder of a scored file of predictions."""
    theirs = predicted(folder.with_suffix(".predictions"), right, **more)
    return score_file(theirs, data, folder).folder


def runs_of(tmp_path, data, *right, **more):
    """Runs, each right on the questions whose numbers are in a set."""
    return [read_run(evaluated(tmp_path / f"run{place}", data, one, **more)) for place, one in enumerate(right)]


def test_hand_computed_difference():
    before = [True, True, True, False, False, False, False, False]
    after = [True, True, False, True, True, True, True, True]
    one = difference(before, after, range(8))
    assert (one["n"], one["first"], one["second"], one["difference"]) == (8, 37.5, 87.5, 50.0)
    assert (one["first_only"], one["second_only"]) == (1, 5)
    assert one["p"] == pytest.approx(14 / 64)  # 2 * (1 + 6) / 2^6
    assert one["ci95"] == pytest.approx([100 * bound for bound in paired_gain(before, after)[1:]])
    assert one["ci95"][0] < 50 < one["ci95"][1]


def test_repeats_are_averaged_a_question_first():
    one = difference([0.25, 0.5, 1.0, 0.0], [0.75, 0.5, 0.75, 1.0], range(4))
    assert one["difference"] == pytest.approx(100 * (0.5 + 0 - 0.25 + 1) / 4)
    assert (one["first_only"], one["second_only"]) == (1, 2)


def test_hand_computed_difference_of_questions_about_two_clips():
    """The second run gains two questions on each clip: swapping both verdicts of a clip leaves 4, 0, 0 or -4."""
    one = difference([0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], "aaabbb")
    assert (one["n"], one["clips"], one["first_only"], one["second_only"]) == (6, 2, 0, 4)
    assert one["p"] == pytest.approx(2 / 4)
    assert one["ci95"] == pytest.approx([100 * 4 / 6] * 2)  # both gained as much
    assert difference([0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], range(6))["p"] == pytest.approx(2 / 2**4)


def test_audio_that_questions_share_is_drawn_and_swapped_as_a_whole(tmp_path, data):
    """Questions 0 to 5 are about one clip, 6 to 8 about another, the others about one each; a task has a question or
    two of the first."""
    records = mmau_records(12)
    for index, record in enumerate(records):
        record["audio_id"] = f"./{('a' * 6 + 'b' * 3 + 'cde')[index]}.wav"
    shared = write_json(tmp_path / "shared.json", records)
    right = [{0, 1, 2, 8}, {0, 1, 3, 4, 5, 6, 7, 10}]
    folders = [tmp_path / name for name in ("own", "shared")]
    for folder in folders:
        folder.mkdir()
    of_own, of_shared = (
        compare(runs_of(folder, file, *right)) for folder, file in zip(folders, (data, shared), strict=True)
    )
    own, total = (one["comparisons"][0]["total"] for one in (of_own, of_shared))
    verdicts = [[float(index in one) for index in range(12)] for one in right]
    clips = "a" * 6 + "b" * 3 + "cde"
    assert (total["n"], total["clips"]) == (12, 5)
    assert total["ci95"] == [100 * bound for bound in paired_gain(*verdicts, clips)[1:]]
    assert total["p"] == paired_test(*verdicts, clips)
    assert own["p"] == paired_test(*verdicts)
    for key in ("n", "first", "second", "difference", "first_only", "second_only"):
        assert own[key] == total[key]
    assert of_shared["comparisons"][0]["task"]["sound"]["clips"] == 3  # questions 0 and 3, 6, 9
    assert of_shared["runs"][0]["official"]["clips"] == 5
    assert "clips" not in json.dumps(of_own)
    report = markdown(of_shared)
    for said in (
        "12 questions about 5 clips, version",
        "bootstrap over clips",
        "swaps the verdicts on whole clips, p = ",
    ):
        assert said in report
    assert "McNemar" not in report
    assert "clips" not in markdown(of_own)


def test_folders_and_files_give_the_same(tmp_path, data):
    folders = [evaluated(tmp_path / "a", data, {0, 1, 2, 3}), evaluated(tmp_path / "b", data, {2, 3, 4, 5, 6, 7})]
    files = [tmp_path / "a.predictions", tmp_path / "b.predictions"]
    by_folder = compare([read_run(folder) for folder in folders])
    by_file = compare([read_run(file, data) for file in files])
    for one in (by_folder, by_file):
        total = one["comparisons"][0]["total"]
        assert (total["first_only"], total["second_only"]) == (2, 4)
        assert total["difference"] == pytest.approx(100 * 2 / 12)
        assert total["p"] == pytest.approx(2 * (1 + 6 + 15) / 2**6)
        assert one["comparisons"][0]["better"] == ["q4", "q5", "q6", "q7"]
        assert one["comparisons"][0]["worse"] == ["q0", "q1"]
        assert (one["n"], one["versions"]) == (12, ["unknown"])
    assert by_folder["comparisons"][0]["task"] == by_file["comparisons"][0]["task"]


def test_by_task_and_sub_category(tmp_path, data):
    pair = compare(runs_of(tmp_path, data, {0, 3}, {0, 3, 6, 9, 1}))["comparisons"][0]
    assert list(pair["task"]) == ["sound", "music", "speech"]
    assert [one["difference"] for one in pair["task"].values()] == [50.0, 25.0, 0.0]
    assert [one["n"] for one in pair["sub_category"].values()] == [6, 6]
    for key in ("task", "difficulty", "category", "sub_category"):
        gained = sum(one["second_only"] - one["first_only"] for one in pair[key].values())
        assert gained == pair["total"]["second_only"] - pair["total"]["first_only"]


def test_matchers_may_differ(tmp_path, data):
    runs = [
        read_run(evaluated(tmp_path / "a", data, {0, 1})),
        read_run(evaluated(tmp_path / "b", data, {0, 1}, answer="B")),
    ]
    matchers = compare(runs)["comparisons"][0]["matchers"]
    assert matchers["official"]["difference"] == pytest.approx(-100 * 2 / 12)
    assert matchers["letter_aware"]["difference"] == 0


def test_each_is_compared_with_the_first(tmp_path, data):
    comparison = compare(runs_of(tmp_path, data, *(set(range(n)) for n in (3, 6, 9))))
    assert [round(pair["total"]["difference"]) for pair in comparison["comparisons"]] == [25, 50]
    assert [run["official"]["accuracy"] for run in comparison["runs"]] == [25.0, 50.0, 75.0]


def test_other_questions_are_refused_unless_paired_on_the_common_ones(tmp_path, data):
    changed = mmau_records(14)
    changed[2]["question"] = "What else is heard?"
    changed[3]["choices"] = CHOICES[::-1]
    changed[4]["answer"] = WRONG
    other = write_json(tmp_path / "other.json", changed)
    runs = [read_run(evaluated(tmp_path / "a", data, {0, 2})), read_run(evaluated(tmp_path / "b", other, {0, 1}, n=14))]
    with pytest.raises(Refused, match="9 questions in common") as refused:
        compare(runs)
    assert "--intersection" in str(refused.value)
    comparison = compare(runs, intersection=True)
    assert (comparison["n"], comparison["questions"]) == (9, [12, 14])
    assert comparison["comparisons"][0]["total"]["second_only"] == 1
    assert "9 questions, of 12 and 14, version unknown." in markdown(comparison)
    another = write_json(tmp_path / "another.json", mmau_records(12, question="Another?"))
    with pytest.raises(Refused, match="no question is common"):
        compare([runs[0], read_run(evaluated(tmp_path / "c", another, {0}))], intersection=True)


def test_other_versions_are_refused_though_the_questions_are_the_same(tmp_path, data):
    (run,) = runs_of(tmp_path, data, {0})
    other = replace(run, version="original")
    with pytest.raises(Refused, match="versions unknown, original"):
        compare([run, other])
    assert compare([run, other], intersection=True)["n"] == 12


def test_settings_that_differ_are_told(tmp_path, data):
    (run,) = runs_of(tmp_path, data, {0})
    other = replace(run, settings=run.settings | {"prompt_style": "think", "dtype": "bfloat16"})
    comparison = compare([run, other])
    assert comparison["comparisons"][0]["settings"] == {"prompt_style": [None, "think"], "dtype": [None, "bfloat16"]}
    assert "| dtype | None | bfloat16 |" in markdown(comparison)
    assert "Settings that differ" not in markdown(compare([run, run]))


def test_the_command(tmp_path, data, capsys):
    folders = [evaluated(tmp_path / "a", data, {0, 1}), evaluated(tmp_path / "b", data, {1, 2, 3})]
    contents = []
    for _ in range(2):
        assert main([*map(str, folders), "--out", str(tmp_path / "out"), "--seed=3"]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"comparison.json", "comparison.md"}
    assert json.loads(contents[0]["comparison.json"])["seed"] == 3
    shown = capsys.readouterr().out
    assert "+8.33" in shown
    assert "McNemar" in shown


def test_the_command_with_files(tmp_path, data, capsys):
    files = [predicted(tmp_path / "a.json", {0}), predicted(tmp_path / "b.json", {1})]
    assert main([*map(str, files), "--data", str(data)]) == 0
    assert main([*map(str, files), "--data", str(data), "--data", str(data)]) == 0
    capsys.readouterr()
    assert main([str(files[0]), "--data", str(data)]) == 2
    assert main([*map(str, files)]) == 2
    assert main([*map(str, files), *["--data", str(data)] * 3]) == 2
    assert main([str(files[0]), str(tmp_path / "nothing"), "--data", str(data)]) == 2
    message = capsys.readouterr().err
    for named in ("there is only one", "Give --data", "there are 3 for 2 runs", "there is no such file"):
        assert named in message


def test_a_folder_of_another_file_is_refused(tmp_path, data):
    folder = evaluated(tmp_path / "a", data, {0})
    other = write_json(tmp_path / "other.json", mmau_records(3))
    with pytest.raises(Refused, match="made with another file"):
        read_run(folder, other)
    (folder / "verdicts.jsonl").unlink()
    with pytest.raises(Refused, match=r"verdicts\.jsonl"):
        read_run(folder)


def test_questions_without_answers_are_refused(tmp_path):
    withheld = write_json(tmp_path / "test.json", mmau_records(12, answer=""))
    with pytest.raises(Refused, match="has no answer"):
        read_run(predicted(tmp_path / "a.json", {0}), withheld)
