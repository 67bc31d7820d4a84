"""The command for labelled clips: its parts, its account, the same files from the same seed, and what it refuses."""

import fcntl
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from data_prep import labelled
from data_prep.label_questions import Blind
from data_prep.labelled import main
from data_prep.split import main as split
from r1_aqa_repro.common.errors import Refused
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from r1_aqa_repro.data.questions import read_questions
from tests.conftest import ROOT
from tests.data_prep.conftest import report_of, result, signal
from tests.real_parts import real_part

HEADER = "path,task,family,label,source,recording,licence"
ANIMALS = ("dog", "cat", "snow_owl", "frog", "bee")
SIZES = {f"{label}{n}": 0.2 + 0.01 * n for label in ANIMALS for n in range(6)}  # seconds of each clip


class World:
    """A table of the clips of five animals, six recordings of each in one source and two in another."""

    def __init__(self, folder, audio):
        self.folder, self.audio, self.table = folder, audio, folder / "clips.csv"
        self.rows = [f"{name}.flac,sound,animal,{name[:-1]},home,{name},CC0" for name in SIZES]
        self.rows += [
            f"zoo-{label}{n}.wav,sound,animal,{label},zoo,zoo-{label}{n},CC0" for label in ANIMALS for n in range(2)
        ]

    def command(self, *more, out="out"):
        """What to type; the table is written."""
        self.table.write_text("\n".join([HEADER, *self.rows, ""]), encoding="utf-8")
        command = ["--table", self.table, "--audio", self.audio, "--out", self.folder / out, "--workers", 1, *more]
        return [str(part) for part in command]

    def run(self, *more, out="out"):
        """The exit code."""
        return main(self.command(*more, out=out))

    def questions(self, part, out="out"):
        read = read_questions(self.folder / out / part / "manifest.jsonl")
        assert not read.problems
        return read.records


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """The clips of `World`, and three that a table may name too."""
    folder = tmp_path_factory.mktemp("clips")
    for index, (name, seconds) in enumerate(SIZES.items()):
        soundfile.write(folder / f"{name}.flac", signal(SAMPLING_RATE, seconds, index), SAMPLING_RATE)
    for index, name in enumerate(f"{label}{n}" for label in ANIMALS for n in range(2)):
        soundfile.write(folder / f"zoo-{name}.wav", signal(8000, 1.5, index), 8000)
    soundfile.write(folder / "short.wav", np.ones(1599) / 2, SAMPLING_RATE)
    soundfile.write(folder / "cow.wav", signal(SAMPLING_RATE, 0.3), SAMPLING_RATE)
    soundfile.write(folder / "mute.wav", np.zeros(SAMPLING_RATE), SAMPLING_RATE)
    return folder


@pytest.fixture
def world(tmp_path, audio):
    return World(tmp_path, audio)


def test_a_collection_becomes_parts_that_are_accounted_for(world, capsys):
    world.rows[-1] = "mute.wav,sound,animal,bee,zoo,mute,CC0"  # which only decoding tells
    world.rows += [
        "gone.flac,sound,animal,dog,home,gone,CC0",  # line 42
        "short.wav,sound,animal,dog,home,short,CC0",
        "dog0.flac,sound,name,Rex,home,dog0,CC0",
        "dog1.flac,sound,animal,dog,home,dog1,CC0",  # line 45: the same as line 3
        "zoo-dog0.wav,sound,place,zoo,zoo,zoo-dog0,CC0",  # of a recording that is held out
        "cow.wav,sound,animal,cow,home,cow,CC0",
        *(f"{name}.flac,sound,size,small,home,{name},CC0" for name in SIZES),  # a family of one label
    ]
    assert world.run("--hold-out-source", "animal=zoo", "--seconds", 1, "--per-family", 40) == 0

    out = world.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "held_out",
        "prep_report.json",
        "prep_settings.json",
        "train",
        "zoo",
    ]
    account = report_of(out)
    assert account["records_in"] == 76
    assert {reason: sorted(lost) for reason, lost in account["dropped"].items()} == {
        "repeated row": ["line 45"],
        "missing": ["line 42"],
        "shorter than 0.1 s": ["line 43"],
        "recording of another part": ["line 46"],
        "family with few labels": [f"line {n}" for n in range(48, 78)],
        "label with few recordings": ["line 44", "line 47"],
    }
    train, held_out, zoo = (world.questions(part) for part in ("train", "held_out", "zoo"))
    assert len(train) == 40 and len({one.source_video for one in train}) == 25
    assert len({one.source_video for one in held_out}) in (4, 5)  # one a label; it ends when three labels are left
    assert not {one.source_video for one in train} & {one.source_video for one in held_out}
    assert {one.source for one in [*train, *held_out]} == {"home"} and {one.source for one in zoo} == {"zoo"}
    assert report_of(out / "zoo")["dropped"].keys() == {"silent"} and "mute" not in {one.source_video for one in zoo}
    first = train[0]
    assert first.audio_path.parent == out / "train" / "audio"
    assert (first.task, first.category, first.sub_category) == ("sound", "animal", "animal, home")
    assert (first.question, first.licence, first.dataset) == ("Which animal is heard?", "CC0", "clips")
    assert set(first.choices) < {"dog", "cat", "snow owl", "frog", "bee"}
    for one in [*train, *held_out, *zoo]:
        samples = load_audio(one.audio_path)
        assert len(samples) == SAMPLING_RATE
        if one.source == "home":
            heard = round(SIZES[one.source_video] * SAMPLING_RATE)
            source, _ = soundfile.read(world.audio / f"{one.source_video}.flac", dtype="float32")
            assert (samples[:heard] == source).all() and not samples[heard:].any()

    figures = account["parts"]["train"]["animal"]
    assert [figures[key] for key in ("labels", "recordings", "clips", "clips_asked_about", "questions")] == [
        5, 25, 25, 25, 40,
    ]  # fmt: skip
    assert figures["blind"]["chance"] == 0.25 and figures["blind"]["interval"][0] < 0.25
    shown = capsys.readouterr().err
    assert "train, animal: 40 questions about 25 of 25 clips (5 labels, 25 recordings)" in shown
    assert "of 3 figures together" in shown and "line 45" in shown


def test_the_same_seed_gives_the_same_files_and_another_other_questions_about_the_same_split(world):
    options = ("--hold-out-source", "zoo")
    assert world.run(*options) == 0
    # another process, whose sets have other orders
    code = "import sys; from data_prep.labelled import main; sys.exit(main(sys.argv[1:]))"
    command = world.command(*options, "--workers", 2, out="again")
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, env=environment, check=True)
    assert world.run(*options, "--seed", 1, out="other") == 0
    parts = ("train", "held_out", "zoo")
    for part in parts:
        same, again, other = (result(world.folder / out / part) for out in ("out", "again", "other"))
        assert same == again and same[0] != other[0]
    recordings = {
        out: [{one.source_video for one in world.questions(part, out)} for part in parts] for out in ("out", "other")
    }
    assert not recordings["out"][0] & recordings["other"][1] and not recordings["out"][1] & recordings["other"][0]
    # a run that was killed, as far as it got: one part is there
    for path in (world.folder / "again" / "held_out").glob("*.jsonl"):
        path.unlink()
    (world.folder / "again" / "prep_report.json").unlink()
    assert world.run(*options, out="again") == 0
    for part in parts:
        assert result(world.folder / "again" / part)[:2] == result(world.folder / "out" / part)[:2]


def test_clips_keep_their_lengths_unless_one_is_asked_for(world):
    assert world.run() == 0
    for one in world.questions("train"):
        if one.source == "home":
            assert len(load_audio(one.audio_path)) == round(SIZES[one.source_video] * SAMPLING_RATE)


def test_families_and_labels_are_chosen_and_the_split_stays(world):
    world.rows += [row.replace(",animal,", ",other,") for row in world.rows]
    assert world.run("--families", "animal", "--labels", "animal=dog,cat,snow_owl", "--choices", 2) == 0
    assert world.run("--choices", 2, out="all") == 0
    chosen, of_all = (world.questions("train", out) for out in ("out", "all"))
    assert {one.answer for one in chosen} == {"dog", "cat", "snow owl"} and {len(one.choices) for one in chosen} == {2}
    assert {one.category for one in chosen} == {"animal"} and {one.category for one in of_all} == {"animal", "other"}
    assert {one.source_video for one in chosen} < {one.source_video for one in of_all}
    assert len(report_of(world.folder / "out")["dropped"]["not asked for"]) == 40 + 16


def test_names_that_hold_commas_are_chosen_in_quotes(world, capsys):
    for name, quoted in (("animal", '"a, b"'), ("dog", '"dog, low"'), ("cat", '"a ""cat"", loud"')):
        world.rows = [row.replace(f",{name},", f",{quoted},") for row in world.rows]
    named = labelled.listing(["dog, low", 'a "cat", loud', "snow_owl"])
    assert named == '"dog, low", "a ""cat"", loud", snow_owl'
    options = ("--families", labelled.listing(["a, b"]), "--labels", f"a, b={named}", "--choices", 2)
    assert world.run(*options) == 0
    assert {one.answer for one in world.questions("train")} == {"dog, low", 'a "cat", loud', "snow owl"}
    assert world.run("--labels", "a, b=wolf", out="none") == 2
    assert 'Its labels are "a ""cat"", loud", bee, "dog, low", frog, snow owl.' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--families", ","), "argument --families: ',' is no NAME,..."),
        (("--families", '"dog'), """argument --families: '"dog' is no NAME,..."""),
        (("--labels", "animal="), "argument --labels: 'animal=' is no FAMILY=LABEL,LABEL,..."),
        (("--labels", "dog,cat"), "argument --labels: 'dog,cat' is no FAMILY=LABEL,LABEL,..."),
        (("--hold-out", "20%"), "argument --hold-out: invalid share value: '20%'"),
    ],
)
def test_a_mistake_in_an_option_is_named(options, said, world, capsys):
    with pytest.raises(SystemExit) as ended:
        world.run(*options)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_training_questions_alone_are_those_that_are_made_with_others(world):
    """The split is the same too."""
    options = ("--hold-out-source", "zoo", "--seconds", 0.2)
    assert world.run(*options) == 0
    assert world.run(*options, "--held-out-per-family", 0, out="alone") == 0
    assert result(world.folder / "alone" / "train") == result(world.folder / "out" / "train")
    assert sorted(path.name for path in (world.folder / "alone").iterdir() if path.is_dir()) == ["train"]
    accounts = [report_of(world.folder / out) for out in ("out", "alone")]
    assert accounts[0]["kept"] == accounts[1]["kept"] == 40 and set(accounts[1]["parts"]) == {"train"}


def test_manifests_can_be_divided_again_by_recording(world):
    assert world.run("--per-family", 60) == 0
    manifest = world.folder / "out" / "train" / "manifest.jsonl"
    assert split([str(manifest), "--held-out", "12", "--by", "video", "--workers", "1"]) == 0
    parts = [
        {one.source_video for one in read_questions(manifest.with_name(f"{part}.jsonl")).records}
        for part in ("train", "held_out")
    ]
    assert all(parts) and not parts[0] & parts[1]


def test_questions_come_from_a_file_that_may_have_several_a_family(world):
    file = world.folder / "asked.yaml"
    file.write_text('animal: ["What calls?", "Who is it?"]\n', encoding="utf-8")
    assert world.run("--questions", file) == 0
    assert {one.question for one in world.questions("train")} == {"What calls?", "Who is it?"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("animal: 7", "asked.yaml: animal: it is no text"),
        ("animal: []", "asked.yaml: animal: it is no text"),
        ("animal: What?\nplant: Which?", "asked.yaml: plant: the table has no such family. Its families are animal"),
        ("{}", "no question for animal, and no default"),
        ("animal: a\nanimal: b", "stands twice"),
    ],
)
def test_a_bad_file_of_questions_is_refused(content, said, world, capsys):
    file = world.folder / "asked.yaml"
    file.write_text(content, encoding="utf-8")
    assert world.run("--questions", file) == 2
    assert said in capsys.readouterr().err and not (world.folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--families", "animal,plant"), "--families plant: no clip is of that family. The families are animal"),
        (("--labels", "plant=fern"), "--labels plant: no clip is of that family"),
        (("--labels", "animal=dog,wolf"), "no clip is labelled 'wolf'. Its labels are bee, cat"),
        (("--hold-out-source", "moon"), "--hold-out-source moon: no clip is of it. The sources are home, zoo"),
        (("--hold-out-source", "plant=zoo"), "--hold-out-source plant=zoo: no clip is of it"),
        (("--choices", "6"), "family animal: it has fewer than 6 labels of 5 recordings"),
        (("--min-recordings", "9"), "family animal: it has fewer than 4 labels of 9 recordings"),
        (
            ("--hold-out-source", "home", "--hold-out-source", "zoo"),
            "of 40 rows none is left to train on (label not in training: 40)",
        ),
        (("--preset", "esc50", "--label-column", "x"), "--label-column is given beside it"),
        (("--preset", "gtzan"), "gtzan has no table"),
        (("--preset", "esc50"), "the header has no 'filename', 'category', 'src_file', but 'path'"),
        (("--label-column", "species"), "the header has no 'species'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(options, said, world, capsys):
    assert world.run(*options) == 2
    assert said in capsys.readouterr().err and not (world.folder / "out").exists()


def test_a_source_that_nothing_can_be_asked_about_is_refused(world, capsys):
    moved = [f"zoo-{label}0.wav" for label in ("dog", "cat", "bee")]
    world.rows = [row.replace(",zoo,", ",lab,") if row.startswith(tuple(moved)) else row for row in world.rows]
    assert world.run("--hold-out-source", "zoo", "--hold-out-source", "animal=lab") == 2
    shown = capsys.readouterr().err
    assert "--hold-out-source animal=lab: no family has 4 labels there that are asked about in training" in shown
    assert "--hold-out-source zoo" not in shown and not (world.folder / "out").exists()
    assert world.run("--hold-out-source", "zoo", "--hold-out-source", "animal=lab", "--choices", "3") == 0
    assert {one.source_video for one in world.questions("lab")} < {name[:-4] for name in moved}


def test_names_and_questions_are_checked_before_a_clip_is_opened(world, capsys, monkeypatch):
    monkeypatch.setattr(labelled, "usable", None)
    file = world.folder / "asked.yaml"
    file.write_text("animal: 7", encoding="utf-8")
    assert world.run("--families", "plant") == 2
    assert world.run("--questions", file) == 2
    assert "no clip is of that family" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--choices", "9"), ("--seconds", "0.05"), ("--hold-out", "1"), ("--labels", "x"), ("--seed", "-1")]
)
def test_options_out_of_range_are_refused(options, world):
    with pytest.raises(SystemExit) as end:
        world.run(*options)
    assert end.value.code == 2


def test_all_that_is_not_there_is_named_at_once(tmp_path, capsys):
    assert main(["--table", str(tmp_path / "t.csv"), "--audio", str(tmp_path / "a"), "--out", str(tmp_path / "o")]) == 2
    shown = capsys.readouterr().err
    assert "t.csv: there is no such file" in shown and "a: there is no such folder" in shown


def test_a_folder_without_the_clips_is_refused(world, capsys):
    world.audio = world.folder / "elsewhere"
    world.audio.mkdir()
    assert world.run() == 2
    assert "none of the 40 clips is there, the first being dog0.flac" in capsys.readouterr().err


def test_questions_that_can_be_guessed_are_refused(world, capsys, monkeypatch):
    biased = {("held_out", "animal"): Blind(60, 100, 0.25, (0.4, 0.8))}
    monkeypatch.setattr(labelled, "blind_baselines", lambda asked, train: biased)
    assert world.run() == 2
    assert "held_out, animal: 60 of 100 questions can be guessed" in capsys.readouterr().err
    assert not (world.folder / "out").exists()


def test_the_folder_of_something_else_is_refused(world, capsys):
    (world.folder / "out").mkdir()
    for name, said in (("prep_report.json", "holds prep_report.json from elsewhere"), (".lock", "is at work here")):
        file = world.folder / "out" / name
        file.write_text("process 7 on another host")
        with file.open("a") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            assert world.run() == 2
        assert said in capsys.readouterr().err and sorted((world.folder / "out").iterdir()) == [file]
        file.unlink()


def test_a_check_says_what_the_command_would_and_makes_nothing(world):
    labelled.check(world.command())
    world.rows.append("dog0.flac,sound,animal,cat,home,dog0,CC0")
    with pytest.raises(Refused, match="line 42"):
        labelled.check(world.command())
    assert [path.name for path in world.folder.iterdir()] == ["clips.csv"]


def test_another_seed_needs_another_folder(world, capsys):
    assert world.run() == 0
    assert world.run("--seed", 1) == 2
    assert "seed was 0, now it is 1" in capsys.readouterr().err


def test_too_few_kept_is_said_by_the_exit_code(world):
    assert world.run("--min-kept", "1.0") == 0
    assert world.run("--min-kept", "1000") == 3


@pytest.mark.slow
def test_real_recordings_become_enough_questions_that_share_nothing_with_training(tmp_path):
    clips = real_part("clips")
    command = ["--table", clips / "clips.csv", "--audio", clips, "--out", tmp_path / "out", "--seconds", 3]
    command += ["--families", "digit,instrument,kind,language", "--per-family", 100, "--held-out-per-family", 100]
    command += ["--hold-out-source", "instrument=timgm6mb", "--hold-out-source", "language=ktuberling"]
    assert main([str(part) for part in command]) == 0
    account = report_of(tmp_path / "out")
    recordings, lengths = {}, set()
    for part in ("train", "held_out", "timgm6mb", "ktuberling"):
        read = read_questions(tmp_path / "out" / part / "manifest.jsonl")
        assert not read.problems and report_of(tmp_path / "out" / part)["dropped"] == {}
        recordings[part] = {one.source_video for one in read.records}
        lengths |= {len(load_audio(path)) for path in {one.audio_path for one in read.records}}
        assert {one.category for one in read.records} == set(account["parts"][part])
    assert lengths == {3 * SAMPLING_RATE}
    assert sum(map(len, recordings.values())) == len(set().union(*recordings.values()))
    assert sum(family["questions"] for family in account["parts"]["held_out"].values()) >= 300


@pytest.mark.parametrize("preset", ["speech_commands", "gtzan"])
def test_folders_need_no_table(preset, tmp_path):
    for index, label in enumerate(("one", "two", "ten")):
        for n in range(6):
            name = f"{n:08x}_nohash_0.wav" if preset == "speech_commands" else f"{label}.{n:05d}.wav"
            (tmp_path / "clips" / label).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "clips" / label / name, signal(8000, 0.2, 10 * index + n), 8000)
    command = ["--preset", preset, "--audio", tmp_path / "clips", "--out", tmp_path / "out", "--choices", 3]
    assert main([str(part) for part in [*command, "--workers", 1]]) == 0
    read = read_questions(tmp_path / "out" / "train" / "manifest.jsonl")
    assert Counter(len(one.choices) for one in read.records) == {3: len(read.records)}
    assert {one.dataset for one in read.records} == {preset}
