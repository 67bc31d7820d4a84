"""Questions as other projects publish them, and ms-swift's lines in both directions."""

import json
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_prep.convert import main
from data_prep.question_formats import ms_swift_line, published
from r1_aqa_repro.data.prompts import PROMPT_STYLES, prompt_text
from r1_aqa_repro.data.questions import AudioQuestion, read_questions, write_manifest
from r1_aqa_repro.data.records import BadRecord
from tests.data_prep.conftest import Prepared, report_of, wav, write_tar
from tests.files import read_lines, write_json, write_lines

WATER = ["Water is pouring steadily", "Water splashing continuously", "Water is boiling rapidly"]
LETTERED = "What?\nChoices:\nA. dog\nB. cat"
ASKED = "What is heard? Please choose the answer from the following options: ['dog', \"cat's\"]."


def audiomcq(clip, source="AudioCaps", **changed):
    """A record as Harland/AudioMCQ-StrongAC-GeminiCoT's data.jsonl has it."""
    return {
        "source_dataset": source,
        "id": Path(clip).stem,
        "question_type": "sound",
        "audio_path": f"{source}/{clip}",
        "question": "What does the water do?",
        "answer": WATER[1],
        "choices": WATER,
        "gemini_cot": "First I listen.",
        **changed,
    }


def dcase(**changed):
    """A question as a file of PeacefulData/2025_DCASE_AudioQA_Official has it."""
    return {
        "id": "q",
        "audio_url": "../../audio/fold1.wav",
        "question": "What is the first sound?",
        "choice": ["A. Writing", "B. Door", "C. Laugh", "D. Cough"],
        "answer": "B. Door",
        "question_type": "both",
        **changed,
    }


def swift(content=f"<audio>{ASKED} Output the final answer in <answer> </answer>.", **changed):
    """A line as people write it for `swift rlhf --rlhf_type grpo`."""
    line = {"messages": [{"role": "user", "content": content}], "audios": ["/clips/a.wav"]}
    return {**line, "solution": "<answer>cat's</answer>", **changed}


def answered(reply, content=f"<audio>{ASKED}"):
    """A line as people write it for `swift sft`."""
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
    return {"messages": [{"role": "system", "content": "Listen."}, *said], "audios": "/clips/a.wav"}


def one(record, where="line 1", file="lines.jsonl"):
    return published(record, where, Path(file))


def convert(*arguments):
    return main([str(argument) for argument in arguments])


class World(Prepared):
    """Where records are converted, with one worker."""

    def run(self, *given, audio=(), out="out"):
        self.out = self.folder / out
        more = ("--audio", *audio) if audio else ()
        return convert(*given, *more, "--out", self.out, "--workers", 1)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_audiomcq_becomes_a_manifest_and_every_record_is_accounted_for(world, capsys):
    for source, seed in (("AudioCaps", 1), ("Clotho", 2)):
        wav(world.folder / source / "7.wav", seed=seed)
    lines = [
        audiomcq("7.wav"),
        audiomcq("7.wav", "Clotho", **{"audio-contribution": "weak"}),  # as inclusionAI/AudioMCQ labels it
        audiomcq("7.wav", question_type="temporal", question="And then?"),
        audiomcq("8.wav"),
        audiomcq("9.wav", answer="water splashing continuously"),
        audiomcq("10.wav", **{"audio-contribution": "some"}),
        audiomcq("11.wav", choices=None),
        audiomcq("12.wav", choices=WATER[1:2]),
        "{",
        audiomcq("7.wav"),
    ]
    assert world.run(write_lines(world.folder / "data.jsonl", lines)) == 0
    assert world.lines[0] == {
        "id": "sound_AudioCaps_7",
        "audio_path": world.lines[2]["audio_path"],  # one clip, two questions
        "question": "What does the water do?",
        "choices": WATER,
        "answer": WATER[1],
        "dataset": "AudioMCQ",
        "task": "sound",
        "source": "AudioCaps",
    }
    assert [line.get("contribution") for line in world.lines] == [None, "weak", None]
    assert len({line["audio_path"] for line in world.lines}) == 2  # 7.wav of two sources are two clips
    assert world.report["dropped"] == {
        "missing": ["sound_AudioCaps_8"],
        "bad record": ["9", "10", "11", "12", "data.jsonl:line 9", "sound_AudioCaps_7"],
    }
    told = ["'water splashing continuously' is not among", "contribution is 'some'", "choices is None", "only 1 choice",
            "malformed JSON", f"already used at {world.folder}/data.jsonl:line 1. Make"]  # fmt: skip
    for line, (what, detail) in enumerate(zip(told, world.report["details"]["bad record"], strict=True), start=5):
        assert f": {world.folder}/data.jsonl:line {line}: " in detail and what in detail and detail.endswith(".")
    assert "there is no AudioCaps/8.wav" in world.report["details"]["missing"][0]
    said = capsys.readouterr().err
    assert "10 records; AudioMCQ: 4" in said and "left out: 'gemini_cot' (4)" in said


def test_clips_come_from_archives_and_folders_by_path_and_by_name(world):
    clips = [wav(world.folder / "made" / f"{number}.wav", seed=number) for number in range(3)]
    archive = write_tar(world.folder / "audio.tar.gz", [("x/AudioCaps/0.wav", clips[0].read_bytes())], "gz")
    wav(world.folder / "elsewhere" / "deep" / "1.wav", seed=1)
    wav(world.folder / "elsewhere" / "Clotho" / "2.wav", seed=2)
    lines = [audiomcq("0.wav"), audiomcq("1.wav"), audiomcq("2.wav", "Clotho")]
    source = write_lines(world.folder / "data.jsonl", lines)
    assert world.run(source, audio=[archive, world.folder / "elsewhere"]) == 0
    for line, clip in zip(world.lines, clips, strict=True):
        same = world.folder / "again"
        assert convert(write_lines(world.folder / "one.jsonl", [audiomcq(clip.name, audio_path=str(clip))]),
                       "--out", same / clip.stem, "--workers", 1) == 0  # fmt: skip
        again = same / clip.stem / read_lines(same / clip.stem / "manifest.jsonl")[0]["audio_path"]
        assert (world.out / line["audio_path"]).read_bytes() == again.read_bytes()


def test_a_folder_of_dcase_questions_is_read_file_by_file(world, capsys):
    """Of the ids inside some stand twice; the names of the files are the challenge's."""
    wav(world.folder / "audio" / "fold1.wav")
    questions = world.folder / "questions" / "dev"
    questions.mkdir(parents=True)
    for number, record in enumerate(
        [
            dcase(),
            dcase(answer="B"),
            dcase(answer=None),
            dcase(choice=["Writing", "Door"], answer="Door", extra=1),
            dcase(answer="A. Door"),
            dcase(choice=["A. Writing", "Door"]),
            dcase(audio_url="https://example.org/clips/fold9.wav"),
        ]
    ):
        indent = 2 if number else None
        (questions / f"part{number % 3 + 1}_dev_{number}.json").write_text(json.dumps(record, indent=indent))
    assert world.run(world.folder / "questions") == 0
    assert [line["id"] for line in world.lines] == ["part1_dev_0", "part1_dev_3", "part2_dev_1", "part3_dev_2"]
    assert [line["task"] for line in world.lines] == ["bioacoustics"] * 2 + ["temporal soundscapes", "complex"]
    assert [line.get("answer") for line in world.lines] == ["Door", "Door", "Door", None]
    assert world.lines[0]["choices"] == ["Writing", "Door", "Laugh", "Cough"]
    assert world.lines[0]["category"] == "both" and world.lines[0]["dataset"] == "DCASE-2025"
    assert world.report["dropped"] == {
        "missing": ["part1_dev_6"],
        "bad record": ["q", "q"],  # what cannot be read has its own id, and below its file
    }
    details = world.report["details"]["bad record"]
    told = (
        f"{questions}/part2_dev_4.json:object: answer 'A. Door'",
        f"{questions}/part3_dev_5.json:object: answer 'B. Door'",
    )
    assert all(what in detail for what, detail in zip(told, details, strict=True))
    assert "left out: 'extra' (1)" in capsys.readouterr().err
    listed = write_json(world.folder / "dev.json", [dcase(audio_url="audio/fold1.wav", id=f"q{n}") for n in range(2)])
    assert world.run(listed, out="listed") == 0
    assert [line["id"] for line in world.lines] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("record", "question", "choices", "answer"),
    [
        (swift(), "What is heard?", ("dog", "cat's"), "cat's"),
        (swift(ASKED), "What is heard?", ("dog", "cat's"), "cat's"),  # ms-swift puts the one tag in front itself
        (swift(solution="dog"), "What is heard?", ("dog", "cat's"), "dog"),
        (answered("<think>It barks.</think>\n<answer>dog</answer>"), "What is heard?", ("dog", "cat's"), "dog"),
        (swift(f"<audio>\n{LETTERED}\nAnswer with the letter.", solution="B"), "What?", ("dog", "cat"), "cat"),
        (answered("(A) dog", f"{LETTERED}\n<audio>"), "What?", ("dog", "cat"), "dog"),
        (swift("<audio>Any words", question="Q", choices=["x", "y"], solution="y"), "Q", ("x", "y"), "y"),
        (swift(solution=None), "What is heard?", ("dog", "cat's"), None),
    ],
    ids=range(8),
)  # fmt: skip
def test_lines_for_ms_swift_are_read_by_their_prompt(record, question, choices, answer):
    found = one(record)
    assert (found.question.question, found.question.choices, found.question.answer) == (question, choices, answer)
    assert found.audio == "/clips/a.wav" and found.question.id == "lines.jsonl:line 1"
    assert found.left_out == (("a system message",) if "system" in str(record["messages"]) else ())


LISTED = "Please choose the answer from the following options: "
BAD = {
    "no keys of any": ({"question": "Q", "choices": ["a", "b"]}, "unknown format"),
    "AVQA's": ({"multi_choice": ["a", "b"], "answer": 1}, "unknown format"),
    "two clips": (swift(audios=["a.wav", "b.wav"]), "not the path of one clip"),
    "no clip": (swift(audios=None), "audios is None"),
    "a clip that is no path": (swift(audios=[{"bytes": "x"}]), "not a text"),
    "two tags": (swift(f"<audio>{ASKED}<audio>"), "tags <audio>, <audio>"),
    "a picture": (swift(images=["a.png"]), "images would be lost"),
    "a picture's tag": (swift(f"<audio><image>{ASKED}"), "tags <audio>, <image>"),
    "two turns": (swift(messages=swift()["messages"] * 3), "messages are of user, user, user"),
    "parts": (swift([{"type": "audio"}]), "expected a text"),
    "no choices": (swift("<audio>What is heard?"), "no `Choices:`"),
    "a list that is none": (swift(f"Q {LISTED}['dog', cat]."), "comes no list"),
    "a broken escape": (swift(f"Q {LISTED}['dog', '\\N']."), "comes no list"),
    "a second line": (swift("Q\nA. dog\nB. cat\nof somebody"), "belongs to the last choice"),
    "an answer that is no choice": (swift("Q\nA. dog\nB. cat", solution="cow"), "is neither one of the choices"),
    "an answer's letter against its text": (
        swift("Q\nA. dog\nB. cat", solution="A. cat"),
        "is neither one of the choices",
    ),
    "two answers": (swift(solution="<answer>dog</answer> <answer>cat's</answer>"), "2 different answers"),
    "a solution that is no text": (swift(solution=1), "solution is 1, not a text"),
    "a field of another kind": (swift(task=3), "task is 3"),
    "a letter in DCASE-2025": (dcase(answer="E. Bell"), "is neither one of the choices"),
    "DCASE-2025's choices": (dcase(choice="A. x"), "not a list of texts"),
    "AudioMCQ's question": (audiomcq("a.wav", question=None), "question is None"),
    "AudioMCQ's clip": (audiomcq("a.wav", audio_path=["a.wav"]), "audio_path is"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_understood_is_a_bad_record_with_a_remedy(name):
    record, what = BAD[name]
    with pytest.raises(BadRecord, match=re.escape(what)) as bad:
        one(record)
    assert bad.value.remedy


CHOICES = ("a dog", 'a "cat\'s"\n')
QUESTION = AudioQuestion("q 1", Path("/clips/é.flac"), "What's in the video?", CHOICES, CHOICES[0], dataset="AVQA")


def test_a_line_for_ms_swift():
    assert ms_swift_line(QUESTION, "answer") == {
        "id": "q 1",
        "messages": [
            {
                "role": "user",
                "content": "<audio>What's in the audio? Please choose the answer from the following options: "
                "['a dog', 'a \"cat\\'s\"\\n']. Output the final answer in <answer> </answer>.",
            }
        ],
        "audios": ["/clips/é.flac"],
        "solution": "<answer>a dog</answer>",
        "question": "What's in the video?",
        "choices": CHOICES,
        "dataset": "AVQA",
    }


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
plain = st.text(string.printable, min_size=1).map(str.strip).filter(lambda said: said and LISTED not in said)


few = settings(max_examples=50, derandomize=True, deadline=None, database=None)


@st.composite
def questions(draw, words):
    choices = draw(st.lists(words, min_size=2, max_size=5))
    named = {key: draw(st.none() | words) for key in ("dataset", "split", "task", "category", "language", "source")}
    return AudioQuestion(
        id=draw(words),
        audio_path=Path("/clips/a.flac"),
        question=draw(words),
        choices=tuple(choices),
        answer=draw(st.sampled_from(choices)),
        contribution=draw(st.sampled_from([None, "weak", "strong"])),
        flags=draw(st.sampled_from([(), ("duplicate_choices",)])),
        **named,
    )


def written(question, style):
    try:
        return json.loads(json.dumps(ms_swift_line(question, style)))
    except BadRecord:
        return None


@example(replace(QUESTION, answer=CHOICES[1]), "answer")  # a line break at the end
@few
@given(questions(texts), st.sampled_from(PROMPT_STYLES))
def test_what_ms_swift_is_given_reads_back_as_the_same_question(question, style):
    line = written(question, style)
    assume(line is not None)
    found = one(line)
    assert replace(found.question, audio_path=question.audio_path) == question
    assert found.audio == str(question.audio_path) and found.left_out == ()


@few
@given(questions(plain), st.sampled_from(PROMPT_STYLES))
def test_a_prompt_alone_gives_question_and_choices_back(question, style):
    """Without the columns that say them, as lines of other projects are, which ask as R1-AQA does."""
    line = written(replace(question, dataset=None), style)
    assume(line is not None)
    found = one({key: line[key] for key in ("messages", "audios", "solution")}).question
    assert (found.question, found.choices, found.answer) == (question.question, question.choices, question.answer)


def test_a_manifest_goes_to_ms_swift_and_back(world):
    clips = [wav(world.folder / "source" / f"{number}.wav", seed=number) for number in range(2)]
    names = "split task difficulty category sub_category modality language version source_video source licence"
    full = {name: f"a {name}" for name in names.split()}
    asked = [
        replace(QUESTION, audio_path=clips[0], contribution="strong", **full),
        replace(QUESTION, id="q 2", audio_path=clips[1], choices=("a", "a"), answer="a", flags=("duplicate_choices",)),
        replace(QUESTION, id="q 3", audio_path=clips[1], dataset=None),
    ]
    write_manifest(world.folder / "source" / "manifest.jsonl", asked)
    first, second = (world.folder / name for name in ("first.jsonl", "second.jsonl"))
    assert convert("--to", "ms-swift", world.folder / "source" / "manifest.jsonl", "--out", first) == 0
    for line in read_lines(first):
        content = line["messages"][0]["content"]
        assert content.count("<audio>") == len(line["audios"]) == 1 and Path(line["audios"][0]).is_absolute()
    assert world.run(first) == 0
    assert [replace(back, audio_path=one.audio_path) for back, one in zip(world.questions, asked, strict=True)] == asked
    assert report_of(world.out)["kept"] == 3
    assert convert("--to", "ms-swift", world.out / "manifest.jsonl", "--out", second) == 0
    assert world.run(second, out="again") == 0
    once, again = (read_lines(world.folder / name / "manifest.jsonl") for name in ("out", "again"))
    assert once == again


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_the_prompt_is_that_of_training(style, tmp_path):
    question = replace(QUESTION, audio_path=wav(tmp_path / "a.wav"))
    write_manifest(tmp_path / "manifest.jsonl", [question])
    out = tmp_path / "lines.jsonl"
    assert convert("--to", "ms-swift", tmp_path / "manifest.jsonl", "--out", out, "--prompt-style", style) == 0
    (line,) = read_lines(out)
    assert line["messages"][0]["content"] == f"<audio>{prompt_text(question, style)}"
    assert line["solution"] == ("a dog" if style == "direct" else "<answer>a dog</answer>")


def test_what_ms_swift_would_read_otherwise_is_refused_all_at_once(tmp_path, capsys):
    clip = wav(tmp_path / "a.wav")
    asked = [
        replace(QUESTION, audio_path=clip, question="What is <audio>?"),
        replace(QUESTION, audio_path=clip, id="q 2", choices=("<|im_end|>", "a dog")),
        replace(QUESTION, audio_path=clip, id="q 3", answer=None),
        replace(QUESTION, id="q 4"),
        replace(QUESTION, audio_path=clip, id="q 5", choices=("a</answer>dog", "cat"), answer="a</answer>dog"),
    ]
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "lines.jsonl"
    write_manifest(manifest, asked)
    assert convert("--to", "ms-swift", manifest, "--out", out) == 2 and not out.exists()
    said = capsys.readouterr().err.splitlines()
    assert convert("--to", "ms-swift", manifest, "--out", manifest) == 2 and len(read_lines(manifest)) == len(asked)
    assert "would overwrite the manifest" in capsys.readouterr().err
    wrong = ("spell <audio>", "spell <|im_end|>", "has no answer", "there is no clip", "the answer spells a tag")
    for number, what in enumerate(wrong, start=1):
        assert any(f"{manifest}: q {number}: " in line and what in line for line in said)


def test_options_that_do_not_fit_and_inputs_that_hold_nothing(tmp_path, capsys):
    lines = write_lines(tmp_path / "lines.jsonl", [])
    for arguments, what in (
        ((lines, "--to", "ms-swift", "--audio", tmp_path), "--audio: not allowed with argument --to ms-swift"),
        ((lines, "--prompt-style", "think"), "--prompt-style: not allowed with argument --to manifest"),
        ((lines, lines, "--to", "ms-swift"), "give one manifest"),
    ):
        with pytest.raises(SystemExit) as ended:
            convert(*arguments, "--out", tmp_path / "out")
        assert ended.value.code == 2 and what in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for name, what in (("lines.jsonl", "no records"), ("gone", "no such file"), ("empty", "no JSON file")):
        assert convert(tmp_path / name, "--out", tmp_path / "out") == 2
        assert what in capsys.readouterr().err


def test_another_input_needs_another_folder(world):
    """The folder's claim is by content: a question that was mended is another input."""
    wav(world.folder / "audio" / "fold1.wav")
    (world.folder / "questions" / "dev").mkdir(parents=True)
    write_json(world.folder / "questions" / "dev" / "q.json", dcase())
    assert world.run(world.folder / "questions") == 0 == world.run(world.folder / "questions")
    write_json(world.folder / "questions" / "dev" / "q.json", dcase(question="Mended?"))
    assert world.run(world.folder / "questions") == 2


def test_contribution_is_a_field_of_manifests(tmp_path):
    line = {"id": "a", "audio_path": "a.wav", "question": "Q", "choices": ["x", "y"]}
    lines = [line | {"contribution": "strong"}, line | {"id": "b", "contribution": "none"}]
    read = read_questions(write_lines(tmp_path / "manifest.jsonl", lines))
    assert [question.contribution for question in read.records] == ["strong"]
    assert "contribution is 'none'" in str(read.problems[0]) and "weak or strong" in str(read.problems[0])
