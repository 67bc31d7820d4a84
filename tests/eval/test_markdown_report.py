"""What the report says, and what a run may be compared with."""

import html
import re
import shlex

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown

from eval.mmau import _parser
from eval.report.markdown import markdown_report
from eval.report.rendering import escape
from eval.scores import score
from eval.settings import repeating_command
from eval.targets import EMBEDDED_HEADING, TARGET, against_published
from tests.eval.made_up import evaluation_of, make_questions, permuted, predictions_of, repeated

SETTINGS = {
    "prompt_style": "answer",
    "decoding": "greedy",
    "max_new_tokens": 8,
    "batch_size": 2,
    "dtype": "float32",
    "device": "cpu",
    "no_audio": False,
    "audio_channel": "first",
    "checkpoint_sha256": "0" * 64,
}


def reported(questions, predictions, settings=SETTINGS, **more):
    return markdown_report(evaluation_of(questions, predictions, settings, **more))


def report_of(questions, completions, version, **settings):
    return reported(questions, predictions_of(questions, completions), SETTINGS | settings, version=version)


def test_only_the_whole_original_file_is_compared_with_the_paper():
    questions = make_questions(1000)
    completions = ["cat"] * 600 + ["dog"] * 400
    report = report_of(questions, completions, "original")
    assert "| **this run** |" in report
    assert "Distance to 64.5: -4.50 points, 95 % interval of this run [-7.5" in report
    assert "64.5 lies outside the interval of this run, which is worse" in report
    for other in (
        report_of(questions, completions, "unknown"),
        report_of(questions[:10], completions[:10], "original"),
        report_of(questions, completions, "original", no_audio=True),
    ):
        assert "GRPO, prompt 2" not in other
        assert "Distance to" not in other
        assert "Not compared with 64.5" in other
    assert "no published file, whatever version its records name" in report_of(questions, completions, "unknown")


def test_the_embedded_set_is_never_compared():
    report = report_of(make_questions(1000), ["cat"] * 1000, "embedded")
    assert EMBEDDED_HEADING in report.splitlines()[2]
    assert "Compared with the paper" not in report


def test_lost_and_unparsed_questions_are_listed():
    report = report_of(make_questions(3), ["<answer> </answer>", None, "cat"], "unknown")
    assert "| q1 | /clips/1.wav |" in report
    assert r"| q0 | \<answer\> \</answer\> |" in report


def test_what_a_model_wrote_stays_text():
    evil = "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b**\n# h\x1b[31m"
    report = report_of(make_questions(1), [evil], "unknown")
    console = Console(width=200, force_terminal=False, record=True)
    with console.capture() as shown:
        console.print(Markdown(report))
    assert "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b** # h [31m" in shown.get()
    assert "\x1b" not in report
    assert "\n" not in escape(evil)


@pytest.mark.parametrize(
    "text",
    [
        "see www.evil.example/a and WWW.evil.example",
        "mail me@evil.example, mailto:me@evil.example or xmpp:me@evil.example/x",
        "thanks @octocat and @org/team",
        "http://evil.example ftp://evil.example",
        "a@b www. @ <!-- no comment --> \\@x \\www.x",
    ],
)
def test_addresses_and_names_stay_text(text):
    """What GitHub makes links of is parted, in the table as in its rendering; what is read is the same."""
    report = report_of(make_questions(1), [f"<answer></answer>{text}"], "unknown")
    written = next(line for line in report.splitlines() if line.startswith("| q0 |"))
    assert not re.search(r"www\.|@[\w./-]|\w://", written, re.IGNORECASE)
    page = MarkdownIt("commonmark").enable("table").render(report)
    assert "<a" not in page
    (cell,) = re.findall(r"<td[^>]*>(&lt;answer.*?)</td>", page)
    assert "@<!-- -->" in cell or "@" not in text
    assert html.unescape(cell.replace("<!-- -->", "")) == f"<answer></answer>{text}"


def test_the_corrected_version_has_its_own_figures():
    report = report_of(make_questions(1000), ["cat"] * 670 + ["dog"] * 330, "v05.15.25")
    assert "Not compared with 64.5: that is a figure on version original, this run is on version v05.15.25" in report
    assert "| Qwen2-Audio-7B-Instruct, not trained |  |  |  | 59.60 |" in report
    assert "67.2 lies in the interval of this run" in report
    assert "GRPO, prompt 2" not in report
    assert "Distance to 64.5" not in report


@pytest.mark.parametrize(
    ("correct", "conclusion"),
    [
        (645, "64.5 lies in the interval of this run"),
        (616, "64.5 lies in the interval"),  # Wilson: 58.6 to 64.6
        (614, "which is worse than the published figure if that is taken as exact"),  # 58.3 to 64.4
        (590, "which is worse than the published figure, by more than"),
        (676, "which is better than the published figure if that is taken as exact"),
        (700, "which is better than the published figure, by more than"),
    ],
)
def test_what_can_be_concluded(correct, conclusion):
    questions = make_questions(1000)
    predictions = predictions_of(questions, ["cat"] * correct + ["dog"] * (1000 - correct))
    scores, _ = score(questions, predictions, "answer", "original")
    compared = against_published(scores, SETTINGS)
    assert conclusion in " ".join(compared.sentences)
    assert "a true difference from 64.5 of 4.2 points" in " ".join(compared.sentences)
    numbers = re.findall(r"[+-]\d+\.\d+", compared.sentences[0])
    points, low, high, both_low, both_high = map(float, numbers)
    assert points == pytest.approx(correct / 10 - TARGET)
    assert both_low < low < points < high < both_high  # two samples are less certain than one
    assert compared.rows[-1][0] == "this run"
    assert compared.rows[-1][-1] == pytest.approx(correct / 10)


def test_repeats_of_the_whole_file_are_compared_and_orders_are_not():
    questions = make_questions(1000)
    scores, _ = score(questions, repeated(questions, [["cat", "dog"]] * 1000), "answer", "original")
    assert scores["total"]["accuracy"] == 50
    assert against_published(scores, SETTINGS).sentences[0].startswith("Distance to 64.5: -14.50 points")
    predictions = {}
    for question in questions:
        predictions |= permuted(question, [(("dog", "cat"), ["cat"]), (("cat", "dog"), ["cat"])])
    scores, _ = score(questions, predictions, "answer", "original")
    assert "several orders" in against_published(scores, SETTINGS).reason


def test_repeats_and_orders_are_reported():
    questions = make_questions(3)
    predictions = {}
    for question in questions:
        predictions |= permuted(question, [(("dog", "cat"), ["cat"]), (("cat", "dog"), ["A"])])
    report = reported(questions, predictions)
    assert "mean of 2 answers a question" in report
    assert "3, 6 answers asked for" in report
    assert "| 0 | 100.00 | 43.9 to 100.0 |\n| 1 | 0.00 | 0.0 to 56.1 |" in report
    assert "| 2 | 3 | 3 | 100.00 | 43.9 to 100.0 |" in report  # the right choice at the second place
    assert "Mean 50.00 %, sample standard deviation 70.71 points, from 0.00 to 100.00" in report
    assert "| answered with the same choice in every order | 3 | 3 | 100.00 |" in report
    assert "| right in every order | 0 | 3 | 0.00 |" in report


def test_every_question_the_matchers_disagree_on_is_named():
    questions = make_questions(60)
    report = report_of(questions, ["B"] * 30 + ["the cat"] * 10 + ["cat"] * 10 + ["dog"] * 10, "unknown")
    assert "## Where the matchers disagree (40 questions)" in report
    section = report.partition("## Where the matchers disagree")[2].partition("\n## ")[0]
    named = set(section.replace(",", " ").replace(".", " ").split())
    assert {f"q{index}" for index in range(60)} & named == {f"q{index}" for index in range(40)}
    assert "| q0 | B | cat | wrong | wrong | right |" in report
    agreeing = report_of(questions, ["cat"] * 60, "unknown")
    assert "## Where the matchers disagree (0 questions)\n\nNowhere." in agreeing


def test_every_missing_and_unparsed_question_is_named():
    questions = make_questions(80)
    report = report_of(questions, [""] * 30, "unknown")
    absent = report.partition("## Without a prediction")[2].partition("##")[0]
    assert {word.strip(",") for word in absent.split()} == {f"q{index}" for index in range(30, 80)}
    unparsed = report.partition("## Unparsed completions (of 30 questions)")[2].partition("##")[0]
    assert all(f"q{index}" in unparsed for index in range(30))
    assert "| unparsed | 30 of 80 |" in report
    assert "| missing | 50 of 80 (count as wrong), 0 of the questions" in report


def test_baselines_and_the_blind_run_stand_beside():
    questions = make_questions(10)
    predictions = predictions_of(questions, ["cat"] * 10)
    blind, _ = score(questions, predictions_of(questions, ["cat"] * 7), "answer", "unknown")
    without = reported(questions, predictions)
    assert "| guessing at random | 50.00 |  |" in without
    assert "| always the first choice | 0.00 |  |" in without
    assert "No complete evaluation of this model without audio" in without
    beside = reported(questions, predictions, without_audio=blind)
    assert "| this model given silence | 70.00 | 39.7 to 89.2 |" in beside
    assert "there remain 70.0 % of the score and 40.0 % of what is above chance" in beside


def test_the_command_that_repeats_it_is_one():
    settings = {**SETTINGS, "repeats": 2, "permute_choices": 3, "questions": 12, "no_audio": True}
    paths = {"checkpoint": "my run/ckpt", "data": "data.json", "audio_dir": "clips", "adapter": "lora"}
    line = repeating_command(settings, paths)
    arguments = vars(_parser().parse_args(shlex.split(line)[3:]))
    expected = {"ckpt": "my run/ckpt", "repeats": 2, "permute_choices": 3, "limit": 12, "no_audio": True}
    assert {key: arguments[key] for key in expected} == expected
    assert (arguments["batch_size"], arguments["max_new_tokens"], arguments["prompt_style"]) == (2, 8, "answer")
    assert repeating_command(settings, paths | {"predictions": "p"}).count("--no-audio") == 0
    paths = {"predictions": "a b.json", "data": "d", "audio_dir": "clips"}
    theirs = repeating_command({"questions": 7, "prompt_style": None}, paths)
    arguments = vars(_parser().parse_args(shlex.split(theirs)[3:]))
    given = {name: str(arguments[name]) for name in ("predictions", "data", "audio_dir", "limit", "prompt_style")}
    assert given == {"predictions": "a b.json", "data": "d", "audio_dir": "clips", "limit": "7", "prompt_style": "None"}
    assert repeating_command({"training_step": 5}, {"checkpoint": "run", "data": "d"}) == ""


def test_settings_and_hashes_are_in_it():
    report = report_of(make_questions(3), ["cat"] * 3, "unknown", data_sha256="1" * 64)
    assert "| checkpoint\\_sha256 | " + "0" * 64 in report
    assert "| data\\_sha256 | " + "1" * 64 in report


def test_what_is_not_known_is_said():
    questions = make_questions(2)
    predictions = predictions_of(questions, ["cat", "cat"])
    report = reported(questions, predictions, settings={}, paths={"predictions": "theirs.json", "data": "d"})
    assert report.startswith("# Evaluation of theirs.json")
    for what in ("prompt style", "decoding", "computed in", "audio", "right format"):
        assert f"| {what} | not known |" in report


def test_a_blind_report_asks_for_no_blind_run():
    report = report_of(make_questions(3), ["cat"] * 3, "unknown", no_audio=True)
    assert "No complete evaluation" not in report
    assert "Without audio: silence stood" in report
