"""Time the evaluation harness against the reference's way of generating, on the same questions.

    python scripts/bench_eval.py --json eval.json

`harness` is what `python -m eval.mmau` runs on a batch: clips, features, one prefill a prompt, completions, texts.
`plain` is transformers' own way, as R1-AQA evaluates: the same batch through `generate()` with every clip padded to
30 s, and once more for every repeat. Both are timed as one greedy pass and as a pass with --repeats sampled completions
a question; every completion is forced to the same length, so that both do the same work. The two take turns in one
process, so that what else the machine does hits both, and each ratio is of two neighbours: plain / harness seconds.

The geometries are those of bench_grpo_step.py.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project also without an installation

import torch
import transformers
from rich.table import Table
from transformers import GenerationConfig, Qwen2AudioForConditionalGeneration

from eval.generation import Generator
from eval.grid import prompts_of
from eval.settings import EvalSettings
from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.files import output_file, write_json
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from scripts.bench_grpo_step import PROMPT_STYLE, SETUPS, prepare, ratio_of, spread
from scripts.workshop import show, table

SAMPLED = {"do_sample": True, "top_k": 50}  # what transformers makes of a checkpoint that only says that it samples
Texts = list[list[str]]  # by question, by repeat


@command
def main(argv: list[str]) -> int:
    """Measure and report. Returns the exit code."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("--geometry", choices=("tiny", "mid"), default="mid", help="default: mid")
    add("--batch-size", type=positive, default=4, metavar="N", help="questions at once (default: 4)")
    add("--repeats", type=positive, default=8, metavar="K", help="sampled completions a question (default: 8)")
    add("--completion-tokens", type=positive, default=16, metavar="N", help="of every completion (default: 16)")
    add("--rounds", type=positive, default=3, metavar="N", help="timed rounds (default: 3)")
    add("--threads", type=positive, default=1, metavar="N", help="default: 1")
    add("--json", type=output_file, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    setup = replace(SETUPS[arguments.geometry], prompts=arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        say(f"{arguments.geometry}: making model and clips")
        prepare(setup, Path(folder))
        questions = read_questions(Path(folder) / "manifest.jsonl").records
        report: dict[str, Any] = {
            "geometry": arguments.geometry,
            "batch_size": arguments.batch_size,
            "completion_tokens": arguments.completion_tokens,
            "threads": arguments.threads,
        }
        for name, repeats in (("greedy", 1), ("sampled", arguments.repeats)):
            ways = Ways(Path(folder) / "model", questions, repeats, name == "sampled", arguments.completion_tokens)
            report[name] = compare(name, ways, arguments.rounds)
    if arguments.json:
        write_json(arguments.json, report)
    show(*summary(report))
    return EXIT_DONE


class Ways:
    """The two ways of answering one batch of questions, each with a model of its own: the harness prepares its own for
    sharing."""

    def __init__(self, model: Path, questions: Sequence[AudioQuestion], repeats: int, sample: bool, tokens: int):
        self.questions, self.repeats = questions, repeats
        own = SAMPLED if sample else {}
        settings = EvalSettings(
            ckpt=str(model), prompt_style=PROMPT_STYLE, max_new_tokens=tokens, dtype="float32", device="cpu"
        )
        self.harness = Generator.load(settings, own or None)
        self.harness.config.min_new_tokens = tokens
        self.reference = Qwen2AudioForConditionalGeneration.from_pretrained(model, attn_implementation="sdpa").eval()
        # lengths and special tokens are the same
        self.reference_config = GenerationConfig(**self.harness.config.to_diff_dict() | own)

    def run_harness(self) -> Texts:
        answers = self.harness.answer(prompts_of(self.questions, self.repeats), say)
        return [[text or "" for text in texts] for texts in answers]

    def run_plain(self) -> Texts:
        passes = [self._plain_pass() for _ in range(self.repeats)]
        return [list(texts) for texts in zip(*passes, strict=True)]

    def _plain_pass(self) -> list[str]:
        processor = self.harness.processor
        prompts = [
            processor.apply_chat_template(
                build_messages(question, PROMPT_STYLE), add_generation_prompt=True, tokenize=False
            )
            for question in self.questions
        ]
        clips = [load_audio(question.audio_path) for question in self.questions]
        inputs = processor(text=prompts, audio=clips, sampling_rate=SAMPLING_RATE, return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = self.reference.generate(**inputs, generation_config=self.reference_config)
        return processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def compare(name: str, ways: Ways, rounds: int) -> dict[str, Any]:
    """Take turns, after one round that does not count."""
    runs: dict[str, Callable[[], Texts]] = {"harness": ways.run_harness, "plain": ways.run_plain}
    taken: dict[str, list[float]] = {way: [] for way in runs}
    texts: dict[str, Texts] = {}
    for number in range(rounds + 1):
        for way, run in runs.items():
            began = time.perf_counter()
            texts[way] = run()
            seconds = time.perf_counter() - began
            say(f"{name}, {way}: {f'round {number} of {rounds}' if number else 'warm-up'}, {seconds:.2f} s")
            if number > 0:
                taken[way].append(seconds)
    same = [mine == theirs for mine, theirs in zip(texts["harness"], texts["plain"], strict=True)]
    medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
    return {
        "repeats": ways.repeats,
        **{
            way: {"seconds": round(median, 4), "questions_per_second": round(len(ways.questions) / median, 4)}
            for way, median in medians.items()
        },
        "ratio": ratio_of(fast=taken["harness"], slow=taken["plain"]),
        # sampled, the two draw different numbers
        **({} if ways.reference_config.do_sample else {"same_completions": sum(same), "questions": len(same)}),
    }


def summary(report: dict[str, Any]) -> Iterator[Table | str]:
    """The figures for the terminal, one row a pass."""
    title = (
        f"{report['geometry']}: batches of {report['batch_size']} questions, {report['completion_tokens']} new tokens; "
        "questions a second"
    )
    rows = {}
    for name in ("greedy", "sampled"):
        one = report[name]
        speeds = {way: f"{one[way]['questions_per_second']:.3f}" for way in ("harness", "plain")}
        rows[f"{name}, {one['repeats']} a question"] = speeds | {"plain / harness, seconds": spread(one["ratio"])}
    yield table(title, rows)
    greedy = report["greedy"]
    yield f"greedy completions that are the same: {greedy['same_completions']} of {greedy['questions']}"


if __name__ == "__main__":
    main()
