"""report.html: what it shows, and that nothing a model or a data set wrote is anything but text in it."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import soundfile

import eval.mmau
from eval import html_report
from eval.predictions import predict
from eval.report.page import REPORT, write_page
from eval.rules import RULES
from eval.score_predictions import score_file
from eval.scores import tally
from r1_aqa_repro.data.questions import read_questions
from tests.eval.made_up import evaluation_of, make_questions
from tests.files import write_json
from tests.hostile_texts import HOSTILE, hostile_questions

SETTINGS = {"prompt_style": "answer", "no_audio": False}
EMBEDDED = "data:audio/mpeg;base64,"


class Page(HTMLParser):
    """The elements of a page, with their attributes, the text in them, and the content of its scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.text = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        kind = attributes.get("type")
        if tag == "script" and kind not in self.scripts:
            self.scripts[kind] = data
        elif tag != "style":
            self.text.append(data)


def written(folder, questions, predictions, settings=SETTINGS, embed_audio=False, **more):
    """The page of these predictions."""
    keyed = {one.key: one for one in predictions}
    path = write_page(evaluation_of(questions, keyed, settings, folder=folder, **more), embed_audio)
    return path.read_text(encoding="utf-8")


def questions_of(page):
    return json.loads(Page(page).scripts["application/json"])["questions"]


def charts_of(page):
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def answered(question, completion, repeat=0, permuted=False):
    return predict(question, completion, "answer", "hash", repeat, permuted)


def plain_questions(folder, count, **fields):
    choices = ("a dog", "a cat", "a car", "rain")
    return [
        replace(one, audio_path=folder / "clips" / one.audio_path.name, choices=choices, answer=choices[index % 4])
        for index, one in enumerate(make_questions(count, **fields))
    ]


def test_hostile_texts_are_text(tmp_path):
    questions = hostile_questions(tmp_path, len(HOSTILE))
    predictions = [answered(question, text) for question, text in zip(questions, HOSTILE, strict=True)]
    paths = {"checkpoint": HOSTILE[0], "data": HOSTILE[1]}
    page = written(tmp_path, questions, predictions, SETTINGS | {"device": HOSTILE[2]}, paths=paths)
    plain = plain_questions(tmp_path, 3)
    parsed, harmless = Page(page), Page(written(tmp_path, plain, [answered(one, "rain") for one in plain]))
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in harmless.elements}  # no element of its own
    scripts = [attributes.get("type") for tag, attributes in parsed.elements if tag == "script"]
    assert scripts == ["application/json", None]
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not {"src", "href", "srcset"} & set(attributes), (tag, attributes)  # nothing is loaded
    assert "🎵" in parsed.scripts["application/json"]  # as it is, which is short
    shown = questions_of(page)
    assert [one["answers"][0]["completion"] for one in shown] == list(HOSTILE)
    assert [one["question"] for one in shown] == [question.question for question in questions]
    assert HOSTILE[0] in "".join(parsed.text)


def test_a_thousand_hostile_questions_are_small(tmp_path):
    questions = hostile_questions(tmp_path, 1000)
    predictions = [answered(one, f"<answer>{HOSTILE[i % len(HOSTILE)]}</answer>") for i, one in enumerate(questions)]
    assert len(written(tmp_path, questions, predictions).encode()) < 3_000_000


def test_policy_allows_the_script_of_the_page_alone(tmp_path):
    parsed = Page(written(tmp_path, plain_questions(tmp_path, 3), []))
    (policy,) = [one["content"] for tag, one in parsed.elements if one.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[None].encode("utf-8")).digest()).decode()
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert (allowed["default-src"], allowed["script-src"]) == ("'none'", f"'sha256-{digest}'")
    assert [name for name, value in allowed.items() if "unsafe" in value] == ["style-src"]


def test_every_answer_is_listed_with_its_verdicts(tmp_path):
    questions = plain_questions(tmp_path, 4, flags=("duplicate_choices",))
    turned = replace(questions[2], choices=questions[2].choices[::-1])
    predictions = [
        answered(questions[0], "<answer>(A)</answer>"),
        answered(questions[0], "<answer></answer>", repeat=1),
        answered(questions[1], None),
        answered(questions[2], "<answer>a car</answer>", permuted=True),
        answered(turned, "<answer>a horse</answer>", repeat=1, permuted=True),
    ]
    first, second, third, fourth = questions_of(written(tmp_path, questions, predictions))
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


def test_the_rules_of_others_stand_beside_the_matchers(tmp_path):
    questions = plain_questions(tmp_path, 4)
    page = written(
        tmp_path, questions, [answered(one, text) for one, text in zip(questions, ["(A)", "a cat"], strict=False)]
    )
    rows = dict(re.findall(r"<bdi>([a-z_]+)</bdi></th><td>([^<]*)</td><td>\d+</td><td>", page))
    assert {name: rows[name] for name in RULES} == {
        **{"official": "1", "strict": "1", "letter_aware": "2"},
        **{"official_answered": "1", "exact_alnum": "0", "named_last": "2"},
        **{"letter_lmms": "1.75", "letter_lmms_mmau": "1.75"},  # three guesses at four choices
    }
    assert "lmms-eval's task mmau" in html.unescape(page)
    assert "official_answered" not in written(tmp_path, questions, [])  # it would leave out all


@pytest.mark.parametrize(("version", "compared"), [("original", True), ("v05.15.25", False)])
def test_line_at_64_5_only_where_it_is_comparable(tmp_path, version, compared):
    """What else is not comparable is in test_markdown_report."""
    page = written(tmp_path, plain_questions(tmp_path, 1000), [], version=version)
    assert ("64.5" in "".join(charts_of(page))) == compared
    if not compared:  # elsewhere it is named only to say so
        assert all("Not compared with" in sentence for sentence in re.split("[<>]", page) if "64.5" in sentence)


def test_shared_clips_are_said_where_there_are_any(tmp_path):
    own = plain_questions(tmp_path, 6)
    shared = [replace(one, audio_path=own[index // 2].audio_path) for index, one in enumerate(own)]
    texts = [" ".join(Page(written(tmp_path, one, [])).text) for one in (own, shared)]
    for said in ("0 of 6 questions about 3 clips, 95 % interval", "over clips, which several questions share"):
        assert [said in text for text in texts] == [False, True]


def test_bars_show_accuracies_intervals_and_lines(tmp_path):
    questions = plain_questions(tmp_path, 40)
    bar = charts_of(written(tmp_path, questions, [answered(one, one.answer) for one in questions[:30]]))[0]
    drawn = [float(number) for number in re.findall(r'(?:width="|M|H)([\d.]+)', bar.split(">", 1)[1])]
    sound = [one for one in questions if one.task == "sound"]
    total = tally([one in questions[:30] for one in sound], [one.audio_path for one in sound])
    assert drawn == pytest.approx([total["accuracy"], *total["ci95"], 25.0], abs=0.01)  # chance last


class TestClips:
    def first(self, folder):
        return questions_of((folder / REPORT).read_text(encoding="utf-8"))[0]["audio"]

    def test_embedded_ones_are_as_the_model_heard_them(self, tmp_path, manifest):
        questions = read_questions(manifest).records[:2]
        questions[1] = replace(questions[1], audio_path=tmp_path / "absent.wav")
        first, second = questions_of(written(tmp_path, questions, [], embed_audio=True))
        assert second["audio"] == EMBEDDED
        clip = tmp_path / "clip.mp3"
        clip.write_bytes(base64.b64decode(first["audio"].removeprefix(EMBEDDED)))
        samples, rate = soundfile.read(clip)
        original = soundfile.info(questions[0].audio_path)
        assert rate == 16_000
        assert len(samples) / rate == pytest.approx(original.duration, abs=0.2)  # MP3 pads to whole frames of 36 ms

    def test_embed_audio_of_an_evaluation(self, model, manifest, tmp_path):
        out = tmp_path / "run"
        arguments = ["--ckpt", model, "--data", manifest, "--out", out, "--device", "cpu"]
        arguments = [*map(str, arguments), "--max-new-tokens", "4", "--limit", "2"]
        again = ["--predictions", str(out / "predictions.jsonl"), "--embed-audio"]
        for call, embedded in (([*arguments, "--embed-audio"], True), (arguments, False), (again, True)):
            assert eval.mmau.main(call) == 0
            assert self.first(out).startswith(EMBEDDED) == embedded
            assert (len(self.first(out)) > 1000) == embedded

    def test_they_are_found_by_audio_dir_alone(self, manifest, tmp_path):
        """Of an MMAU file that lies elsewhere."""
        (question, *_), out = read_questions(manifest).records, tmp_path / "out"
        record = {"id": "1", "audio_id": f"./{question.audio_path.name}", "question": "?", "choices": question.choices}
        data = write_json(tmp_path / "mmau.json", [record | {"answer": question.choices[0], "model_output": "?"}])
        score_file(data, data, out, audio_dir=manifest.parent / "audio")
        assert (out / self.first(out)).resolve() == question.audio_path.resolve()

    def test_the_old_command_says_where_it_went(self, tmp_path, capsys):
        assert html_report.main([str(tmp_path), "--embed-audio"]) == 2
        assert "Give --embed-audio to `python -m eval.mmau`" in capsys.readouterr().err
