"""The one loop that generates: batch after batch of a grid, recorded as it comes, in pieces if memory is short."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from eval.evaluation import Evaluation
from eval.generation import Generator, starting_batch_size
from eval.grid import AudioPrompt, Key, batches, seconds_of, share_of
from eval.long_clips import record_long_clips
from eval.predictions import Prediction, PredictionFile, digest, part_file, predict
from eval.processes import Processes
from eval.scores import choices_as_asked
from eval.settings import AUTO
from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Failed
from r1_aqa_repro.common.escaping import visible, visible_line


class Loop:
    """Answers the prompts that are open, in one of the processes that share an evaluation.

    The batches are a fixed grid over all prompts, so that a prompt meets the same neighbours, and hence the same
    padding, after an interruption and in whichever process: a batch that is recorded in part is generated again, and
    only what is missing of it is recorded.

    Args:
        generator: the model.
        evaluation: what is to be answered.
        prompts: all of the evaluation.
        file: of its predictions, on the main process; the others write to a `part_file` each.
        processes: that share the evaluation; all make this and run it.
        unreadable: ids of questions whose clip is known to be unusable: they are recorded so and not put to the model.
        in_step: see `grid.share_of`; running out of memory is an error then.
    """

    def __init__(
        self,
        generator: Generator,
        evaluation: Evaluation,
        prompts: Sequence[AudioPrompt],
        file: PredictionFile | None,
        processes: Processes,
        *,
        unreadable: Collection[str] = (),
        in_step: bool = False,
    ):
        self.generator, self.folder, self.file, self.processes = generator, evaluation.folder, file, processes
        self.in_step, settings = in_step, evaluation.settings
        self.style, self.settings_hash = settings["prompt_style"], digest(settings)
        self.questions = {question.id: question for question in evaluation.questions}
        self.rule = evaluation.benchmark.rule
        seconds = seconds_of(question.audio_path for question in evaluation.questions)

        def begin() -> tuple[list[int], set[Key]]:
            """The batch sizes that were used, and what is recorded already."""
            assert file is not None
            if not file.batch_sizes:
                size = settings["batch_size"]
                if size == AUTO:
                    size = starting_batch_size(generator.model, settings["repeats"], settings["max_new_tokens"])
                    say(f"batch size {size}")
                file.use_batch_size(size)
                lost = [one for one in prompts if one.question.id in unreadable]
                file.append(self._predictions(lost, [[None] * one.repeats for one in lost]))
            record_long_clips(evaluation.folder, evaluation.questions, generator.window_seconds, seconds)
            return file.batch_sizes, set(file.recorded)

        sizes, self.done = processes.from_main(begin)
        self.grid = batches([one for one in prompts if one.question.id not in unreadable], sizes[0], seconds)
        self.size = sizes[-1]

    def run(self) -> None:
        """Generate and record what is open; the main process takes in what the others have recorded."""
        open_batches = [batch for batch in self.grid if not self._is_done(batch)]
        mine = share_of(open_batches, self.processes.rank, self.processes.count, self.in_step)
        if self.file is None:
            with part_file(self.folder, self.processes.rank) as part:
                self._run(mine, lambda new: part.append(one.to_record() for one in new))
        else:
            self._run(mine, self.file.append)
        self.processes.together(lambda: None)
        if self.file is not None:
            self.file.take_in_parts()

    def _run(self, mine: list[list[AudioPrompt]], record: Callable[[list[Prediction]], None]) -> None:
        """This process's batches, each in pieces if memory asks for that, with a bar that shows the accuracy."""
        recorded = [] if self.file is None else list(self.file.recorded.values())
        right = self._right(recorded)
        num_open = sum(key not in self.done for batch in mine for one in batch for key in one.keys)
        interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds: a log file keeps every redraw
        with tqdm(
            total=len(recorded) + num_open,
            initial=len(recorded),
            desc=visible_line(self.folder.name),
            unit="answer",
            leave=None,  # only if no other bar is above it
            disable=not self.processes.is_main,
            mininterval=interval,
            maxinterval=interval,
        ) as progress:
            for batch in mine:
                start = 0
                while start < len(batch):
                    piece = batch[start : start + self.size]
                    if not self._is_done(piece):
                        predictions = self._answer(piece)
                        if predictions is None:
                            self._lower(len(piece))
                            continue
                        new = [one for one in predictions if one.key not in self.done]
                        record(new)
                        right += self._right(new)
                        if right:
                            progress.set_postfix_str(f"accuracy {100 * sum(right) / len(right):.1f} %", refresh=False)
                        progress.update(len(new))
                    start += len(piece)

    def _answer(self, piece: list[AudioPrompt]) -> list[Prediction] | None:
        """The predictions of a piece of a batch; None if memory ran out."""
        try:
            return self._predictions(piece, self.generator.answer(piece, _warn))
        except RuntimeError as error:
            if self.in_step or not should_reduce_batch_size(error):
                raise
            return None

    def _predictions(self, prompts: Sequence[AudioPrompt], answers: Sequence[Sequence[str | None]]) -> list[Prediction]:
        return [
            predict(one.question, completion, self.style, self.settings_hash, repeat, one.permuted)
            for one, completions in zip(prompts, answers, strict=True)
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
        clear_device_cache(garbage_collection=True)  # of what the failed batch has left
        self.size = 1 << (failed - 1).bit_length() - 1  # the largest power of two below it
        _warn(f"memory ran out with {failed} questions at a time: going on with {self.size}")
        if self.file is not None:
            self.file.use_batch_size(self.size)

    def _is_done(self, batch: Iterable[AudioPrompt]) -> bool:
        return all(key in self.done for one in batch for key in one.keys)

    def _right(self, predictions: Iterable[Prediction]) -> list[bool]:
        """Which are right, of those whose right answer is known."""
        asked = ((one, self.questions[one.id]) for one in predictions)
        return [
            one.answer is not None and self.rule(one.answer, question.answer, choices_as_asked(question, one))
            for one, question in asked
            if question.answer is not None
        ]


def _warn(text: str) -> None:
    tqdm.write(visible(f"warning: {text}"), file=sys.stderr)
