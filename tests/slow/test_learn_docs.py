"""docs/learn*.md: what they quote is the code, their commands run, and they print what is shown.

The form of the pages is read strictly:

- `## Day N` or `## N. Topic` begins a part; a fenced `bash` block is one command;
- a fenced `text` block shows what the command before it prints. Its figures may differ, everything else may not;
- a table under the name of a JSON file has the figures of that file: name, value shown, spread allowed;
- a fenced `python` block quotes the function named on the line before it: `file: function`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.slow.conftest import WholeRun, finish

COURSES = {"learn_classical": range(1, 9), "learn": range(1, 8)}  # the parts of each
LANGUAGES = {"en": ".md", "zh": ".zh.md"}
PARTS = [(course, part) for course, parts in COURSES.items() for part in parts]
QUESTIONS = {"learn_classical": 3, "learn": 4}  # of a part, at least

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"^`(\S+): ([\w.]+)`$")
_FIGURE = re.compile(r"^\| `([^`]+)` \| (-?[\d.]+) \| ([\d.]+) \|$")
_FILE = re.compile(r"`(runs/[\w/.-]+\.json)`")
_NAMED = re.compile(r"`((?:r1_aqa_repro|scripts|tests|trl|transformers)/[\w/.-]+): ([\w.]+)`")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Figure:
    """A value of a JSON file as the page shows it; `name` is the path of its keys, joined by points."""

    file: str
    name: str
    shown: float
    spread: float

    def of(self, content: Any) -> float:
        for key in self.name.split("."):
            content = content[int(key)] if isinstance(content, list) else content[key]
        return float(content)


@dataclass
class Command:
    """A command with what the page shows of it."""

    line: str
    outputs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def page_of(course: str, language: str) -> str:
    return (ROOT / "docs" / f"{course}{LANGUAGES[language]}").read_text(encoding="utf-8")


def part_texts(course: str, language: str = "en") -> dict[int, str]:
    """The parts of a course by number."""
    parts = re.split(r"^## \D*(\d)", page_of(course, language), flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return _FENCE.findall(text)


def quotes(text: str) -> Iterator[tuple[str, str, str]]:
    """File, function and the lines of each quotation.

    Raises:
        AssertionError: a block of Python does not say where it is from.
    """
    for match in _FENCE.finditer(text):
        if match[1] == "python":
            before = text[: match.start()].rstrip().splitlines()[-1]
            named = _QUOTED.match(before)
            assert named, f"where is this from?\n{match[2]}"
            yield named[1], named[2], match[2]


def commands(text: str) -> list[Command]:
    """The commands of a part, each with the outputs and figures between it and the next one."""
    found: list[Command] = []
    for part in re.split(r"^(?=```bash$)", text, flags=re.MULTILINE)[1:]:
        (_, line), *others = blocks(part)
        command = Command(line.strip(), [content for language, content in others if language == "text"])
        file = None
        for row in part.splitlines():
            named, figure = _FILE.search(row), _FIGURE.match(row)
            file = named[1] if named else file
            if figure:
                assert file, f"of which file is {row}"
                command.figures.append(Figure(file, figure[1], float(figure[2]), float(figure[3])))
        found.append(command)
    return found


def file_of(name: str) -> Path:
    """A file of the repository, or of one of the libraries that are named by their package."""
    package, _, rest = name.partition("/")
    if package not in ("trl", "transformers"):
        return ROOT / name
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / rest


def source_of(file: str, name: str) -> str:
    """The source of a function, method or class.

    Raises:
        AssertionError: there is none of that name.
    """
    text = file_of(file).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        inside = [each for each in node.body if getattr(each, "name", None) == part]
        assert inside, f"{file} has no {name}"
        node = inside[0]
    source = ast.get_source_segment(text, node)
    assert source is not None
    return source


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


def shape(output: str, runs: str = "runs") -> str:
    """What a command printed, but for figures, bars and how lines are laid out."""
    text = without_space(output).replace(without_space(runs), "runs")
    return _NUMBER.sub("0", re.sub("[━─█]+", "", text))


# --- Without running anything


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("course", COURSES)
def test_quotations_are_the_code_and_what_is_named_is_there(course: str, language: str) -> None:
    parts = part_texts(course, language)
    assert {number for number, text in parts.items() if list(quotes(text))} == set(COURSES[course])
    text = page_of(course, language)
    for file, name, lines in quotes(text):
        assert without_space(lines) in without_space(source_of(file, name)), f"{file}: {name} has no longer\n{lines}"
        assert 1 <= len(lines.splitlines()) <= 8, f"{file}: {name} is quoted at too great a length"
    for file, name in _NAMED.findall(text):
        source_of(file, name)


@pytest.mark.parametrize("course", COURSES)
def test_both_languages_show_the_same(course: str) -> None:
    english, chinese = (part_texts(course, language) for language in LANGUAGES)
    assert list(english) == list(chinese) == list(COURSES[course])
    for part in COURSES[course]:
        assert blocks(english[part]) == blocks(chinese[part])
        assert commands(english[part]) == commands(chinese[part])
        assert [quote[:2] for quote in quotes(english[part])] == [quote[:2] for quote in quotes(chinese[part])]
        for pattern in (r"\d{4}\.\d{5}", r"\((images/[^)]+)\)"):  # papers, pictures
            named = [sorted(re.findall(pattern, text[part])) for text in (english, chinese)]
            assert named[0] == named[1]
        questions = [len(re.findall(r"^\*[^*\n]+[?？]\*", text[part], re.MULTILINE)) for text in (english, chinese)]
        assert questions[0] == questions[1] >= QUESTIONS[course]


@pytest.mark.parametrize("course", COURSES)
def test_every_command_shows_what_it_prints(course: str) -> None:
    for text in part_texts(course).values():
        assert commands(text)
        for command in commands(text):
            assert command.outputs, command.line
            for figure in command.figures:
                if figure.file.endswith("results.json"):  # as a fraction, in percent, or as it is
                    printed = " ".join(command.outputs)
                    shown = f"{figure.shown:.3f}", f"{100 * figure.shown:.1f}", f"{figure.shown:g}"
                    assert any(form in printed for form in shown), figure


# --- Running everything


def carry_out(command: Command, runs: Path, whole_run: WholeRun) -> str:
    """Run a command of the page in another folder of runs; what it printed."""
    words = shlex.split(command.line)
    if words[0] == "bash":
        return whole_run(Path(words[1]).stem).printed
    words = [str(runs) + word.removeprefix("runs") if word.startswith("runs/") else word for word in words]
    return finish(*words)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("course", "part"), PARTS)
def test_commands_print_what_is_shown(course: str, part: int, runs: Path, whole_run: WholeRun) -> None:
    for command in commands(part_texts(course)[part]):
        printed = carry_out(command, runs, whole_run)
        for output in command.outputs:
            assert shape(output) in shape(printed, str(runs)), f"{command.line} printed\n{printed[-3000:]}"
        for figure in command.figures:
            found = figure.of(json.loads((runs / Path(figure.file).relative_to("runs")).read_text(encoding="utf-8")))
            assert found == pytest.approx(figure.shown, abs=figure.spread), f"{figure.file}: {figure.name}"
