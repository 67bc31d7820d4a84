"""Time the evaluation harness against the reference's way of generating, on the same questions.

    python scripts/bench_eval.py --json eval.json

`harness` is what `python -m eval.mmau` runs on a batch: clips, features, one prefill a prompt, completions, texts.
`plain` is transformers' own way, as R1-AQA evaluates: the same batch through `generate()` with every clip padded to
30 s, and once more for every repeat. Both are timed as one greedy pass and as a pass with --repeats sampled completions
a question; every completion is forced to the same length, so that both do the same work. The two take turns in one
process, so that what else the machine does hits both, and each ratio is of two neighbours: plain / harness seconds.
Beside it stands the ratio of the processor time that the process itself took, which other programs disturb far less.

    tiny   the embedded model and its questions
    mid    38 M parameters, 10-s clips, 351-token prompts of which 250 are audio, float32
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `eval`, `scripts` and `r1_aqa_repro` also without an installation

import torch
import transformers
from transformers import GenerationConfig, Qwen2AudioForConditionalGeneration

from eval.generation import Generator
from eval.grid import prompts_of
from eval.settings import EvalSettings
from r1_aqa_repro.common.console import Options, positive, say
from r1_aqa_repro.common.errors import EXIT_DONE, command
from r1_aqa_repro.common.files import write_json
from r1_aqa_repro.data.audio import SAMPLING_RATE, load_audio
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion, read_questions
from scripts.bench_grpo_step import PROMPT_STYLE, SETUPS, prepare, ratio_of

SAMPLED = {"do_sample": True, "top_k": 50}  # what transformers makes of a checkpoint that only says that it samples
GEOMETRIES = ("tiny", "mid")
Texts = list[list[str]]  # by question, by repeat


@command
def main(argv: list[str]) -> int:
    """Measure and report. Returns the exit code."""
    arguments = _parser().parse_args(argv)
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
            ways = Ways.load(Path(folder) / "model", questions, repeats, name == "sampled", arguments.completion_tokens)
            report[name] = compare(name, ways, arguments.rounds)
    if arguments.json:
        write_json(arguments.json, report)
    print(summary(report))
    return EXIT_DONE


@dataclass(frozen=True)
class Ways:
    """The two ways of answering one batch of questions."""

    harness: Generator
    reference: Qwen2AudioForConditionalGeneration
    reference_config: GenerationConfig
    questions: Sequence[AudioQuestion]
    repeats: int

    @classmethod
    def load(
        cls, model: Path, questions: Sequence[AudioQuestion], repeats: int, sample: bool, completion_tokens: int
    ) -> Ways:
        """Both with a model of their own: the harness prepares its own for sharing."""
        settings = EvalSettings(
            ckpt=str(model),
            prompt_style=PROMPT_STYLE,
            max_new_tokens=completion_tokens,
            dtype="float32",
            device="cpu",
        )
        harness = Generator.load(settings, SAMPLED if sample else None)
        harness.config.min_new_tokens = completion_tokens
        reference = Qwen2AudioForConditionalGeneration.from_pretrained(model, attn_implementation="sdpa").eval()
        config = GenerationConfig(
            **harness.config.to_diff_dict() | (SAMPLED if sample else {})  # lengths and special tokens are the same
        )
        return cls(harness, reference, config, questions, repeats)

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
    clocks: dict[str, Callable[[], float]] = {"ratio": time.perf_counter, "cpu_ratio": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {clock: {"harness": [], "plain": []} for clock in clocks}
    texts: dict[str, Texts] = {}
    runs: dict[str, Callable[[], Texts]] = {"harness": ways.run_harness, "plain": ways.run_plain}
    for number in range(rounds + 1):
        for way, run in runs.items():
            start = {clock: read() for clock, read in clocks.items()}
            texts[way] = run()
            seconds = {clock: read() - start[clock] for clock, read in clocks.items()}
            which = "warm-up" if number == 0 else f"round {number} of {rounds}"
            say(f"{name}, {way}: {which}, {seconds['ratio']:.2f} s, of which {seconds['cpu_ratio']:.2f} s computing")
            if number > 0:
                for clock in clocks:
                    taken[clock][way].append(seconds[clock])
    same = [mine == theirs for mine, theirs in zip(texts["harness"], texts["plain"], strict=True)]
    return {
        "repeats": ways.repeats,
        **{
            way: {
                "seconds": round(statistics.median(seconds), 4),
                "questions_per_second": round(len(ways.questions) / statistics.median(seconds), 4),
            }
            for way, seconds in taken["ratio"].items()
        },
        **{clock: ratio_of(shared=taken[clock]["harness"], plain=taken[clock]["plain"]) for clock in clocks},
        # sampled, the two draw different numbers
        **({} if ways.reference_config.do_sample else {"same_completions": sum(same), "questions": len(same)}),
    }


def summary(report: dict[str, Any]) -> str:
    """The figures as a table for the terminal."""
    lines = [
        f"{report['geometry']}: batches of {report['batch_size']} questions, {report['completion_tokens']} new tokens, "
        f"{report['threads']} thread(s); questions a second",
        f"{'':24}{'harness':>10}{'plain':>10}{'ratio':>22}{'of processor time':>22}",
    ]
    for name in ("greedy", "sampled"):
        one = report[name]
        ratios = [
            f"{one[clock]['median']:.2f} ({one[clock]['min']:.2f} to {one[clock]['max']:.2f})"
            for clock in ("ratio", "cpu_ratio")
        ]
        title = f"{name}, {one['repeats']} a question"
        lines.append(
            f"{title:24}{one['harness']['questions_per_second']:10.3f}"
            f"{one['plain']['questions_per_second']:10.3f}{ratios[0]:>22}{ratios[1]:>22}"
        )
    greedy = report["greedy"]
    lines.append(f"greedy completions that are the same: {greedy['same_completions']} of {greedy['questions']}")
    return "\n".join(lines)


def _parser() -> Options:
    parser = Options(__doc__)
    add = parser.add_argument
    add("--geometry", choices=GEOMETRIES, default="mid", help="default: mid")
    add("--batch-size", type=positive, default=4, metavar="N", help="questions at once (default: 4)")
    add("--repeats", type=positive, default=8, metavar="K", help="sampled completions a question (default: 8)")
    add("--completion-tokens", type=positive, default=16, metavar="N", help="of every completion (default: 16)")
    add("--rounds", type=positive, default=3, metavar="N", help="timed rounds (default: 3)")
    add("--threads", type=positive, default=1, metavar="N", help="default: 1")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


if __name__ == "__main__":
    main()
