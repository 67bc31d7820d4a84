"""Ask a checkpoint: one question about one clip, or, of a text model, anything.

    python -m r1_aqa_repro.ask --ckpt runs/my-run/final --audio clip.wav \\
        --question "What is heard?" --choices "a dog" "a cat" "a car"
    python -m r1_aqa_repro.ask --ckpt runs/train_dpo/final --prompt "Name three fruits."
    python -m r1_aqa_repro.ask --ckpt runs/train_dpo/final --chat

The first prints the choice that the model answers with. Prompt, inputs, decoding and the reading of the answer are
those of `eval.mmau`. An answer that is not among the choices is printed as it is, and a note says so.

The others are for a text-only Qwen2, or a LoRA adapter of one, whose base is loaded with it: --prompt prints its
answer, by greedy decoding; --chat goes on with it, a message a line, until Ctrl-D. A conversation that the model has no
positions left for begins anew, and a note says so.

Exit codes: 0 done; 2 refused: a missing or unreadable clip, fewer than two choices, no sound checkpoint,
more text than the model has positions for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, Problem, Refused, command
from r1_aqa_repro.common.escaping import visible
from r1_aqa_repro.common.files import unreadable
from r1_aqa_repro.data.answers import answer_of, match_choice
from r1_aqa_repro.data.audio import AudioError
from r1_aqa_repro.data.conversations import Message, answer
from r1_aqa_repro.data.prompts import PROMPT_STYLES, prompt_text
from r1_aqa_repro.data.questions import AudioQuestion


@command
def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    of_audio = {f"--{name}": getattr(arguments, name) for name in ("audio", "question", "choices")}
    if arguments.prompt is not None or arguments.chat:
        if wrong := [name for name, value in of_audio.items() if value is not None]:
            parser.error(f"{', '.join(wrong)} is for questions about a clip, --prompt and --chat for a text model")
        return _answer_text(arguments)
    if missing := [name for name, value in of_audio.items() if value is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)} (or, for a text model, --prompt)")
    completion = complete(
        arguments.ckpt,
        make_question(arguments.audio, arguments.question, arguments.choices),
        arguments.prompt_style,
        arguments.max_new_tokens,
    )
    given = answer_of(completion)
    chosen = None if given is None else match_choice(given, arguments.choices)
    if arguments.raw:
        print(completion)
    elif chosen is not None:
        print(visible(arguments.choices[chosen]))
    elif given is not None:
        print(visible(given))
    if given is None:
        say("the model gave no answer: its completion is empty, or its answer tags are")
    elif chosen is None:
        say(f"the answer is not among the choices: {given!r}")
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


def _answer_text(arguments: Any) -> int:
    """Answer --prompt and, with --chat, what is typed."""
    reply = text_model(arguments.ckpt, arguments.max_new_tokens)
    beginning: list[Message] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = list(beginning)
    for text in _typed(arguments.prompt, arguments.chat):
        messages.append({"role": "user", "content": text})
        try:
            said = reply(messages)
        except Refused:
            if len(messages) == len(beginning) + 1:
                raise
            say("the conversation has no room for a further answer in the model's positions: it begins anew")
            messages = [*beginning, messages[-1]]
            said = reply(messages)
        print(visible(said), flush=True)
        messages += answer(said)
    return EXIT_DONE


def _typed(first: str | None, goes_on: bool) -> Iterator[str]:
    """The user's messages: that of the command line, then those of standard input until it or Ctrl-C ends them."""
    if first is not None:
        yield first
    while goes_on:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if text.strip():
            yield text


def text_model(checkpoint: str, max_new_tokens: int = 256) -> Callable[[list[Message]], str]:
    """What answers a conversation: a text-only Qwen2 (folder, hub id or LoRA adapter), by greedy decoding.

    It raises Refused for a conversation that leaves no room for `max_new_tokens`, and says of an answer that it was cut
    off there.

    Raises:
        Refused: see `check_text_model` and `load_policy`; the checkpoint is a reward model.
    """
    from transformers.utils import logging

    from r1_aqa_repro.model import generation
    from r1_aqa_repro.model.inputs import token_ids
    from r1_aqa_repro.model.plain_text import say_spelled
    from r1_aqa_repro.model.text_loading import check_text_model, checked_config, load_policy

    if any("Classification" in name for name in checked_config(checkpoint).architectures or ()):
        remedy = "Score answers with `python -m r1_aqa_repro.score`, or give a policy."
        raise Refused.because(checkpoint, "it is a reward model, which gives scores and no text", remedy)
    config, tokenizer = check_text_model(checkpoint)
    logging.disable_progress_bar()
    device, dtype = generation.device_and_dtype()
    model = load_policy(checkpoint, dtype).to(device).eval()

    def reply(messages: list[Message]) -> str:
        length = len(token_ids(tokenizer, [messages], complete=False)[0])
        if length + max_new_tokens > config.max_position_embeddings:
            positions = config.max_position_embeddings
            what = f"{length:,} tokens leave no room for {max_new_tokens:,} in the model's {positions:,} positions"
            raise Refused.because("--prompt", what, "Shorten it, or lower --max-new-tokens.")
        say_spelled(tokenizer, "--prompt", [("it", messages[-1:])])
        [(text, ended)] = generation.greedy_texts(model, tokenizer, [messages], max_new_tokens)
        if not ended:
            say(f"the answer was cut off after {max_new_tokens} tokens (--max-new-tokens)")
        return text

    return reply


def _parser() -> Options:
    parser = Options(__doc__, "python -m r1_aqa_repro.ask")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="DIR_OR_HUB_ID", help="checkpoint folder or hub id")
    add("--audio", type=Path, metavar="FILE", help="the clip; of several channels the first counts")
    add("--question", metavar="TEXT", help="the question")
    add("--choices", nargs="+", action="extend", metavar="TEXT", help="the answers to choose from, at "
        "least two; one that begins with two hyphens as --choices=TEXT")  # fmt: skip
    add("--prompt-style", choices=PROMPT_STYLES, default="answer", help="of questions about a clip (default: answer)")
    add("--raw", action="store_true", help="print the raw completion in place of the answer")
    add("--prompt", metavar="TEXT", help="what a text model is asked")
    add("--chat", action="store_true", help="talk to a text model, a message a line; after --prompt if it is given")
    add("--system", metavar="TEXT", help="system message of a text model (default: its chat template's own)")
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="longest answer (default: 256)")
    return parser


if __name__ == "__main__":
    main()
