"""Mathematics in texts, read and compared by math-verify, as in R1-AQA's and TRL's accuracy rewards.

Of a text the last answer in LaTeX counts, or else the last number or expression. Expressions are equal if their values
are, to six digits if one of them is a decimal number: 0.5, 1/2 and 50% are equal, 3 + 4 is 7, and so is 7%. A unit or
a word beside a number does not count: `7 kg` and `dog 7` are 7. All raise a ValueError outside the main thread, where
time cannot be limited.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

_LEFT_TO_DO = re.compile(r"[\d)}]\s*([-+*×÷^]|\\(times|cdot|div)\b)")
_SECONDS = 5  # for reading a text, and for comparing two, as R1-AQA: milliseconds are usual, 9^9^9^9 takes forever
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of every text that takes too long


@functools.lru_cache(maxsize=1024)  # the gold answer is compared with every completion of its group
def expressions(text: str) -> tuple[Any, ...]:
    """What math-verify reads of a text: the expression and how it was written; empty if there is none, or if reading
    takes longer than 5 s."""
    from math_verify import parse  # half a second, which only those who read mathematics should wait

    return tuple(parse(text, parsing_timeout=_SECONDS))


def are_equal(gold: str, answer: str) -> bool:
    """Whether the answer's expression has the value of the gold one. Not if comparing them takes longer than 5 s."""
    from math_verify import verify

    return bool(verify(list(expressions(gold)), list(expressions(answer)), timeout_seconds=_SECONDS))


def is_unfinished(text: str) -> bool:
    """Whether the expression of a text is arithmetic left to do: `3 + 4` is, `3 + 4 = 7` and `x + 1` are not."""
    match expressions(text):
        case [expression, str(written)] if not isinstance(expression, str) and not expression.free_symbols:
            return _LEFT_TO_DO.search(written.rsplit("=", 1)[-1]) is not None
    return False
