"""The report of a study: what stands in each section, in Markdown and on the page alike, and what never does."""

import base64
import re
import shutil
from collections import Counter
from copy import deepcopy
from html.parser import HTMLParser
from itertools import cycle
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from markdown_it import MarkdownIt

from eval.reproduction.report import write
from r1_aqa_repro.common.errors import Refused
from tests.eval.reproduction.made_up_study import GAINED, PAPERS, figures, study
from tests.files import contents, read_json, write_json, write_lines
from tests.hostile_texts import HOSTILE

PAPERS_COLUMNS = ["paper: sound", "paper: music", "paper: speech", "paper: average"]


class Sections(HTMLParser):
    """The tables, sentences and elements of a page, or of Markdown made into one, by the heading they stand under."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self.said, self.elements = {}, {}, []
        self._open, self._heading, self._text = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("h1", "h2"):
            self._heading = ""
        elif tag == "table":
            self.tables.setdefault(self._heading, []).append([])
        elif tag == "tr":
            self.tables[self._heading][-1].append([])
        if tag in ("h1", "h2", "th", "td", "p", "li", "pre", "caption", "h3"):
            self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        text = " ".join(self._text.split())
        if tag in ("h1", "h2"):
            self._heading = text
        elif tag in ("th", "td"):
            self.tables[self._heading][-1][-1].append(text)
        elif tag in ("p", "li", "pre", "caption", "h3"):
            self.said.setdefault(self._heading, []).append(text)


def as_page(markdown):
    return MarkdownIt("commonmark").enable("table").render(markdown)


def written(out, content, **more):
    """What report.md and report.html of these figures show."""
    write(study(out, content, **more))
    report, page = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    return Sections(as_page(report)), Sections(page)


def everything(shown):
    return " ".join(one for sentences in shown.said.values() for one in sentences)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The report and the page of a study that was run on the paper's questions."""
    return written(tmp_path_factory.mktemp("study") / "out", figures())


def test_markdown_and_page_have_the_same_tables_and_sentences(run):
    report, page = run
    assert report.tables == page.tables
    assert len(page.tables) == 9  # sections with tables
    for heading, sentences in page.said.items():
        if heading not in ("Gained and lost", "Checking this report"):
            assert [one for one in sentences if one] == [one for one in report.said[heading] if one]


def test_a_run_on_the_papers_questions_stands_beside_it(run):
    report, _ = run
    table, gains, seeds = report.tables["The paper's table"]
    here = ["here: sound", "here: music", "here: speech", "here: average"]
    assert table[0] == ["", *PAPERS_COLUMNS, *here, "95 % interval", "± seeds", "seeds"]
    of_row = {cells[0]: cells[1:] for cells in table[1:]}
    means = ["63.75", "64.75", "65.75", "63.75", "60.8 to 66.8", "1.25", "2"]
    assert of_row["GRPO, prompt 2"] == ["69.37", "66.77", "57.36", "64.50", *means]
    assert of_row["before training"][:4] == [""] * 4 and of_row["before training"][-2:] == ["", "1"]
    assert of_row["GRPO, prompt 3"] == ["", "", "", "61.10", *["not run"] * 7]
    assert seeds[4] == [
        "GRPO, prompt 2", "2", "checkpoint-200", "66.51", "64.51", "65.51", "66.51", "64.51", "50.0 to 60.0",
        "0", "3", "99.7",
    ]  # fmt: skip
    assert gains[1:] == [
        ["SFT, full", "+3.50", "+0.50 to +6.50", "42", "11"],
        ["GRPO, prompt 2", "+14.75", "+11.75 to +17.75", "42", "11"],
        ["GRPO, prompt 3", *["not run"] * 4],
    ]
    said = everything(report)
    assert "REHEARSAL" not in said and "rehearsed" not in said
    assert "MMAU test-mini, version original: 1000 questions, 38,000 training questions and 500 held-out" in said
    assert "Decoding of all rows: greedy, at most 256 tokens, 1 answer a question." in said
    assert "Matcher: official" in said and "Guessing gives 25.25 %" in said


@pytest.mark.parametrize(
    ("content", "where", "why"),
    [
        (figures("rehearsed", "embedded", 900), "rehearsed", "none may be read beside the paper's"),
        (figures(version="v05.15.25"), "not compared", "these on version v05.15.25"),
        (figures(n=999), "not compared", "these on 999"),
    ],
    ids=["rehearsal", "version", "part"],
)
def test_figures_that_may_not_be_compared_stand_apart_from_the_papers(tmp_path, content, where, why):
    for shown in written(tmp_path / "out", content):
        table, ours, *_ = shown.tables["The paper's table"]
        assert table[0] == ["", *PAPERS_COLUMNS, "this study"]
        assert [cells[-1] for cells in table[1:]] == [where, where, where, "not run"]
        assert ["GRPO, prompt 2", "63.75", "64.75", "65.75", "63.75", "60.8 to 66.8", "1.25", "2"] in ours
        assert why in " ".join(shown.said["The paper's table"])
        cells = [cell for tables in shown.tables.values() for one in tables for cells in one[1:] for cell in cells]
        for value in PAPERS.values():  # in the paper's own table and nowhere else
            assert cells.count(f"{value:.2f}") == 1


def test_a_rehearsal_says_so_at_the_top_of_everything_and_over_every_table(tmp_path):
    content = figures("rehearsed", "embedded", 900)
    out = tmp_path / "out"
    report, page = written(out, content)
    lines = (out / "report.md").read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("# ") and lines[2].startswith("**REHEARSAL.")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "<title>REHEARSAL" in text and text.index("<strong>REHEARSAL.") < text.index("<section")
    assert "REHEARSAL" in (out / "card" / "README.md").read_text(encoding="utf-8")
    titles = [one for sentences in page.said.values() for one in sentences if one.startswith("Rehearsed on")]
    assert len(titles) == sum(map(len, page.tables.values())) - 1  # but for the paper's own
    verdicts = {cells[0]: cells[1] for cells in report.tables["The paper's findings"][0][1:]}
    assert verdicts["The claim of rl_beats_sft."] == "reproduced (rehearsed)"
    assert verdicts["The claim of thinking_does_not_help."] == "not run"


def test_a_verdict_stands_with_the_intervals_that_decide_it(run):
    report, _ = run
    (table,) = report.tables["The paper's findings"]
    assert table[1:] == [
        [
            "The claim of rl_beats_sft.",
            "reproduced",
            "GRPO - the other of rl_beats_sft",
            "+11.25",
            "+8.50 to +14.00",
            "2",
        ],
        ["The claim of data_suffice.", "undecided", "GRPO - SFT", "+1.50", "-0.50 to +3.50", "2"],
        ["", "", "GRPO - before", "+14.75", "+12.00 to +17.50", "2"],
        ["The claim of thinking_does_not_help.", "not run", "", "not run", "not run", "not run"],
    ]
    said = report.said["The paper's findings"]
    assert (
        "The claim of rl_beats_sft: reproduced. The reason of rl_beats_sft. The rule: the rule of rl_beats_sft "
        "(arXiv 2503.11197)." in said
    )
    assert (
        "Undecided, The claim of data_suffice: would be decided by 5 seeds in all (3 more), or by 2,400 questions in "
        "all (1,400 more), if the true difference is 1.50 points from what decides. A note on power." in said
    )
    assert said.count("The method of power.") == 1


def test_what_no_number_decides_is_said_so(tmp_path):
    content = figures()
    nothing = dict.fromkeys(("seeds", "further_seeds", "questions", "further_questions"))
    content["findings"][1]["power"] |= nothing
    report, _ = written(tmp_path / "out", content)
    said = " ".join(report.said["The paper's findings"])
    assert "The claim of data_suffice: cannot be said to be decided by any number. A note on power." in said


def test_controls_stand_beside_every_arm(run):
    report, _ = run
    rows = {cells[0]: cells[1:] for cells in report.tables["Controls"][0][1:]}
    assert rows["GRPO, prompt 2"] == [
        "63.75", "33.25", "30.0 to 36.5", "-30.50", "-34.00 to -27.00",
        "62.00", "59.0 to 65.0", "-1.75", "-2.50 to -1.00", "81.50",
    ]  # fmt: skip
    assert rows["SFT, full"] == ["52.50", *["not run"] * 9]
    assert rows["GRPO, prompt 3"] == ["not run"] * 10


def test_the_best_on_the_test_stands_apart(run):
    report, _ = run
    (table,) = report.tables["Best on the test"]
    assert table[1:] == [
        ["SFT, full", "", "not run", "not run", "not run", "not run"],
        ["GRPO, prompt 2", "1", "63.00", "checkpoint-300", "66.00", "+3.00"],
        ["GRPO, prompt 2", "mean", "63.75", "", "66.00", "+3.00"],
        ["GRPO, prompt 3", "", "not run", "not run", "not run", "not run"],
    ]
    assert "flatters" in report.said["Best on the test"][0]


def test_a_checkpoint_that_was_not_the_best_is_named(tmp_path):
    content = figures()
    content["table"][2]["seeds"]["2"]["chosen_is_best"] = False
    content["table"][1]["seeds"]["1"]["chosen_is_tested"] = False
    report, _ = written(tmp_path / "out", content)
    for said in (
        "GRPO, prompt 2, seed 2: checkpoint-200 is not the best on the held-out questions.",
        "SFT, full, seed 1: the test was asked with other weights than those of checkpoint-100.",
    ):
        assert said in report.said["The paper's table"]


def test_rows_that_were_not_asked_alike_are_named(tmp_path):
    content = figures()
    content["table"][1]["settings"]["decoding"] = "checkpoint"
    content["table"][2]["settings_differ"] = ["dtype"]
    report, _ = written(tmp_path / "out", content)
    said = everything(report)
    assert "Decoding of SFT, full: checkpoint, at most 256 tokens, 1 answer a question." in said
    assert "GRPO, prompt 2: the seeds were not evaluated alike, but with different dtype." in said


def test_gains_and_losses_with_completions(run):
    report, page = run
    assert report.tables["Gained and lost"] == [
        [
            [
                "sub-category",
                "questions",
                "before %",
                "after %",
                "difference",
                "95 % interval",
                "better on",
                "worse on",
            ],
            ["all", "1000", "49.00", "63.75", "+14.75", "+12.00 to +17.50", "42", "11"],
            ["Counting", "40", "50.00", "48.00", "-2.00", "-9.00 to +5.00", "42", "11"],
        ]
    ]
    for shown in (report, page):
        said = " ".join(shown.said["Gained and lost"])
        for text in ("gained, Counting: q0", "lost, Counting: q1", GAINED["question"], "a dog, a bell", "seed 2"):
            assert text in said
        assert "<answer>a bell</answer>" in said and "(nothing)" in said


def test_matrix_suite_overlap_and_cost(run):
    report, _ = run
    heads, cells = report.tables["Prompt, decoding and matcher"][0]
    assert dict(zip(heads, cells, strict=True)) | {"": "GRPO, prompt 2"} == {
        "": "GRPO, prompt 2", "evaluation": "test", "prompt": "answer", "decoding": "greedy", "answers": "1",
        "orders": "1", "seeds": "2", "official": "63.75 ± 1.25",
        **{name: "" for name in figures()["rules"] if name != "official"},
    }  # fmt: skip
    assert report.tables["Other benchmarks"][0][1] == [
        "mmar", "mmar", "published", "1000", "30.00", "47.60", "+17.60", "+14.00 to +21.00", "gained", "0", "4",
    ]  # fmt: skip
    assert report.tables["Overlap of training and test"][0][1:] == [
        ["the same samples", "1", "1"],
        ["the same recording, by its fingerprint", "2", "3"],
        ["the same source video", "0", "0"],
        ["any of them", "2", ""],
    ]
    said = " ".join(report.said["Overlap of training and test"])
    assert "1,000 test questions about 999 clips, 38,000 training questions about 37,000 clips" in said
    assert "Not comparable by fingerprint: 2 training clips (silent 2)." in said
    assert "Test questions concerned: q7, q8." in said
    assert report.tables["Cost"][0][1:] == [
        ["GRPO, prompt 2", "1", "5.00", "8", "40.00", "37.5", "21.50", "100.00"],
        ["GRPO, prompt 2", "2", "5.00", "8", "40.00", "not read", "not read", "100.00"],
        ["all trainings", "", "10.00", "", "80.00", "", "not read", "200.00"],
    ]
    assert "Price: 2.5 EUR an hour of one GPU (a price list)." in report.said["Cost"]


def test_what_was_not_run_is_said_so_in_its_section(tmp_path):
    content = figures()
    content |= {key: {"status": "not run"} for key in ("changes", "overlap", "suite", "cost")}
    content |= {"matrix": [], "curves": {}}
    out = tmp_path / "out"
    for shown in written(out, content):
        absent = ("Gained and lost", "Overlap of training and test", "Other benchmarks", "Cost")
        for heading in (*absent, "Prompt, decoding and matcher"):
            assert shown.said[heading] == [f"{heading}: not run."]
            assert heading not in shown.tables
        assert shown.said["Curves"] == ["Trainings: not run."]
        assert not [one for one in shown.elements if one[0] == "img"]
    assert not (out / "curves.svg").exists()


def test_links_lead_somewhere_and_clips_at_hand_can_be_heard(tmp_path):
    out, clips = tmp_path / "out", tmp_path / "clips (of others)"
    clips.mkdir()
    soundfile.write(clips / "a#1.wav", np.zeros(8000), 16_000)
    (clips / "b.wav").write_bytes(b"no audio")
    records = [
        {"id": f"q{index}", "audio_path": str(clips / name), **{key: GAINED[key] for key in ("question", "choices")}}
        for index, name in enumerate(("a#1.wav", "b.wav"))
    ]
    (out / "data").mkdir(parents=True)
    write_lines(
        out / "data" / "test.jsonl", [one | {"answer": "a bell", "dataset": "x", "split": "y"} for one in records]
    )
    report, page = written(out, figures())
    linked = [one.get("href") or one.get("src") for _, one in report.elements if {"href", "src"} & set(one)]
    assert {"bundle/bundle.json", "card/README.md", "curves.svg"} <= set(linked)
    assert len(linked) == 5  # both clips
    assert all((out / unquote(one)).exists() for one in linked)
    sources = [one["src"] for tag, one in page.elements if "src" in one]
    picture, *heard = sources
    assert base64.b64decode(picture.partition(",")[2]) == (out / "curves.svg").read_bytes()
    assert len(heard) == 1 and heard[0].startswith("data:audio/mpeg;base64,")  # the other cannot be decoded
    assert not [one for _, one in page.elements if "href" in one]


def test_without_the_clips_the_report_is_whole(run):
    report, page = run
    assert "audio" not in {tag for tag, _ in page.elements}
    assert "q0" in " ".join(report.said["Gained and lost"])


def test_the_same_figures_give_the_same_bytes(tmp_path):
    first = study(tmp_path / "first", figures())
    write(first)
    before = contents(first)
    assert {"report.md", "report.html", "curves.svg", "card/README.md"} <= set(before)
    write(first)
    assert contents(first) == before
    write(study(tmp_path / "second", deepcopy(figures())))
    assert contents(tmp_path / "second") == before


def with_texts(texts):
    """Figures of which every text that somebody else writes is one of these, in turn."""
    content, text = figures(), cycle(texts)
    content["name"] = next(text)
    content["labels"]["task"] = [next(text) for _ in content["labels"]["task"]]
    for row in content["table"]:
        row["label"] = next(text)
    for finding in content["findings"]:
        finding |= {key: next(text) for key in ("claim", "why", "rule", "source", "comparison")}
    changes = content["changes"]
    changes |= {"label": next(text), "labels": {one: changes["total"] for one in texts}}
    changes["gained"] = [
        {key: next(text) for key in ("id", "label", "question", "answer", "seed")}
        | {"choices": [one, next(text)], "before": one, "after": one}
        for one in texts
    ]
    content["matrix"][0] |= {"evaluation": next(text), "prompt_style": next(text)}
    content["suite"]["evaluations"][0] |= {"name": next(text), "version": next(text)}
    content["overlap"]["overlaps"] = [{"id": one} for one in texts]
    content["overlap"]["train"]["not_comparable"] = {one: ["x"] for one in texts}
    content["cost"]["price_per_gpu_hour"] |= {"currency": next(text), "source": next(text)}
    return content


def test_hostile_texts_are_text(tmp_path):
    harmless = written(tmp_path / "a", with_texts([f"text {index}" for index in range(len(HOSTILE))]))
    shown = written(tmp_path / "b", with_texts(HOSTILE))
    for one, other in zip(shown, harmless, strict=True):
        assert Counter(tag for tag, _ in one.elements) == Counter(tag for tag, _ in other.elements)
        for tag, attributes in one.elements:
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            assert "javascript:" not in "".join(filter(None, (attributes.get("href"), attributes.get("src"))))
    said = " ".join(shown[1].said["Gained and lost"])
    assert all(" ".join(text.split()) in said for text in HOSTILE if "\0" not in text)
    report = (tmp_path / "b" / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x1b\u2028\u202d\u202e]", report)


def test_the_page_runs_and_loads_nothing(run):
    _, page = run
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'" and "script-src" not in allowed
    assert (allowed["img-src"], allowed["media-src"]) == ("data:", "data:")
    assert "script" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize(
    ("content", "what"), [(None, "cannot be read"), ("{", "malformed JSON"), ({"format": 2}, "its format is 2, not 1")]
)
def test_a_study_without_figures_is_refused(tmp_path, content, what):
    (tmp_path / "bundle").mkdir()
    file = tmp_path / "bundle" / "figures.json"
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    elif content is not None:
        write_json(file, content)
    with pytest.raises(Refused, match=f"figures.json.*{what}"):
        write(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_the_bundle_of_a_study_has_all_that_its_report_shows(sealed, tmp_path):
    """Not figures made up here, but those that follow from predictions."""
    out = tmp_path / "out"
    shutil.copytree(sealed, out / "bundle")
    content = read_json(sealed / "figures.json")
    for row in content["table"]:
        row["role"] = None  # the study has no configuration of a training for a card
    write_json(out / "bundle" / "figures.json", content)
    write(out)
    report = Sections(as_page((out / "report.md").read_text(encoding="utf-8")))
    page = Sections((out / "report.html").read_text(encoding="utf-8"))
    assert report.tables == page.tables
    (rehearsed,) = [one for one in content["table"] if one["row"] == "grpo"]
    of_row = {cells[0]: cells for cells in report.tables["The paper's table"][1]}
    assert of_row[rehearsed["label"]][4] == f"{rehearsed['mean']:.2f}"
