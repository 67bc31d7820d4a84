"""What every preparation shares: a folder that is its own, and an account of every record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.claim import check_claim
from r1_aqa_repro.common.errors import Refused

REPORT = "prep_report.json"
SETTINGS = "prep_settings.json"
REMEDY = "Give another --out."

_SHOWN = 3  # lost records of each reason in the summary


@dataclass
class Account:
    """What became of the records.

    Attributes:
        dropped: ids of the records that were dropped, by reason.
        flagged: ids of those that were kept under a flag, by flag: without their clip, or about one that is not heard
            whole.
        details: a text for each record that was dropped or lost its clip, by reason.
    """

    records_in: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)

    def lose(self, record_id: str, reason: str, detail: str, flag: str | None = None) -> None:
        """Note a record that is dropped, or one that is kept without its clip under a flag."""
        (self.flagged if flag else self.dropped).setdefault(flag or reason, []).append(printable(record_id))
        self.details.setdefault(reason, []).append(printable(f"{record_id}: {detail}"))

    def losses(self, out: Path) -> list[str]:
        """Lines for the person at the terminal: of each reason the first few of what the report in `out` lists."""
        lines = []
        for reason, details in self.details.items():
            what = "dropped" if reason in self.dropped else "kept without audio"
            lines += [f"  {what}, {reason}: {len(details):,}", *(f"    {detail}" for detail in details[:_SHOWN])]
            if len(details) > _SHOWN:
                lines.append(f"    ... and {len(details) - _SHOWN:,} more, all listed in {out / REPORT}")
        return lines


def check_own(out: Path, settings: Mapping[str, Any], results: Iterable[Path]) -> None:
    """Check that a folder is new, was made with the same settings, or holds nothing of what will be written.

    Raises:
        Refused: it is not.
    """
    if out.exists() and not out.is_dir():
        raise Refused.because(str(out), "it is not a folder", REMEDY)
    if not check_claim(out / SETTINGS, settings, REMEDY):
        found = [path.name for path in results if path.exists()]
        if found:
            raise Refused.because(str(out), f"it holds {', '.join(found[:_SHOWN])} from elsewhere", REMEDY)


def printable(text: str) -> str:
    """A text that can be written: of a file name, bytes that are no text are shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
