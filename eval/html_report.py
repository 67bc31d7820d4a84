"""An old name: `eval.mmau` writes the page."""

from r1_aqa_repro.common.errors import moved

main = moved(
    "eval.html_report",
    "Give --embed-audio to `python -m eval.mmau`, with --predictions for what is evaluated already.",
)

if __name__ == "__main__":
    main()
