"""What the report says, and what a run may be compared with."""

import html
import re

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown

from eval.benchmarks.mmau import TARGET
from eval.report.markdown import markdown_report
from eval.scores import score
from eval.targets import EMBEDDED_HEADING, against_published
from r1_aqa_repro.common.escaping import markdown
from tests.eval.made_up import about_clips, evaluation_of, make_questions, predictions_of

SETTINGS = {
    "prompt_style": "answer", "decoding": "greedy", "max_new_tokens": 8, "batch_size": 2, "dtype": "float32",
    "device": "cpu", "no_audio": False, "audio_channel": "first", "checkpoint_sha256": "0" * 64,
}  # fmt: skip
KEPT, SWAPPED = ("dog", "cat"), ("cat", "dog")


def reported(questions, predictions, settings=SETTINGS, **more):
    return markdown_report(evaluation_of(questions, predictions, settings, **more))


def report_of(completions, version="unknown", n=None, **settings):
    """Of so many questions, or of one a completion."""
    questions = make_questions(n or len(completions))
    return reported(questions, predictions_of(questions, completions), SETTINGS | settings, version=version)


NOT_COMPARED = ("GRPO, prompt 2", "Distance to")


@pytest.mark.parametrize(
    ("report", "said", "not_said"),
    [
        (
            report_of(["cat"] * 600 + ["dog"] * 400, "original"),
            [
                "| **this run** |",
                "Distance to 64.5: -4.50 points, 95 % interval of this run [-7.5",
                "64.5 lies outside the interval of this run, which is worse",
            ],
            ["Not compared"],
        ),
        (
            report_of(["cat"] * 1000, "unknown"),
            ["Not compared with 64.5", "no published file, whatever version its records name"],
            NOT_COMPARED,
        ),
        (report_of(["cat"] * 10, "original"), ["Not compared with 64.5", "this run is on 10"], NOT_COMPARED),
        (
            report_of(["cat"] * 1000, "original", no_audio=True),
            ["Not compared with 64.5", "without audio", "Without audio: silence stood in place of every clip"],
            [*NOT_COMPARED, "No complete evaluation"],  # of this model without audio
        ),
        (
            report_of(["cat"] * 670 + ["dog"] * 330, "v05.15.25"),
            [
                "Not compared with 64.5: that is a figure on version original, this run is on version v05.15.25",
                "| Qwen2-Audio-7B-Instruct, not trained |  |  |  | 59.60 |",
                "67.2 lies in the interval of this run",
            ],
            ["GRPO, prompt 2", "Distance to 64.5"],
        ),
        (report_of(["cat"] * 1000, "embedded"), [EMBEDDED_HEADING], ["Compared with the paper"]),
        (
            report_of(["<answer> </answer>", None, "cat"]),
            ["| q1 | /clips/1.wav |", r"| q0 | \<answer\> \</answer\> |"],
            ["## Without a prediction"],
        ),
        (
            report_of(["cat"] * 3, data_sha256="1" * 64),
            ["| checkpoint\\_sha256 | " + "0" * 64, "| data\\_sha256 | " + "1" * 64],
            ["## Unparsed"],
        ),
        (report_of(["cat"] * 60), ["## Where the matchers disagree (0 questions)\n\nNowhere."], []),
        (
            reported(make_questions(2), {}, {}, paths={"predictions": "theirs.json", "data": "d"}),
            [
                "# Evaluation of theirs.json",
                *(f"| {what} | not known |" for what in ("prompt style", "decoding", "computed in", "audio")),
                "| right format | not known |",
            ],
            ["checkpoint hash"],
        ),
    ],
)
def test_report_says_what_is_known_and_compares_only_the_whole_published_file(report, said, not_said):
    assert [part for part in said if part not in report] == []
    assert [part for part in not_said if part in report] == []


def test_what_a_model_wrote_stays_text():
    evil = "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b**\n# h\x1b[31m"
    report = report_of([evil])
    console = Console(width=200, force_terminal=False, record=True)
    with console.capture() as shown:
        console.print(Markdown(report))
    assert "<answer></answer> | <b>x</b> [l](http://e.x) `c` **b** # h [31m" in shown.get()
    assert "\x1b" not in report
    assert "\n" not in markdown(evil)


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
    report = report_of([f"<answer></answer>{text}"])
    written = next(line for line in report.splitlines() if line.startswith("| q0 |"))
    assert not re.search(r"www\.|@[\w./-]|\w://", written, re.IGNORECASE)
    page = MarkdownIt("commonmark").enable("table").render(report)
    assert "<a" not in page
    (cell,) = re.findall(r"<td[^>]*>(&lt;answer.*?)</td>", page)
    assert "@<!-- -->" in cell or "@" not in text
    assert html.unescape(cell.replace("<!-- -->", "")) == f"<answer></answer>{text}"


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
    compared = against_published(score(questions, predictions, "answer", "original")[0], SETTINGS)
    assert conclusion in " ".join(compared.sentences)
    assert "a true difference from 64.5 of 4.2 points" in " ".join(compared.sentences)
    points, low, high, both_low, both_high = map(float, re.findall(r"[+-]\d+\.\d+", compared.sentences[0]))
    assert points == pytest.approx(correct / 10 - TARGET[-1])
    assert both_low < low < points < high < both_high  # two samples are less certain than one
    assert compared.rows[-1][0] == "this run"
    assert compared.rows[-1][-1] == pytest.approx(correct / 10)


def test_repeats_of_the_whole_file_are_compared_and_orders_are_not():
    questions = make_questions(1000)
    scores, _ = score(questions, predictions_of(questions, [["cat", "dog"]] * 1000), "answer", "original")
    assert scores["total"]["accuracy"] == 50
    assert against_published(scores, SETTINGS).sentences[0].startswith("Distance to 64.5: -14.50 points")
    predictions = predictions_of(questions, [["cat", "cat"]] * 1000, (KEPT, SWAPPED))
    scores, _ = score(questions, predictions, "answer", "original")
    assert "several orders" in against_published(scores, SETTINGS).reason


def test_repeats_and_orders_are_reported():
    questions = make_questions(3)
    report = reported(questions, predictions_of(questions, [["cat", "A"]] * 3, (KEPT, SWAPPED)))
    for said in (
        "mean of 2 answers a question",
        "3, 6 answers asked for",
        "| 0 | 100.00 | 43.9 to 100.0 |\n| 1 | 0.00 | 0.0 to 56.1 |",
        "| 2 | 3 | 3 | 100.00 | 43.9 to 100.0 |",  # the right choice at the second place
        "Mean 50.00 %, sample standard deviation 70.71 points, from 0.00 to 100.00",
        "| answered with the same choice in every order | 3 | 3 | 100.00 |",
        "| right in every order | 0 | 3 | 0.00 |",
    ):
        assert said in report


def test_shared_clips_are_reported_where_there_are_any():
    completions = [["cat", "dog"]] * 6
    questions = make_questions(6)
    own, shared = (reported(one, predictions_of(one, completions)) for one in (questions, about_clips(questions, 2)))
    for said in (
        "6 questions about 3 clips, 95 % interval",
        "take clips as what is independent",
        "the choice of clips",
    ):
        assert said in shared
        assert said not in own
    for said in (": 3 of 6, 95 % interval", "with the number of questions as the size", "the choice of questions"):
        assert said in own
        assert said not in shared


def test_every_disputed_missing_and_unparsed_question_is_named():
    """Also those beyond the first twenty, of which the completions are shown."""
    report = report_of(["B"] * 30 + ["the cat"] * 10 + ["cat"] * 10 + ["dog"] * 10 + [""] * 30, n=140)

    def named(title):
        section = report.partition(f"## {title}\n")[2].partition("\n## ")[0]
        return set(re.findall(r"\bq\d+\b", section))

    def ids(start, end):
        return {f"q{index}" for index in range(start, end)}

    assert named("Where the matchers disagree (40 questions)") == ids(0, 40)
    assert named("Without a prediction") == ids(90, 140)
    assert named("Unparsed completions (of 30 questions)") == ids(60, 90)
    assert "| q0 | B | cat | wrong | wrong | right |" in report
    assert "| unparsed | 30 of 140 |" in report
    assert "| missing | 50 of 140 (count as wrong), 0 of the questions" in report


def test_baselines_and_what_is_left_without_audio_are_reported():
    questions = make_questions(10)
    predictions = predictions_of(questions, ["cat"] * 10)
    alone = reported(questions, predictions)
    assert "| guessing at random | 50.00 |  |" in alone
    assert "| always the first choice | 0.00 |  |" in alone
    assert "No complete evaluation of this model without audio" in alone
    silent, _ = score(questions, predictions_of(questions, ["cat"] * 7), "answer", "unknown")
    both = reported(questions, predictions, without_audio=silent)
    assert "| this model given silence | 70.00 | 39.7 to 89.2 |" in both
    assert "there remain 70.0 % of the score and 40.0 % of what is above chance" in both
