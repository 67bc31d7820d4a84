"""Ask a checkpoint one question about one clip.

    python -m r1_aqa_repro.ask --ckpt runs/my-run/final --audio clip.wav \\
        --question "What is heard?" --choices "a dog" "a cat" "a car"

prints the choice that the model answers with. Prompt, inputs, decoding and the reading of the answer are those of
`eval.mmau`. An answer that is not among the choices is printed as it is, and a note says so.

Exit codes: 0 done; 2 refused: a missing or unreadable clip, fewer than two choices, no sound checkpoint,
more text than the model has positions for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r1_aqa_repro.common.console import Options, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, command
from r1_aqa_repro.common.escaping import visible
from r1_aqa_repro.common.files import unreadable
from r1_aqa_repro.data.answers import answer_of, match_choice
from r1_aqa_repro.data.audio import AudioError
from r1_aqa_repro.data.prompts import PROMPT_STYLES, prompt_text
from r1_aqa_repro.data.questions import AudioQuestion


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    completion = complete(
        arguments.ckpt,
        make_question(arguments.audio, arguments.question, arguments.choices),
        arguments.prompt_style,
    )
    answer = answer_of(completion)
    chosen = None if answer is None else match_choice(answer, arguments.choices)
    if arguments.raw:
        print(completion)
    elif chosen is not None:
        print(visible(arguments.choices[chosen]))
    elif answer is not None:
        print(visible(answer))
    if answer is None:
        say("the model gave no answer: its completion is empty, or its answer tags are")
    elif chosen is None:
        say(f"the answer is not among the choices: {answer!r}")
    return EXIT_DONE


def make_question(audio: Path, text: str, choices: Sequence[str]) -> AudioQuestion:
    """The question as evaluation would read it from a file.

    Raises:
        Refused: no such clip, no text, fewer than two choices or an empty one.
    """
    problems = []
    if (reason := unreadable(audio)) is not None:
        problems.append(Problem(f"--audio {audio}", reason, "Give a wav, flac, mp3, ogg or aiff file."))
    if not text.strip():
        problems.append(Problem("--question", "the question is empty", "Give its text."))
    if len(choices) < 2:
        problems.append(Problem("--choices", "fewer than two choices", 'Give several, such as --choices "yes" "no".'))
    if any(not choice.strip() for choice in choices):
        problems.append(Problem("--choices", "a choice is empty", "Give every choice a text."))
    if problems:
        raise Refused(problems)
    return AudioQuestion(id="asked", audio_path=audio.absolute(), question=text, choices=tuple(choices), answer=None)


def complete(checkpoint: str, question: AudioQuestion, style: str, max_new_tokens: int = 256) -> str:
    """The greedy completion of a model (folder or hub id), by default at most as long as those of `eval.mmau`.

    Raises:
        Refused: the clip cannot be decoded or is too short, the model has no room for the question; see
            `loading.load`.
    """
    import torch  # after the arguments: --help and mistakes are answered at once

    from r1_aqa_repro.model import generation, loading
    from r1_aqa_repro.model.inputs import question_inputs, too_long
    from r1_aqa_repro.model.plain_text import say_spelled

    processor = loading.load_processor(checkpoint)
    say_spelled(processor.tokenizer, "--question, --choices", [(question.id, prompt_text(question, style))])
    config = loading.check_model_folder(checkpoint)
    for _, what in too_long(processor, config, [question], style, max_new_tokens):
        raise Refused.because("--question, --choices", what, "Shorten them.")
    try:
        inputs = question_inputs(processor, [question], style)
    except AudioError as error:
        raise Refused.because(str(error.path), error.reason, "Give a clip that can be decoded.") from error
    device, dtype = generation.device_and_dtype()
    model = loading.load_model(checkpoint, dtype).to(device).eval()
    loading.check_pair(model.config, processor, checkpoint)
    config = generation.greedy_config(model, processor, max_new_tokens)
    token_ids = generation.generate(model, inputs, torch.tensor([0]), config)[0]
    return str(processor.tokenizer.decode(token_ids, skip_special_tokens=True))


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.ask")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR_OR_HUB_ID", help="checkpoint folder or hub id")
    add("--audio", required=True, type=Path, metavar="FILE", help="the clip; of several channels the first counts")
    add("--question", required=True, metavar="TEXT", help="the question")
    add("--choices", required=True, nargs="+", action="extend", metavar="TEXT", help="the answers to choose from, at "
        "least two; one that begins with two hyphens as --choices=TEXT")  # fmt: skip
    add("--prompt-style", choices=PROMPT_STYLES, default="answer", help="default: answer")
    add("--raw", action="store_true", help="print the raw completion in place of the answer")
    return parser


if __name__ == "__main__":
    main()
