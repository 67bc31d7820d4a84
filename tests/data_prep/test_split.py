"""`data_prep.split`: nothing stands on both sides, as near to the number as whole videos allow, the same every time."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
import soundfile

import data_prep.validate
from data_prep.split import hold_out, main
from r1_aqa_repro.data.questions import read_questions, write_manifest
from tests.conftest import make_questions
from tests.files import read_json, read_lines, write_lines


@pytest.fixture
def manifest(tmp_path):
    """24 questions about 23 clips of 12 videos; video 0 and video 1 hold the same samples under two names."""
    folder = tmp_path / "data"
    questions = make_questions(folder / "audio", 24)
    samples, rate = soundfile.read(questions[0].audio_path, dtype="int16")
    soundfile.write(folder / "audio" / "copy.flac", samples, rate)
    questions[1] = replace(questions[1], audio_path=folder / "audio" / "copy.flac")
    questions[23] = replace(questions[23], audio_path=questions[11].audio_path)
    write_manifest(
        folder / "manifest.jsonl",
        [
            replace(question, source_video=f"video__vi{index % 12:02}_{30 * index:06}", split="train")
            for index, question in enumerate(questions)
        ],
    )
    return folder / "manifest.jsonl"


def split(manifest, *arguments):
    return main([str(manifest), *map(str, arguments), "--workers", "1"])


def sides(folder):
    return [read_lines(folder / f"{side}.jsonl") for side in ("train", "held_out")]


@pytest.mark.parametrize("by", ["video", "clip"])
def test_nothing_stands_on_both_sides(manifest, by):
    assert split(manifest, "--held-out", 8, "--by", by) == 0
    train, held_out = sides(manifest.parent)
    assert len(held_out) == 8
    before = {record["id"]: record for record in read_lines(manifest)}
    assert [record["id"] for record in train] == [one for one in before if one in {record["id"] for record in train}]
    after = {record["id"]: record for record in train + held_out}
    assert {key: {**record, "split": "train"} for key, record in after.items()} == before
    assert {record["split"] for record in held_out} == {"held_out"}
    for together in (("q0", "q1"), ("q11", "q23"), *([("q5", "q17")] if by == "video" else [])):
        assert len({after[question_id]["split"] for question_id in together}) == 1
    arguments = [str(manifest.with_name(f"{side}.jsonl")) for side in ("train", "held_out")]
    code = data_prep.validate.main([arguments[0], "--against", arguments[1], "--workers", "1"])
    # split by clip, parts of one video come to stand on both sides, with this seed
    assert code == (0 if by == "video" else 3)
    facts = read_json(manifest.parent / "split.json")
    assert (facts["train"], facts["held_out"], facts["asked_for"], facts["by"]) == (16, 8, 8, by)
    # q0 and q12 by their video, q0 and q1 by their samples, q1 and q13 by their video
    assert facts["groups"] == (11 if by == "video" else 22)


def test_it_depends_on_the_seed_and_not_on_the_order(manifest, tmp_path):
    assert split(manifest, "--held-out", 8, "--by=video", "--out", tmp_path / "a") == 0
    records = read_lines(manifest)
    random.Random(1).shuffle(records)
    write_lines(manifest, records)
    assert split(manifest, "--held_out", 8, "--by", "video", "--out", tmp_path / "b") == 0
    assert split(manifest, "--held-out", 8, "--by", "video", "--out", tmp_path / "c", "--seed", 1) == 0
    a, b, c = ({record["id"] for record in sides(tmp_path / name)[1]} for name in "abc")
    assert a == b != c


def test_audio_is_found_from_another_folder_even_behind_a_link(manifest, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    linked_data = tmp_path / "deep" / "linked"
    linked_data.parent.mkdir()
    linked_data.symlink_to(manifest.parent)
    assert split(linked_data / manifest.name, "--held-out", 8, "--by", "video", "--out", tmp_path / "link" / "out") == 0
    for folder in (tmp_path / "link" / "out", tmp_path / "far" / "away" / "out"):
        for side in ("train", "held_out"):
            read = read_questions(folder / f"{side}.jsonl")
            assert read.records and all(question.audio_path.is_file() for question in read.records)


@pytest.mark.parametrize("seed", range(20))
def test_as_near_as_whole_groups_allow(seed):
    generator = random.Random(seed)
    sizes = [generator.randint(1, 9) for _ in range(generator.randint(2, 8))]
    groups = {f"{g}-{i}": f"g{g}" for g, size in enumerate(sizes) for i in range(size)}
    wanted = generator.randint(1, len(groups) - 1)
    chosen = hold_out(groups, wanted, seed)
    held_out = sum(name in chosen for name in groups.values())
    sums = {
        sum(some)
        for number in range(1, len(sizes))
        for some in itertools.combinations(sizes, number)  # every way there is
    }
    assert abs(held_out - wanted) == min(abs(total - wanted) for total in sums)
    assert 0 < held_out < len(groups)


def test_every_group_is_as_likely():
    groups = {f"q{index}": f"q{index // 2 * 2}" for index in range(40)}
    drawn = Counter(name for seed in range(400) for name in hold_out(groups, 10, seed))
    # 400 draws of 5 of 20 groups: 100 each, standard deviation 8.7; five of them are allowed
    assert len(drawn) == 20 and all(abs(number - 100) < 44 for number in drawn.values())


@pytest.mark.parametrize(
    ("change", "held_out", "by", "named"),
    [
        (lambda records: None, 24, "video", "24 of its 24"),
        (lambda records: records[3].pop("source_video"), 4, "video", "the first being q3"),
        (lambda records: records[3].update(audio_path="no.wav"), 4, "clip", "no.wav"),
        (lambda records: records[3].update(answer="?"), 4, "clip", "line 4"),
        (lambda records: [one.update(source_video="one") for one in records], 4, "video", "nothing to divide"),
    ],
)
def test_refused(manifest, capsys, change, held_out, by, named):
    records = read_lines(manifest)
    change(records)
    write_lines(manifest, records)
    assert split(manifest, "--held-out", held_out, "--by", by) == 2
    assert named in capsys.readouterr().err
    assert not (manifest.parent / "train.jsonl").exists()


def test_the_input_is_never_overwritten(manifest):
    train = manifest.rename(manifest.with_name("train.jsonl"))
    before = train.read_bytes()
    assert split(train, "--held-out", 8, "--by", "video") == 2
    assert train.read_bytes() == before
