"""What others wrote, where it is shown: as itself and nothing more, on a terminal, in Markdown and in a spreadsheet."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# control characters but tab and line feed, among them what begins a terminal's commands; further ends of lines; what
# turns the direction of the text that follows; halves of surrogate pairs, which stand for bytes of file names too; byte
# order marks
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$!:])")
_WWW = re.compile(r"(www)\.", re.IGNORECASE)
_FORMULA = frozenset("=+-@＝＋－＠")  # what a spreadsheet takes for the beginning of one


def visible(value: object) -> str:
    r"""Text for a terminal, in which what would act on it is shown escaped (`\x1b`); lines stay lines."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], str(value))


def visible_line(value: object) -> str:
    """The same on one line: line feeds and tabs are escaped too."""
    return visible(value).replace("\n", r"\n").replace("\t", r"\t")


def one_line(text: str) -> str:
    """The text on one line, without what cannot be printed."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def markdown(value: object) -> str:
    """Text as one line of Markdown that shows it and does nothing else."""
    marked = _MARKUP.sub(r"\\\1", one_line(str(value)))
    # GitHub links addresses and names of people wherever their text comes out, escaped or not: a comment parts it
    return _WWW.sub(r"\1\\.", marked).replace("@", "@<!-- -->")


def code(value: object) -> str:
    """Text as a code span of Markdown, on one line, that nothing in it can end; not for a cell of a table."""
    text = visible_line(value)
    fence = code_fence(text, 1)
    return f"{fence} {text} {fence}" if text.startswith("`") or text.endswith("`") else f"{fence}{text}{fence}"


def code_fence(text: str, at_least: int = 3) -> str:
    """Backticks around code that holds `text`: more of them than stand anywhere in it."""
    return "`" * max(at_least, 1 + max(map(len, re.findall("`+", text)), default=0))


def cell(value: Any) -> Any:
    """A value for a cell of a CSV file: a text that a spreadsheet would compute, or move to other cells, gets an
    apostrophe before it, by which it is shown as text (OWASP's rule); numbers stay numbers."""
    if isinstance(value, str) and value and (value[0] in _FORMULA or unicodedata.category(value[0]) == "Cc"):
        return f"'{value}"
    return value
