"""For commands of the course under test: notes which of the quoted lines they run.

Python imports this module as it starts, in every process whose PYTHONPATH has this folder. COURSE_QUOTED names a JSON
file with the statements to look for, {file: [[first line, last line], ...]}; COURSE_RAN one to which each is added, as
`file:first`, when one of its lines is run for the first time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

if "COURSE_RAN" in os.environ:
    with open(os.environ["COURSE_QUOTED"], encoding="utf-8") as _quoted:
        _wanted = {os.path.realpath(file): spans for file, spans in json.load(_quoted).items()}
    _by_name: dict[str, list[list[int]]] = {}  # as code names its file; empty lists of files without quotations

    def _spans(name: str) -> list[list[int]]:
        found = _by_name.get(name)
        if found is None:
            found = _by_name[name] = _wanted.get(os.path.realpath(name), [])
        return found

    def _entered(frame: Any, event: str, argument: Any) -> Any:
        return _ran if _spans(frame.f_code.co_filename) else None

    def _ran(frame: Any, event: str, argument: Any) -> Any:
        spans = _spans(frame.f_code.co_filename)
        for span in spans[:]:
            if span[0] <= frame.f_lineno <= span[1]:
                with open(os.environ["COURSE_RAN"], "a", encoding="utf-8") as notes:
                    notes.write(f"{os.path.realpath(frame.f_code.co_filename)}:{span[0]}\n")
                spans.remove(span)
        if not spans:
            frame.f_trace_lines = False
        if not any(_wanted.values()):  # at full speed from here on
            sys.settrace(None)
            threading.settrace(None)
        return _ran

    sys.settrace(_entered)
    threading.settrace(_entered)
