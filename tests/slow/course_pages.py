"""The pages of the course, read strictly: topics, commands, quotations, and the lines that a command has run."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

DAYS = range(1, 8)
LANGUAGES = {"en": ".md", "zh": ".zh.md"}
COURSE = ROOT / "docs" / "course"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"^`(\S+): ([\w.]+)`$")
_FIGURE = re.compile(r"^\| `([^`]+)` \| (-?[\d.]+) \| ([\d.]+) \|$")
_FILE = re.compile(r"`(runs/[\w/.-]+\.json)`")
_NAMED = re.compile(r"`((?:r1_aqa_repro|scripts|tests|trl|transformers)/[\w/.-]+): ([\w.]+)`")
_STEP = re.compile(r"^\| .+ \| `(.+)` \| `(PPOTrainer\.\w+)` \|$", re.MULTILINE)
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


def page_of(day: int, language: str) -> str:
    return (COURSE / f"day{day}{LANGUAGES[language]}").read_text(encoding="utf-8")


def topics_of(language: str) -> dict[str, str]:
    """The topics of all days by number, such as `1.2`."""
    texts: dict[str, str] = {}
    for day in DAYS:
        parts = re.split(r"^## (\d\.\d) ", page_of(day, language), flags=re.MULTILINE)
        texts |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return texts


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return _FENCE.findall(text)


def pictures(text: str) -> list[str]:
    return re.findall(r"\]\(\.\./images/([^)]+)\)", text)


def named(text: str) -> list[tuple[str, str]]:
    """The functions that a text names, with their files."""
    return _NAMED.findall(text)


def steps_of_the_loop(text: str) -> list[tuple[str, str]]:
    """Line and method of each step of the table of PPOTrainer's loop."""
    return _STEP.findall(text)


def quotes(text: str) -> Iterator[tuple[str, str, str]]:
    """File, function and the lines of each quotation.

    Raises:
        AssertionError: a block of Python does not say where it is from.
    """
    for match in _FENCE.finditer(text):
        if match[1] == "python":
            before = text[: match.start()].rstrip().splitlines()[-1]
            source = _QUOTED.match(before)
            assert source, f"where is this from?\n{match[2]}"
            yield source[1], source[2], match[2]


def commands(text: str) -> list[Command]:
    """The commands of a topic, each with the outputs and figures between it and the next one."""
    found: list[Command] = []
    for part in re.split(r"^(?=```bash$)", text, flags=re.MULTILINE)[1:]:
        (_, line), *others = blocks(part)
        command = Command(line.strip(), [content for language, content in others if language == "text"])
        file = None
        for row in part.splitlines():
            name, figure = _FILE.search(row), _FIGURE.match(row)
            file = name[1] if name else file
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


@functools.cache
def _parsed(file: str) -> ast.Module:
    return ast.parse(file_of(file).read_text(encoding="utf-8"))


def node_of(file: str, name: str) -> Any:
    """A function, method or class.

    Raises:
        AssertionError: there is none of that name.
    """
    node: Any = _parsed(file)
    for part in name.split("."):
        inside = [each for each in node.body if getattr(each, "name", None) == part]
        assert inside, f"{file} has no {name}"
        node = inside[0]
    return node


def source_of(file: str, name: str) -> str:
    source = ast.get_source_segment(file_of(file).read_text(encoding="utf-8"), node_of(file, name))
    assert source is not None
    return source


def statements_of(file: str, name: str, lines: str) -> list[tuple[int, int]]:
    """First and last line, in the file, of each statement that a quotation has a part of; of one with a body its head.

    Raises:
        AssertionError: the function has no such lines.
    """
    text, node, wanted = (
        file_of(file).read_text(encoding="utf-8").splitlines(),
        node_of(file, name),
        without_space(lines),
    )
    first = next(
        (
            start
            for start in range(node.lineno, node.end_lineno + 1)
            if wanted == without_space("".join(text[start - 1 : start - 1 + len(lines.splitlines())]))
        ),
        None,
    )
    assert first is not None, f"{file}: {name} does not have these lines one after the other:\n{lines}"
    last = first + len(lines.splitlines()) - 1
    spans = [
        (each.lineno, each.body[0].lineno - 1 if hasattr(each, "body") else each.end_lineno or each.lineno)
        for each in ast.walk(node)
        if isinstance(each, ast.stmt) and each is not node
    ]
    return sorted((begin, end) for begin, end in spans if begin <= last and first <= end)


def statements_quoted_beside(line: str) -> dict[str, list[tuple[int, int]]]:
    """What the topics with a command quote: by file, first and last line of each statement."""
    found: dict[str, set[tuple[int, int]]] = {}
    for text in topics_of("en").values():
        if line in (command.line for command in commands(text)):
            for file, name, lines in quotes(text):
                found.setdefault(str(file_of(file)), set()).update(statements_of(file, name, lines))
    return {file: sorted(spans) for file, spans in found.items()}


def not_run(text: str, ran: set[str]) -> list[str]:
    """The quotations of a text of which a statement is not in `ran`, where each is `file:first line`."""
    return [
        f"{file}: {name}\n{lines}"
        for file, name, lines in quotes(text)
        if any(f"{os.path.realpath(file_of(file))}:{first}" not in ran for first, _ in statements_of(file, name, lines))
    ]


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


def shape(output: str, runs: str = "runs") -> str:
    """What a command printed, but for figures, bars and how lines are laid out."""
    text = without_space(output).replace(without_space(runs), "runs")
    return _NUMBER.sub("0", re.sub("[━─█]+", "", text))
