"""The generating part of an evaluation: batch after batch, recorded as it comes, in pieces where memory is short."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from tqdm import tqdm

from eval.generation import Generator, free_cached, is_out_of_memory, require_audio, starting_batch_size
from eval.grid import AudioPrompt, Key, batches
from eval.matcher import official
from eval.predictions import Prediction, PredictionFile, digest, part_file, predict
from eval.processes import Processes
from eval.run import AUTO, Plan
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Failed


class Answering:
    """Answers what is open, in one of the processes that share an evaluation.

    Args:
        plan: the evaluation.
        file: where predictions go, on the main process; the others write to a `part_file` each.
        processes: that share it.
    """

    def __init__(self, plan: Plan, file: PredictionFile | None, processes: Processes):
        self.plan, self.file, self.processes = plan, file, processes
        effective = plan.effective
        if plan.strict:
            processes.on_main(lambda: require_audio(plan.folder, plan.questions, effective["audio_channel"]))
        device = plan.device
        if device == "cuda" and processes.count > 1:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.generator = processes.together(
            lambda: Generator.load(
                plan.folder,
                adapter=plan.adapter,
                dtype=effective["dtype"],
                device=device,
                style=effective["prompt_style"],
                audio_channel=effective["audio_channel"],
                no_audio=effective["no_audio"],
                max_new_tokens=effective["max_new_tokens"],
                own_settings=effective["generation_config"],
            )
        )

        def sizes_used() -> list[int]:
            assert file is not None
            if not file.batch_sizes:
                size = effective["batch_size"]
                if size == AUTO:
                    size = starting_batch_size(self.generator.model, effective["repeats"], effective["max_new_tokens"])
                    say(f"batch size {size}")
                file.use_batch_size(size)
            return file.batch_sizes

        sizes = processes.from_main(sizes_used)
        self.grid, self.size = batches(plan.prompts, sizes[0]), sizes[-1]
        self.done: set[Key] = set(processes.from_main(lambda: [] if file is None else list(file.recorded)))
        self.questions = {question.id: question for question in plan.questions}

    def run(self) -> None:
        """Generate and record what is open; the main process takes in what the others have recorded."""
        open_batches = [batch for batch in self.grid if not self._is_done(batch)]
        mine = open_batches[self.processes.rank :: self.processes.count]
        if self.file is None:
            with part_file(self.plan.out, self.processes.rank) as part:
                self._run(mine, lambda new: part.append(one.to_record() for one in new))
        else:
            self._run(mine, self.file.append)
        self.processes.together(lambda: None)
        if self.file is not None:
            self.file.take_in_parts()

    def _run(self, mine: list[list[AudioPrompt]], record: Callable[[list[Prediction]], None]) -> None:
        """This process's batches, each in pieces where memory asked for that, with a bar that shows the accuracy."""
        recorded = [] if self.file is None else list(self.file.recorded.values())
        judged = self._judge(recorded)
        num_open = sum(key not in self.done for batch in mine for one in batch for key in one.keys)
        with tqdm(
            total=len(recorded) + num_open,
            initial=len(recorded),
            desc=self.plan.out.name,
            unit="answer",
            disable=not self.processes.is_main,
        ) as progress:
            for batch in mine:
                start = 0
                while start < len(batch):
                    piece = batch[start : start + self.size]
                    if not self._is_done(piece):
                        predictions = self._predict(piece)
                        if predictions is None:
                            self._lower(len(piece))
                            continue
                        new = [one for one in predictions if one.key not in self.done]
                        record(new)
                        judged += self._judge(new)
                        if judged:
                            progress.set_postfix_str(f"accuracy {100 * sum(judged) / len(judged):.1f} %", refresh=False)
                        progress.update(len(new))
                    start += len(piece)

    def _predict(self, piece: list[AudioPrompt]) -> list[Prediction] | None:
        """The predictions of a piece of a batch; None where memory ran out."""
        try:
            answers = self.generator.answer(piece, self._warn)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        settings_hash, style = digest(self.plan.effective), self.plan.effective["prompt_style"]
        return [
            predict(one.question, completion, style, settings_hash, repeat, one.permuted)
            for one, completions in zip(piece, answers, strict=True)
            for (_, repeat), completion in zip(one.keys, completions, strict=True)
        ]

    def _lower(self, failed: int) -> None:
        """Halve the batch size.

        Raises:
            Failed: it was 1.
        """
        if failed == 1:
            raise Failed(
                "memory runs out with a single question at a time: lower --repeats or --max-new-tokens, or use a "
                "device with more memory; what was generated is kept"
            )
        free_cached()
        self.size = 1 << (failed - 1).bit_length() - 1  # the largest power of two below it
        self._warn(f"memory ran out with {failed} questions at a time: going on with {self.size}")
        if self.file is not None:
            self.file.use_batch_size(self.size)

    def _is_done(self, batch: Iterable[AudioPrompt]) -> bool:
        return all(key in self.done for one in batch for key in one.keys)

    def _judge(self, predictions: Iterable[Prediction]) -> list[bool]:
        """Which are right, where the answers are known."""
        verdicts = []
        for one in predictions:
            question = self.questions[one.id]
            if question.answer is not None:
                verdicts.append(one.answer is not None and official(one.answer, question.answer, question.choices))
        return verdicts

    def _warn(self, text: str) -> None:
        tqdm.write(f"warning: {text}", file=sys.stderr)
