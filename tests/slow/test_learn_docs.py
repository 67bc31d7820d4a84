"""docs/learn*.md and docs/course/: what they quote is the code and is run, their commands print what is shown.

The form of the pages is read strictly:

- `## 1.2 Title` begins topic 2 of day 1; a fenced `bash` block is one command;
- a fenced `text` block shows what the command before it prints. Its figures may differ, everything else may not;
- a table under the name of a JSON file has the figures of that file: name, value shown, spread allowed;
- a fenced `python` block quotes the function named on the line before it: `file: function`. A command of its
  topic runs it;
- a row that ends with `Class.method` quotes a line of PPOTrainer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slow.conftest import Carried
from tests.slow.course_pages import (
    DAYS,
    LANGUAGES,
    blocks,
    commands,
    named,
    not_run,
    page_of,
    pictures,
    quotes,
    shape,
    source_of,
    steps_of_the_loop,
    topics_of,
    without_space,
)
from tests.slow.course_topics import TERMS, TOPICS

TOPIC_TEXTS = {language: topics_of(language) for language in LANGUAGES}
READING = {"7.2", "7.3"}  # topics without a command: they compare, and look up
LESSONS = [topic for topic in TOPIC_TEXTS["en"] if topic not in READING]
QUESTIONS = 3  # of a topic, at least


# --- Without running anything


def test_each_topic_has_idea_formula_lines_command_and_questions() -> None:
    assert [topic.split(".")[0] for topic in TOPIC_TEXTS["en"]] == sorted(t.split(".")[0] for t in TOPIC_TEXTS["en"])
    assert {topic.split(".")[0] for topic in TOPIC_TEXTS["en"]} == set(map(str, DAYS))
    for topic in LESSONS:
        for language in LANGUAGES:
            text = TOPIC_TEXTS[language][topic]
            assert "```math" in text and list(quotes(text)) and commands(text), topic
    for day in DAYS:
        assert pictures(page_of(day, "en")), f"day {day} has no picture"
    for topic in READING:
        assert not commands(TOPIC_TEXTS["en"][topic])


@pytest.mark.parametrize("day", DAYS)
def test_quotations_are_the_code_and_what_is_named_is_there(day: int) -> None:
    text = page_of(day, "en")
    for file, name, lines in quotes(text):
        assert without_space(lines) in without_space(source_of(file, name)), f"{file}: {name} has no longer\n{lines}"
        assert 1 <= len(lines.splitlines()) <= 8, f"{file}: {name} is quoted at too great a length"
    for file, name in named(text + page_of(day, "zh")):
        source_of(file, name)
    for line, method in steps_of_the_loop(text):
        source = source_of("r1_aqa_repro/ppo/trainer.py", method)
        assert without_space(line) in without_space(source), f"{method} has no longer {line}"


def test_the_loop_has_every_step() -> None:
    """Generate, reward, log-probs and values, advantages, updates of actor and critic: once each, in both languages."""
    steps = [steps_of_the_loop(page_of(3, language)) for language in LANGUAGES]
    assert steps[0] == steps[1] and len(steps[0]) >= 10
    assert {method for _, method in steps[0]} >= {
        "PPOTrainer._roll_out",
        "PPOTrainer._update",
        "PPOTrainer._loss_terms",
    }


@pytest.mark.parametrize("day", DAYS)
def test_both_languages_show_the_same(day: int) -> None:
    english, chinese = (
        {topic: text for topic, text in TOPIC_TEXTS[language].items() if topic.startswith(f"{day}.")}
        for language in LANGUAGES
    )
    assert list(english) == list(chinese)
    for topic in english:
        shown = [[block for block in blocks(text[topic]) if block[0] != "mermaid"] for text in (english, chinese)]
        assert shown[0] == shown[1]
        assert commands(english[topic]) == commands(chinese[topic])
        assert [quote[:2] for quote in quotes(english[topic])] == [quote[:2] for quote in quotes(chinese[topic])]
        for pattern in (r"\d{4}\.\d{5}", r"\((\.\./images/[^)]+)\)", "```mermaid"):  # papers, pictures, diagrams
            mentioned = [sorted(re.findall(pattern, text[topic])) for text in (english, chinese)]
            assert mentioned[0] == mentioned[1], topic
        questions = [len(re.findall(r"^\*[^*\n]+[?？]\*", text[topic], re.MULTILINE)) for text in (english, chinese)]
        assert questions[0] == questions[1] >= (0 if topic in READING else QUESTIONS), topic


@pytest.mark.parametrize("topic", LESSONS)
def test_every_command_shows_what_it_prints(topic: str) -> None:
    for command in commands(TOPIC_TEXTS["en"][topic]):
        assert command.outputs, command.line
        for figure in command.figures:
            if figure.file.endswith("results.json"):  # as a fraction, in percent, or as it is
                printed = " ".join(command.outputs)
                shown = f"{figure.shown:.3f}", f"{100 * figure.shown:.1f}", f"{figure.shown:g}"
                assert any(form in printed for form in shown), figure


def test_the_comparison_has_the_figures_that_were_measured() -> None:
    """Every true reward in the table of topic 7.2 stands, with its interval, in a table of the benchmarks."""
    printed = blocks((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))
    measured = "".join(content for language, content in printed if language == "text")
    figures = re.findall(r"\| (\d\.\d{3}) (?=\|)", TOPIC_TEXTS["en"]["7.2"])
    assert len(figures) >= 12 and [figure for figure in figures if f"{figure} ±" not in measured] == []


def test_every_topic_of_the_notes_has_its_place() -> None:
    """The table at the end has all of them, in both languages, each with a link (tests/test_docs.py follows it)."""
    tables = [TOPIC_TEXTS[language]["7.3"] for language in LANGUAGES]
    rows = [re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)[1:] for table in tables]
    assert [name for name, _ in rows[0]] == list(TOPICS)
    assert len(rows[1]) == len(TOPICS) == len({name for name, _ in rows[1]})
    for (name, english), (_, chinese) in zip(rows[0], rows[1], strict=True):
        days = [re.findall(r"\]\((\w+)\.", place) for place in (english, chinese)]
        assert days[0] and days[0] == days[1], name


def test_usual_chinese_terms_stand_at_their_first_use() -> None:
    """Beside the English word that people look for, in either order."""
    text = "".join(page_of(day, "zh") for day in DAYS)
    for chinese, english in TERMS.items():
        assert re.search(rf"{chinese}\*?(（[^）]*{english}| {english})|{english}（{chinese}", text, re.IGNORECASE), (
            chinese
        )


def test_pictures_are_those_that_commands_draw() -> None:
    from scripts.learn.pictures import PICTURES

    assert {name for day in DAYS for name in pictures(page_of(day, "en"))} == set(PICTURES)
    for page in ("README.md", "README.zh.md"):
        shown = re.findall(r"images/(\w+\.png)", (ROOT / page).read_text(encoding="utf-8"))
        assert shown and set(shown) <= set(PICTURES)
    for name in PICTURES:
        assert 1_000 < (ROOT / "docs" / "images" / name).stat().st_size < 100_000, f"{name} is not kept small"


# --- Running everything


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("topic", LESSONS)
def test_commands_print_what_is_shown_and_run_what_is_quoted(topic: str, runs: Path, carried: Carried) -> None:
    text, ran = TOPIC_TEXTS["en"][topic], set[str]()
    for command in commands(text):
        done = carried(command.line)
        ran |= done.ran
        for output in command.outputs:
            assert shape(output) in shape(done.text, str(runs)), f"{command.line} printed\n{done.text[-3000:]}"
        for figure in command.figures:
            content = json.loads((runs / Path(figure.file).relative_to("runs")).read_text(encoding="utf-8"))
            found = figure.of(content)
            assert found == pytest.approx(figure.shown, abs=figure.spread), f"{figure.file}: {figure.name}"
            if topic < "3":  # of one core: as lessons count them
                assert content.get("cpu_seconds", 0) < 120
    assert not_run(text, ran) == []
