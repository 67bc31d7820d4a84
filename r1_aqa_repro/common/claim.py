"""Whose folder is this? A file beside results says what they were made with; work made with anything else is refused.

Every command that goes on after an interruption, or that would otherwise mix results of different settings, asks here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.common.files import read_json, write_json


def read_claim(file: Path, remedy: str, part: str | None = None) -> dict[str, Any] | None:
    """The settings that a claim records, as a JSON object or as its `part`; None if there is no such file.

    Raises:
        Refused: the file is damaged.
    """
    if not os.path.exists(file):
        return None
    try:
        content = read_json(file, remedy)
        settings = content if part is None else content[part]
        return dict(settings)
    except (Refused, ValueError, KeyError, TypeError) as error:
        reason = error.problems[0].what if isinstance(error, Refused) else f"it has no {part}"
        what = f"it is damaged, so nothing tells what the results beside it were made with: {reason}"
        raise Refused.because(str(file), what, remedy) from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """Such as `seed was 0, now it is 1` for every setting that differs, in the order of `now`."""
    return [
        f"{key} was {before.get(key)!r}, now it is {now.get(key)!r}"
        for key in dict.fromkeys([*now, *before])
        if key not in ignored and before.get(key) != now.get(key)
    ]


def check_claim(file: Path, settings: Mapping[str, Any], remedy: str, part: str | None = None) -> bool:
    """Whether `file` claims its folder for these very settings; False if there is no claim yet.

    Raises:
        Refused: it was made with other settings, every one of which is named; or the claim is damaged.
    """
    before = read_claim(file, remedy, part)
    if before is None:
        return False
    now = json.loads(json.dumps(settings))  # as they would be read back: tuples are lists, keys are texts
    problems = [Problem(str(file), difference, remedy) for difference in differences(before, now)]
    if problems:
        raise Refused(problems)
    return True


def claim(file: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Make the claim of a folder if nobody has; see `check_claim`."""
    if not check_claim(file, settings, remedy):
        write_json(file, dict(settings))
