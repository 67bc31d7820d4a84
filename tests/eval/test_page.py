"""report.html: what it shows, and that nothing a model or a data set wrote is anything but text in it."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import soundfile

import eval.mmau
from eval import html_report
from eval.evaluation import Evaluation
from eval.predictions import by_question, predict
from eval.report.charts import GUESSING, bars, curve
from eval.report.page import REPORT, positions, write_page
from eval.score_predictions import score_file
from eval.scores import tally
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from tests.hostile import HOSTILE, hostile_questions

SETTINGS = {"prompt_style": "answer", "no_audio": False}


class Page(HTMLParser):
    """The elements of a page, with their attributes, and the content of its scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.raw, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attributes).get("type"), ""))

    def handle_data(self, data):
        tag = self.elements[-1][0] if self.elements else ""
        if tag in ("script", "style") and not self.raw[-1][2]:
            self.raw[-1] = (*self.raw[-1][:2], data)
        else:
            self.text.append(data)


def written(folder, questions, predictions, version="unknown", settings=SETTINGS, paths=None, **more):
    """The page of these predictions."""
    paths = {"checkpoint": "model", "data": "data.json"} if paths is None else paths
    keyed = {one.key: one for one in predictions}
    path = write_page(Evaluation(folder, questions, keyed, settings, paths, version), **more)
    return path.read_text(encoding="utf-8")


def data_of(page):
    (text,) = [text for tag, kind, text in Page(page).raw if kind == "application/json"]
    return json.loads(text)


def answered(question, completion, repeat=0, permuted=False):
    return predict(question, completion, "answer", "hash", repeat, permuted)


def plain_questions(folder, count, **fields):
    choices = ("a dog", "a cat", "a car", "rain")
    return [
        AudioQuestion(
            id=f"q{index}",
            audio_path=folder / "clips" / f"{index}.wav",
            question="What is heard?",
            choices=choices,
            answer=choices[index % 4],
            task=("sound", "music", "speech")[index % 3],
            **fields,
        )
        for index in range(count)
    ]


def test_hostile_texts_are_text(tmp_path):
    questions = hostile_questions(tmp_path, len(HOSTILE))
    predictions = [answered(question, text) for question, text in zip(questions, HOSTILE, strict=True)]
    paths = {"checkpoint": HOSTILE[0], "data": HOSTILE[1]}
    settings = SETTINGS | {"device": HOSTILE[2]}
    page = written(tmp_path, questions, predictions, settings=settings, paths=paths)
    harmless = plain_questions(tmp_path, 3)
    plain = written(tmp_path, harmless, [answered(one, "rain") for one in harmless])
    parsed = Page(page)
    known = {tag for tag, _ in Page(plain).elements}
    assert {tag for tag, _ in parsed.elements} <= known  # no element of its own
    assert [kind for tag, kind, _ in parsed.raw if tag == "script"] == ["application/json", None]
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)  # nothing is loaded
    shown = data_of(page)["questions"]
    assert [one["answers"][0]["completion"] for one in shown] == list(HOSTILE)
    assert [one["question"] for one in shown] == [question.question for question in questions]
    assert HOSTILE[0] in "".join(parsed.text)


def test_policy_allows_the_page_alone(tmp_path):
    page = written(tmp_path, plain_questions(tmp_path, 3), [])
    parsed = Page(page)
    (policy,) = [one["content"] for tag, one in parsed.elements if one.get("http-equiv") == "Content-Security-Policy"]
    (script,) = [text for tag, kind, text in parsed.raw if (tag, kind) == ("script", None)]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert (allowed["default-src"], allowed["script-src"]) == ("'none'", f"'sha256-{digest}'")
    assert [name for name, value in allowed.items() if "unsafe" in value] == ["style-src"]


def test_what_is_listed(tmp_path):
    questions = plain_questions(tmp_path, 4, flags=("duplicate_choices",))
    turned = replace(questions[2], choices=questions[2].choices[::-1])
    predictions = [
        answered(questions[0], "<answer>(A)</answer>"),
        answered(questions[0], "<answer></answer>", repeat=1),
        answered(questions[1], None),
        answered(questions[2], "<answer>a car</answer>", permuted=True),
        answered(turned, "<answer>a horse</answer>", repeat=1, permuted=True),
    ]
    first, second, third, fourth = data_of(written(tmp_path, questions, predictions))["questions"]
    assert first["audio"] == "clips/0.wav"
    assert first["answers"][0] == {
        "repeat": 0,
        "verdicts": [False, False, True],  # a letter, for official, strict, letter_aware
        "status": "ok",
        "completion": "<answer>(A)</answer>",
        "answer": "(A)",
        "chosen": 0,
    }
    assert [one["status"] for one in first["answers"]] == ["ok", "unparsed"]
    assert [one["status"] for one in second["answers"]] == ["no_audio", "missing"]
    assert [one["chosen"] for one in third["answers"]] == [2, None]
    assert third["answers"][1]["order"] == list(turned.choices)
    assert [one["verdicts"] for one in fourth["answers"]] == [[False] * 3] * 2


def test_positions(tmp_path):
    first, second = plain_questions(tmp_path, 2)  # the right choice first and second
    turned = replace(first, choices=first.choices[::-1])  # and last
    given = by_question(
        [
            answered(first, "a dog"),
            answered(first, "a cat", repeat=1),
            answered(turned, "a dog", repeat=2, permuted=True),
            answered(turned, "(A)", repeat=3, permuted=True),
            answered(turned, "a horse", repeat=4, permuted=True),
            answered(second, None),
        ]
    )
    table = positions([first, second], given)
    assert table == {"1": [1, 1, 0, 0, 0], "4": [1, 0, 0, 1, 1], "anywhere": [2, 1, 0, 1, 1]}


@pytest.mark.parametrize(
    ("version", "count", "settings", "compared"),
    [
        ("original", 1000, {}, True),
        ("original", 999, {}, False),
        ("original", 1000, {"no_audio": True}, False),
        ("v05.15.25", 1000, {}, False),
        ("unknown", 1000, {}, False),
        ("embedded", 1000, {}, False),
    ],
)
def test_line_at_64_5_only_where_it_is_comparable(tmp_path, version, count, settings, compared):
    page = written(tmp_path, plain_questions(tmp_path, count), [], version, SETTINGS | settings)
    in_charts = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert ("64.5" in in_charts) == compared
    if not compared:  # elsewhere it is named only to say so
        sentences = [sentence for sentence in re.split("[<>]", page) if "64.5" in sentence]
        assert all(re.search("Not compared with|no comparison with", sentence) for sentence in sentences)


def test_a_task_that_no_question_has_is_no_mark(tmp_path):
    """Tasks are no part of what makes a file of questions the published one."""
    questions = [replace(one, task="sound" if one.task == "sound" else None) for one in plain_questions(tmp_path, 1000)]
    page = written(tmp_path, questions, [], "original")
    (chart,) = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "Accuracy by task" in svg]
    assert "published for that bar" in chart
    assert "sound" in chart and "speech" not in chart


def test_every_task_has_a_curve_of_its_own():
    tasks = [f"task {number}" for number in range(9)]
    points = [{"step": step, "total": tally([1.0]), "task": dict.fromkeys(tasks, tally([1.0]))} for step in (1, 2)]
    (axis,) = curve(points, {}).axes
    lines = [line for line in axis.lines if line.get_label() in tasks]
    assert [line.get_label() for line in lines] == tasks
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_chart_shows_accuracies_intervals_and_lines():
    tallies = {"sound": tally([1.0] * 30 + [0.0] * 10), "$x^{2$ <b>": tally([0.0] * 7)}
    (axis,) = bars(tallies, {"64.5: published": 64.5, GUESSING: 25.0}, {"sound": 69.37}).axes
    assert [bar.get_width() for bar in axis.patches] == [75.0, 0.0]
    drawn = [segment for lines in axis.collections for segment in lines.get_segments()]
    assert [[end[0] for end in segment] for segment in drawn] == [
        pytest.approx(one["ci95"]) for one in tallies.values()
    ]
    named = {line.get_label(): line.get_xdata()[0] for line in axis.lines if not line.get_label().startswith("_")}
    assert named == {"64.5: published": 64.5, GUESSING: 25.0, "published for that bar": 69.37}


def test_embedded_audio(tmp_path, manifest):
    questions = read_questions(manifest).records[:2]
    questions[1] = replace(questions[1], audio_path=tmp_path / "absent.wav")
    first, second = data_of(written(tmp_path, questions, [], embed_audio=True))["questions"]
    assert second["audio"] == "data:audio/mpeg;base64,"
    clip = tmp_path / "clip.mp3"
    clip.write_bytes(base64.b64decode(first["audio"].removeprefix("data:audio/mpeg;base64,")))
    samples, rate = soundfile.read(clip)
    assert rate == 16_000
    original = soundfile.info(questions[0].audio_path)
    assert len(samples) / rate == pytest.approx(original.duration, abs=0.2)  # MP3 pads to whole frames of 36 ms


class TestEmbedAudio:
    """`--embed-audio`, of an evaluation and of anybody's predictions."""

    def first_clip(self, folder):
        return data_of((folder / REPORT).read_text(encoding="utf-8"))["questions"][0]["audio"]

    def test_of_predictions(self, manifest, tmp_path):
        questions = read_questions(manifest).records
        theirs, out = tmp_path / "theirs.json", tmp_path / "out"
        theirs.write_text(json.dumps([{"id": one.id, "model_output": one.choices[0]} for one in questions]))
        arguments = ["--predictions", str(theirs), "--data", str(manifest), "--out", str(out)]
        assert eval.mmau.main(arguments) == 0
        assert (out / self.first_clip(out)).resolve() == questions[0].audio_path.resolve()
        assert eval.mmau.main([*arguments, "--embed-audio"]) == 0
        assert self.first_clip(out).startswith("data:audio/mpeg;base64,")

    def test_of_an_evaluation(self, made_once, manifest, tmp_path):
        out = tmp_path / "run"
        arguments = ["--ckpt", made_once / "model", "--data", manifest, "--out", out, "--device", "cpu"]
        arguments = [*map(str, arguments), "--max-new-tokens", "4", "--limit", "2"]
        assert eval.mmau.main([*arguments, "--embed-audio"]) == 0
        assert self.first_clip(out).startswith("data:audio/mpeg;base64,")
        assert eval.mmau.main(arguments) == 0  # nothing is generated again
        assert not self.first_clip(out).startswith("data:")
        assert eval.mmau.main(["--predictions", str(out / "predictions.jsonl"), "--embed-audio"]) == 0
        assert self.first_clip(out).startswith("data:audio/mpeg;base64,")

    def test_clips_that_lie_elsewhere(self, manifest, tmp_path):
        """Of an MMAU file, whose clips are found by --audio-dir alone."""
        questions = read_questions(manifest).records
        records = [
            {
                "id": one.id,
                "audio_id": f"./{one.audio_path.name}",
                "question": one.question,
                "choices": one.choices,
                "answer": one.answer,
                "model_output": one.choices[0],
            }
            for one in questions
        ]
        data, out = tmp_path / "mmau.json", tmp_path / "out"
        data.write_text(json.dumps(records), encoding="utf-8")
        score_file(data, data, out, audio_dir=manifest.parent / "audio")
        assert (out / self.first_clip(out)).resolve() == questions[0].audio_path.resolve()
        assert f"--audio-dir {manifest.parent / 'audio'}" in (out / "report.md").read_text(encoding="utf-8")

    def test_the_old_command_says_where_it_went(self, tmp_path, capsys):
        assert html_report.main([str(tmp_path), "--embed-audio"]) == 2
        assert "Give --embed-audio to `python -m eval.mmau`" in capsys.readouterr().err


def test_a_thousand_hostile_questions_are_small(tmp_path):
    questions = hostile_questions(tmp_path, 1000)
    predictions = [answered(one, f"<answer>{HOSTILE[i % len(HOSTILE)]}</answer>") for i, one in enumerate(questions)]
    assert len(written(tmp_path, questions, predictions).encode()) < 3_000_000
