"""Says where the comparison of algorithms has gone to whoever types its old name."""

from __future__ import annotations

from r1_aqa_repro.common.errors import Refused, command


@command
def main(argv: list[str]) -> int:
    """Refuse. Returns the exit code."""
    what = "it is one of the project's scripts now, not a part of the library"
    raise Refused.because("r1_aqa_repro.compare_algorithms", what, "Run python scripts/compare_algorithms.py.")


if __name__ == "__main__":
    main()
