"""The AVQA command: every naming, every format of the annotations, and what its users get to see."""

import contextlib
import functools
import os
import random
import shutil
import signal as signals
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pandas
import psutil
import pytest
import soundfile
from datasets import Dataset

from data_prep.avqa import find_media, main
from data_prep.media import Excerpt, decode
from data_prep.media_index import MediaIndex
from data_prep.pipeline import Report
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from tests.conftest import ROOT
from tests.data_prep.conftest import (
    CONTAINERS,
    Prepared,
    avqa_record,
    correlation,
    peak_of,
    report_of,
    result,
    signal,
    wav,
    write_media,
    write_silent_film,
)
from tests.files import write_json, write_lines

VIDEO = "-HG3Omg_89c"


def command(annotations, media, out, *more):
    media = ["--media", *media] if isinstance(media, list) else ["--media", media] if media else []
    return main([str(part) for part in ("--annotations", annotations, *media, "--out", out, "--workers", 1, *more)])


class World(Prepared):
    """Annotations and the folder of media for them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.media, self.annotations = folder / "media", folder / "qa.json"

    def annotate(self, *records):
        write_json(self.annotations, records)
        return self

    def rows(self, rows, name="train.parquet"):
        self.annotations = self.folder / name
        pandas.DataFrame(rows).to_parquet(self.annotations)
        return self

    def run(self, *more, media="media", out="out"):
        """The exit code; `media` and `out` are below the folder."""
        self.out = self.folder / out
        return command(self.annotations, media and self.folder / media, self.out, *more)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_record_becomes_a_line(world):
    wav(world.media / f"{VIDEO}_30.wav")
    world.annotations = world.folder / "train_qa.json"
    assert world.annotate(avqa_record(183, f"{VIDEO}_000030", answer=1)).run() == 0
    assert world.lines == [
        {
            "id": "183",
            "audio_path": f"audio/{VIDEO}_000030.flac",
            "question": "What happened in the video?",
            "choices": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
            "answer": "Yacht consignment",
            "dataset": "AVQA",
            "split": "train",
            "task": "View",
            "category": "Happening",
            "source_video": f"{VIDEO}_000030",
        }
    ]


@pytest.mark.parametrize(
    ("video_name", "file"),
    [
        *((f"{VIDEO}_000030", f"deep er/nésted/{VIDEO}_{second}.{ending}")
          for second in ("000030", "30") for ending in (*CONTAINERS, "MP4")),
        ("a_b_c-d_e_1_000007", "a_b_c-d_e_1_7.mp4"),  # the id ends in a number itself
        ("___________000000", "___________000000.mp4"),
        ("--_--_000120", "--_--_120.wav"),
        ("ID_30", "ID_000030.flac"),
        ("ID_0000030", "ID_30.flac"),
        ("no number", "no number.ogg"),
        ("ID_" + "9" * 50, "ID_" + "9" * 50 + ".wav"),
        ("é_000001", "e\u0301_1.wav"),  # decomposed, as macOS writes names
    ],
)  # fmt: skip
def test_a_clip_is_found_by_every_naming_and_ending(video_name, file, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert find_media(video_name, MediaIndex([tmp_path])).media == tmp_path / file


def test_another_clip_is_not_taken(tmp_path):
    for name in (f"{VIDEO}_000031", f"{VIDEO}_3", f"{VIDEO}_300", VIDEO[1:], f"x{VIDEO}_30", f"{VIDEO}_000030.part"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / f"{VIDEO}_000030.txt").touch()
    assert find_media(f"{VIDEO}_000030", MediaIndex([tmp_path])) is None


def test_the_first_folder_and_the_first_ending_count(tmp_path):
    for name in ("b/ID_1.mp4", "b/ID_1.wav", "a/x/ID_1.mp3", "a/ID_1.mp3", "c/ID_2.mp4", "a/ID.mp4", "a/ID_2.webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    index = MediaIndex([tmp_path / "b", tmp_path / "a", tmp_path / "c"])
    assert find_media("ID_000001", index).media == tmp_path / "b" / "ID_1.wav"
    assert find_media("ID_000002", index).media == tmp_path / "a" / "ID_2.webm"  # a clip goes before the whole video
    assert find_media("ID_000003", index).media == tmp_path / "a" / "ID.mp4"
    assert MediaIndex([tmp_path / "a"])["ID_1"] == tmp_path / "a" / "ID_1.mp3"


def test_links_that_lead_back(tmp_path, capsys):
    (tmp_path / "media" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ID_1.wav").touch()
    (tmp_path / "media" / "deep" / "up").symlink_to(tmp_path / "media")
    (tmp_path / "media" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "media" / "linked")
    (tmp_path / "media" / "nowhere").symlink_to(tmp_path / "nothing")
    index = MediaIndex([tmp_path / "media"])
    assert index["ID_1"] == tmp_path / "media" / "linked" / "ID_1.wav"
    assert len(index) == 1 and not capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_left_out(world, monkeypatch, capsys):
    wav(world.media / "ID_1.wav")
    wav(world.media / "closed" / "ID_2.wav")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert world.annotate(avqa_record(1, "ID_000001"), avqa_record(2, "ID_000002")).run() == 0
    assert world.report["dropped"] == {"missing": ["2"]}
    assert "closed cannot be read" in capsys.readouterr().err


def test_the_clip_is_cut_from_the_whole_video(world):
    sound = signal(44_100, 60)
    write_media(world.media / "whole.mp4", sound, 44_100, pictures=True)
    shutil.copy(world.media / "whole.mp4", world.media / "uncut_000040.mp4")
    write_media(world.media / "clip_000040.mp4", sound[: 12 * 44_100], 44_100)
    parts = {"whole_000020": (20, 10), "whole_000055": (55, 5), "uncut_000040": (40, 10), "clip_000040": (0, 12)}
    assert world.annotate(*(avqa_record(name, name) for name in (*parts, "whole_000070"))).run() == 0
    assert [question.id for question in world.questions] == list(parts)
    for question in world.questions:
        (start, seconds), clip = parts[question.id], load_audio(question.audio_path)
        assert abs(len(clip) / SAMPLING_RATE - seconds) < 0.05
        assert correlation(clip, sound[start * 44_100 :], 44_100) > 0.9
    assert world.report["dropped"] == {"shorter than 0.1 s": ["whole_000070"]}


def test_every_bad_record_is_reported_and_none_stops_the_others(world):
    good = "ID_000001"
    wav(world.media / "ID_1.wav")
    wav(world.media / "with space ü_3.wav", seed=3)
    (world.media / "ID_4.mp4").touch()
    write_silent_film(world.media / "ID_5.mp4")
    nan = np.full(9000, np.nan, np.float32)
    soundfile.write(world.media / "ID_6.wav", nan, SAMPLING_RATE, subtype="FLOAT")
    fields = {
        "high": {"answer": 4}, "dict": {"multi_choice": {"A": "motorboat"}}, "blank": {"multi_choice": ["car", " "]},
        "nameless": {"video_name": None}, "name": {"video_name": {"id": "ID"}}, "category": {"question_type": {"a": 1}},
    }  # fmt: skip
    missing = {
        "path": {"video_name": "../../ID_000001"}, "gone": {"video_name": "ID_000007"},
        "long": {"video_name": "x" * 5000, "audio_path": "y" * 5000},
        "null": {"video_name": "nu\0ll", "audio_path": "\0"},
    }  # fmt: skip
    records = [
        avqa_record("ok", good),
        *(avqa_record(name, good) | changed for name, changed in (fields | missing).items()),
        avqa_record("ok", good),
        *("a text", None, [avqa_record("inner", good)], {}, avqa_record({"nested": 1}, good), avqa_record(None, good)),
        avqa_record("unicode", "with space ü_000003"),
        *(avqa_record(name, f"ID_{n:06d}") for n, name in ((4, "zero"), (5, "film"), (6, "nan"))),
        avqa_record(int("8" * 4000), good),
    ]
    assert world.annotate(*records).run() == 0
    assert [question.id for question in world.questions] == ["ok", "unicode", "8" * 4000]
    report, places = world.report, [f"qa.json:record {number}" for number in range(13, 19)]
    assert report["records_in"] == len(records)
    assert report["dropped"] == {
        "bad record": [*fields, "ok", *places],
        "missing": list(missing),
        "undecodable": ["zero", "nan"],
        "no audio track": ["film"],
    }
    assert "high: answer index 4 is out of range for 4 choices" in report["details"]["bad record"]


def test_lines_of_r1_aqa_are_found_by_path_or_by_name(world):
    clips = [wav(world.folder / "audios" / f"{VIDEO}_30.wav", seed=1), wav(world.media / "ID_5.wav", seed=2)]
    records = [
        avqa_record(1, f"{VIDEO}_000030", dataset_name="AVQA", audio_path=f"audios/{VIDEO}_30.wav"),
        avqa_record(2, "ID_000005", dataset_name="AVQA", audio_path="/somewhere/else/ID_5.wav"),
        avqa_record(3, "ID_000006", dataset_name="AVQA", audio_path="ID_6.wav"),
    ]
    world.annotations = write_lines(world.folder / "train.jsonl", [*records, "", "{not JSON", '"text"'])
    assert world.run() == 0
    assert [question.id for question in world.questions] == ["1", "2"]
    for question, source in zip(world.questions, clips, strict=True):
        assert np.array_equal(load_audio(question.audio_path), load_audio(source))
    assert world.report["dropped"] == {"missing": ["3"], "bad record": ["train.jsonl:line 5", "train.jsonl:line 6"]}
    write_lines(world.annotations, records[:1])
    assert world.run(media=None, out="without media") == 0


def test_parquet_with_embedded_audio_brings_question_and_choices_in_one_text(world):
    """An empty or a missing choice would shift the others, and make another one the answer."""
    audio = {"bytes": wav(world.folder / "clip.wav").read_bytes(), "path": f"{VIDEO}_000030.wav"}
    text = "What happened in the video?\nChoices:\nA. motorboat\n  B) a  car. And more \nC. (none)"
    answers = {"a  car. And more": "a  car. And more", "C": "(none)", "A. motorboat": "motorboat"}
    asked = [(text, answer) for answer in [*answers, "D", "lorry"]]
    asked += [(f"What?\nChoices:\n{listed}", "C") for listed in ("A. x\nB. \nC. y", "A. x\nC. y", "B. x\nA. y")]
    rows = [{"audio": audio, "question": question, "answer": answer} for question, answer in [*asked, ("none", "A")]]
    rows += [{**rows[0], "audio": {"bytes": b"broken", "path": "ID_1.wav"}}, {**rows[0], "audio": None}]
    assert world.rows(rows, "train-00000.parquet").run(media=None) == 0
    assert [question.answer for question in world.questions] == list(answers.values())
    first = world.questions[0]
    assert first.question == "What happened in the video?"
    assert first.choices == ("motorboat", "a  car. And more", "(none)")
    assert first.source_video == f"{VIDEO}_000030"  # by which splits that share it are found
    assert np.array_equal(load_audio(first.audio_path), load_audio(world.folder / "clip.wav"))
    dropped = {reason: len(ids) for reason, ids in world.report["dropped"].items()}
    assert dropped == {"bad record": 7, "undecodable": 1} and world.report["audio"]["clips"] == 1
    told = world.report["details"]["bad record"][2:]
    assert ["choice is empty" in told[0], "A, C, not A, B" in told[1], "B, A, not A, B" in told[2]] == [True] * 3

    as_in_avqa = [{**avqa_record(n, f"{VIDEO}_000030"), "audio": audio} for n in range(3)]
    assert world.rows(as_in_avqa, "val.parquet").run(media=None, out="columns") == 0
    assert [question.split for question in world.questions] == ["val"] * 3


def test_shards_of_save_to_disk_are_read_as_they_are_published(world):
    """gijs/avqa-processed holds Arrow streams in folders named after the splits, and the answer with its letter."""
    audio = {"bytes": wav(world.folder / "clip.wav").read_bytes(), "path": None}
    text = "What happened in the video?\nChoices:\nA. motorboat\nB. Yacht consignment\nC. A\nD. Consignment car"
    rows = [
        {"audio": audio, "question": question, "answer": answer, "file_name": f"{VIDEO}_00003{number}.mp4"}
        for number, (question, answer) in enumerate(
            [
                (text, "B. Yacht consignment"),
                (text, "A"),  # the letter of one choice and the text of another
                (text, "B. motorboat"),  # letter and text of two choices
                (f"{text}\nand others", "B"),  # does the last choice go on?
                (text.replace("C. A", "and so on"), "B"),
            ]
        )
    ]
    Dataset.from_list(rows).save_to_disk(world.folder / "train")
    world.annotations = world.folder / "train" / "data-00000-of-00001.arrow"
    assert world.run(media=None) == 0
    (line,) = world.lines
    assert line == line | {
        "question": "What happened in the video?",
        "choices": ["motorboat", "Yacht consignment", "A", "Consignment car"],
        "answer": "Yacht consignment",
        "dataset": "AVQA",
        "split": "train",
        "source_video": f"{VIDEO}_000030",
    }
    bad = world.report["details"]["bad record"]
    told = [
        "the text of one choice and the letter of another",
        "neither one of",
        "after the choices",
        "has no letter",
    ]
    assert [what in detail for what, detail in zip(told, bad, strict=True)] == [True] * 4


def test_a_number_in_a_name_is_not_always_a_start(world):
    """Without `video_name`, only what looks like a YouTube id with its second is cut."""
    for name in ("clip_3.wav", f"{VIDEO}_3.wav", "media/other_3.wav"):
        wav(world.folder / name, seconds=17)
    paths = ["clip_3.wav", f"{VIDEO}_3.wav", "elsewhere/other_3.wav"]
    assert world.annotate(*(avqa_record(n, None, audio_path=path) for n, path in enumerate(paths))).run() == 0
    assert [soundfile.info(question.audio_path).duration for question in world.questions] == [17, 10, 17]
    assert [question.source_video for question in world.questions] == [None, f"{VIDEO}_3", None]
    assert world.annotate(avqa_record(3, "clip_3", audio_path="clip_3.wav")).run(media=None, out="named") == 0
    assert soundfile.info(world.questions[0].audio_path).duration == 10


def test_files_that_are_not_there_and_impossible_options_are_refused(world, capsys):
    world.annotate(avqa_record(1, "ID_000001"))
    (world.folder / "empty").mkdir()
    assert command(world.folder / "nothing.json", world.folder / "nowhere", world.out) == 2
    shown = capsys.readouterr().err
    assert "nothing.json: there is no such file" in shown and "nowhere: there is no such folder" in shown
    assert world.run(media="empty") == 2
    assert "there is no media file" in capsys.readouterr().err
    assert world.run(media=None) == 2
    for more in (["--workers", "0"], ["--channel", "left"], ["--format", "mp3"], ["--min-kept", "-1"], ["--unknown"]):
        with pytest.raises(SystemExit) as stopped:
            world.run(*more, media="empty")
        assert stopped.value.code == 2
    assert not world.out.exists()


def test_fewer_than_wanted_is_told_by_the_exit_code(world):
    wav(world.media / "ID_1.wav")
    world.annotate(*(avqa_record(n, f"ID_{n:06d}") for n in (1, 2, 3, 4)))
    for wanted, code in [(0, 0), (0.25, 0), (1, 0), (0.3, 3), (2, 3), (1.0, 3)]:
        assert world.run("--min_kept", wanted) == code
    assert world.annotate(avqa_record(2, "ID_000002")).run(out="nothing") == 3


def test_a_share_is_no_matter_of_rounding():
    for hundredths in range(1, 100):
        kept = Report(records_in=100, kept=hundredths)
        assert kept.keeps(hundredths / 100) and not kept.keeps(hundredths / 100 + 0.001)


def test_more_media_are_taken_up_and_other_annotations_are_not(world, capsys):
    wav(world.media / "ID_1.wav")
    more = wav(world.folder / "more" / "ID_2.wav", seed=2).parent
    assert world.annotate(*(avqa_record(n, f"ID_{n:06d}") for n in (2, 1))).run() == 0
    assert command(world.annotations, [world.media, more], world.out) == 0
    assert world.report["clips_decoded"] == 1
    assert command(world.annotations, [world.media, more], world.folder / "fresh") == 0
    assert result(world.out) == result(world.folder / "fresh")
    assert world.annotate(avqa_record(2, "ID_000001")).run() == 2
    assert "annotations was" in capsys.readouterr().err
    assert result(world.out) == result(world.folder / "fresh")


def start(annotations, media, out):
    """The real command, in a process group of its own; Ctrl-C reaches it even if whoever runs the tests ignores it."""
    arguments = ["--annotations", annotations, "--media", media, "--out", out, "--workers", 2]
    command = [sys.executable, "-m", "data_prep.avqa", *map(str, arguments)]
    ctrl_c = functools.partial(signals.signal, signals.SIGINT, signals.default_int_handler)
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=ctrl_c
    )


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """2,040 records, 2,000 clips for them in all containers, and what is lost of them."""
    folder = tmp_path_factory.mktemp("mirror")
    sources = []
    for number, (ending, (_, _, rate)) in enumerate(CONTAINERS.items()):
        sources.append(write_media(folder / f"source.{ending}", signal(rate, 1 + number / 10, seed=number), rate))
    (folder / "media").mkdir()
    lost = {"bad record": [], "undecodable": [], "missing": [str(number) for number in range(2_000, 2_040)]}
    records = [avqa_record(number, f"ID{number}_000030") for number in range(2_040)]
    for number in range(2_000):
        media = folder / "media" / f"ID{number}_30{sources[number % 8].suffix}"
        shutil.copy(sources[number % 8], media)
        if number % 100 == 7:
            media.write_bytes(b"")
            lost["undecodable"].append(str(number))
        if number % 100 == 13:
            records[number]["answer"] = 9
            lost["bad record"].append(str(number))
    return write_json(folder / "train_qa.json", records), folder / "media", lost


@pytest.mark.slow
def test_a_whole_mirror_in_spite_of_kills_and_of_ctrl_c(mirror, tmp_path):
    annotations, media, lost = mirror
    before = time.perf_counter()
    assert command(annotations, media, tmp_path / "whole", "--workers", 2) == 0
    seconds = time.perf_counter() - before
    whole = result(tmp_path / "whole")
    assert (whole[2]["records_in"], whole[2]["kept"], whole[2]["dropped"]) == (2_040, 1_960, lost)

    rng, out = random.Random(2), tmp_path / "killed"
    done = []
    for number in range(8):
        process = start(annotations, media, out)
        if number == 1:  # as a terminal does: to every process
            while len(list((out / "audio").glob("[!.]*"))) <= done[0]:
                time.sleep(0.05)
            os.killpg(process.pid, signals.SIGINT)
            shown = process.communicate(timeout=30)[1]
            assert process.returncode == 130
            assert "Traceback" not in shown and "the same command goes on" in shown
        else:  # mostly before the end: the earlier ones leave the later ones less and less to do
            time.sleep(rng.uniform(0.2, 0.7) + seconds / 12)
            os.kill(process.pid, signals.SIGKILL)
            process.communicate()
        assert not _left_over(process.pid)
        done.append(len(list((out / "audio").glob("[!.]*"))))
        assert not (out / "manifest.jsonl").exists() or (out / "manifest.jsonl").read_bytes() == whole[0]
    assert done == sorted(done) and 0 < done[2] < 1_960  # they struck while there was work to do
    last = start(annotations, media, out)
    assert last.wait(120) == 0, last.stderr.read()
    assert result(out) == whole
    # most was there already, but for clips that were finished without having been noted
    assert report_of(out)["clips_decoded"] < 1_960 - done[-1] + 100


def _left_over(group):
    """Processes of a group that are still there 10 seconds from now: workers must not outlive a main process."""
    for _ in range(200):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        if not found:
            break
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_of_the_records_only_their_ids_stay_in_memory(world):
    for n in range(10):
        wav(world.media / f"ID_{n}.wav", seconds=0.2, seed=n)
    used = {}
    for number in (1_000, 100_000):
        records = (avqa_record(n, f"ID_{n % 10:06d}") for n in range(number))
        annotations = write_lines(world.folder / f"{number}.jsonl", records)  # a JSON list is read whole
        out = world.folder / str(number)
        arguments = ("--annotations", annotations, "--media", world.media, "--out", out, "--workers", 1)
        used[number] = peak_of("data_prep.avqa", *arguments)
        assert report_of(out)["kept"] == number
    # MB; the file alone has 30, its records would take 150, and their ids take 10
    assert used[100_000] < used[1_000] + 15, used


@pytest.mark.slow
def test_ten_seconds_at_the_end_of_three_hours_cost_no_more_than_ten_seconds(world):
    """Whole, it is no clip."""
    rate, hours = 8_000, 3
    minute = (signal(rate, 60) * 20_000).astype(np.int16)
    world.media.mkdir()
    with soundfile.SoundFile(world.media / "ID.flac", "w", rate, 1, "PCM_16") as file:
        for _ in range(60 * hours):
            file.write(minute)
    tracemalloc.start()
    decode(Excerpt(world.media / "ID.flac", start=10770, seconds=10))
    assert tracemalloc.get_traced_memory()[1] < 4e7  # bytes; all of its samples would be 346 MB
    tracemalloc.stop()
    shutil.copy(world.media / "ID.flac", world.media / "whole.flac")
    names = ["ID_000090", f"ID_{3600 * hours - 30:06d}", "whole"]
    assert world.annotate(*(avqa_record(name, name) for name in names)).run() == 0
    assert world.report["dropped"] == {"undecodable": ["whole"]}
    assert "too long" in world.report["details"]["undecodable"][0]
    assert [question.id for question in world.questions] == names[:2]
    for question in world.questions:
        clip = load_audio(question.audio_path)
        assert len(clip) == 10 * SAMPLING_RATE
        assert correlation(clip, minute[30 * rate :], rate) > 0.9
