"""Where a command went: `eval.mmau` writes the page, and puts the clips into it with --embed-audio."""

from r1_aqa_repro.common.errors import Refused, command


@command
def main(argv: list[str]) -> int:
    """Say what to type instead."""
    remedy = "Give --embed-audio to `python -m eval.mmau`, with --predictions for what is evaluated already."
    raise Refused.because("eval.html_report", "this is no command any more", remedy)


if __name__ == "__main__":
    main()
