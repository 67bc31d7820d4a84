"""The one reader of YAML files: configurations and rubrics.

Of YAML it takes texts, numbers, true and false, null, lists and mappings, and aliases. What YAML 1.1 makes of a
date, of 010 and of 1:30 surprises people: a date stays a text, the numbers are refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import open_file

_MOST_BYTES = 1 << 18  # read in seconds
_DEEPEST = 64  # brackets in one another: PyYAML takes the square of it in time
_MOST_VALUES = 100_000  # each counted as often as aliases repeat it: a few lines can say billions
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp")}


class _Plain(yaml.SafeLoader):
    """YAML whose mappings name a key once, where PyYAML silently keeps the last of several, and whose aliases do not
    explode."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values_in(node, {}) > _MOST_VALUES:
            raise ConstructorError(None, None, f"with its aliases it holds more than {_MOST_VALUES:,} values")
        return node

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise ConstructorError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise ConstructorError(None, None, f"the tag {node.tag!r:.60} is not supported", node.start_mark)
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # an escape may be half of a surrogate pair, which no file can be written with
            return value
        except (ValueError, LookupError, AttributeError) as error:  # of a tag in front of something else, as !!int x
            what = f"{node.value!r:.60} is no {node.tag.removeprefix(_TAG)}"
            raise ConstructorError(None, None, what, node.start_mark) from error

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, unless it is written in a way that means another one than it seems to."""
        digits = str(self.construct_scalar(node)).lstrip("+-").replace("_", "")
        if ":" in digits or (digits.isdecimal() and digits != "0" and digits.startswith("0")):
            what = f"{node.value!r:.60} is a number to base {60 if ':' in digits else 8} in YAML"
            raise ConstructorError(None, None, f"{what}: write it in full, or as a text in quotes", node.start_mark)
        return self.construct_yaml_int(node) if node.tag == _TAG + "int" else self.construct_yaml_float(node)

    def construct_date(self, node: yaml.ScalarNode) -> Any:
        return self.construct_scalar(node)

    def construct_unique(self, node: yaml.MappingNode) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is no text and no number", key.start_mark)
            if key.tag == _TAG + "merge":
                raise ConstructorError(None, None, "merging with << is not supported", key.start_mark)
            name = self.construct_object(key)
            if name in seen:
                raise ConstructorError(None, None, f"the key {key.value!r:.60} stands twice", key.start_mark)
            seen.add(name)
        return self.construct_mapping(node, deep=True)


_Plain.add_constructor(_TAG + "map", _Plain.construct_unique)
_Plain.add_constructor(_TAG + "int", _Plain.construct_number)
_Plain.add_constructor(_TAG + "float", _Plain.construct_number)
_Plain.add_constructor(_TAG + "timestamp", _Plain.construct_date)


def _values_in(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, itself among them, with those that its aliases name."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MOST_VALUES + 1  # as long as its own are counted: an alias in it that names it has no end
    inside = node.value if isinstance(node, yaml.SequenceNode) else ()
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    known[id(node)] = 1 + sum(_values_in(one, known) for one in [*inside, *(one for pair in pairs for one in pair)])
    return known[id(node)]


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        Refused: the file cannot be read, is no mapping or too large, names a key twice, or holds what is not plain YAML
            (see above).
    """
    try:
        with open_file(path) as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            what = f"it has more than {_MOST_BYTES:,} bytes"
            raise Refused.because(str(path), what, "No config or rubric is that long.")
        content = yaml.load(text.decode("utf-8"), _Plain)  # a safe loader
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a wrong escape
        reason = error.strerror if isinstance(error, OSError) else error
        raise Refused.because(str(path), f"the config cannot be read ({reason})", "Give a YAML file.") from error
    except RecursionError:
        raise Refused.because(str(path), "the config is nested too deeply", "Make it flat.") from None
    if not isinstance(content, dict):
        raise Refused.because(str(path), "the config is no mapping", "Write `key: value` lines.")
    return content


def as_options(content: Mapping[str, Any], keys: Mapping[str, Callable[[str], Any]], where: str) -> dict[str, Any]:
    """The values of a mapping in a YAML file, each read as the option of that name is on a command line.

    Args:
        content: the mapping.
        keys: that it may have, and the type of each, as argparse's; `bool` of one that is true or false.
        where: it stands, for messages.

    Raises:
        Refused: naming every key that there is not, and every value that does not fit.
    """
    values, problems = {}, []
    for key, value in content.items():
        at = f"{where}: {key}"
        if key not in keys:
            problems.append(Problem(at, "there is no such key", f"The keys are {', '.join(keys)}."))
        elif keys[key] is bool:
            values[key] = value
            if not isinstance(value, bool):
                problems.append(Problem(at, f"{value!r:.80} is not true or false", "Correct the value."))
        elif not isinstance(value, str | int | float) or isinstance(value, bool):  # their text would be a path
            problems.append(Problem(at, f"{value!r:.80} is no text and no number", "Correct the value."))
        else:
            with collecting(problems):
                try:
                    values[key] = keys[key](str(value))
                except (ValueError, argparse.ArgumentTypeError) as error:
                    problems.append(Problem(at, str(error), "Correct the value."))
    if problems:
        raise Refused(problems)
    return values


def problems_of(kind: type, content: Any, where: str) -> list[Problem]:
    """What is wrong with a mapping in a YAML file that is to become a record of the dataclass `kind`, whose fields are
    its keys. None is left to a default.

    Of the fields' types it checks those of `_ACCEPTED`, and whether a field may be null.
    """
    if not isinstance(content, Mapping):
        return [Problem(where, "it is absent, or no mapping", "Give `key: value` lines below it.")]
    hints, needed = get_type_hints(kind), [one.name for one in fields(kind)]
    problems = [
        Problem(where, f"there is no key {name}", f"Choose among {', '.join(needed)}.")
        for name in content
        if name not in hints
    ]
    problems += [
        Problem(where, f"{name} is absent", "Name it: nothing is left to defaults.")
        for name in needed
        if name not in content
    ]
    for name, value in content.items():
        hint = hints.get(name)
        if isinstance(hint, UnionType):
            if value is None:
                continue
            hint = next(one for one in get_args(hint) if one is not NoneType)
        if (wanted := _ACCEPTED.get(hint)) and not wanted[0](value):
            problems.append(Problem(where, f"{name} is {value!r:.80}", f"Give {wanted[1]}."))
    return problems


def as_argument(value: Any) -> str:
    """A value in a YAML file as a command line has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# YAML reads yes, no, on and off as true and false, and digits as a number
NAMES = "a list of names, in quotes where YAML reads something else, such as 'no' or '1'"
_ACCEPTED: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_count, "a whole number above 0"),
    float: (lambda value: type(value) in (int, float) and 0 < value < 1e6, "a number above 0"),
    str: (lambda value: isinstance(value, str), "a name"),
    list[str]: (are_texts, NAMES),
    dict[str, Any]: (lambda value: isinstance(value, dict), "a mapping"),
}
