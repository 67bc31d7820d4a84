"""Everything that can be known to be wrong before expensive work starts, checked first and reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainingArguments
from trl import ModelConfig

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.distributed import end_distributed, is_main_process
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.common.files import check_writable, size_of, sole_use, write_json
from r1_aqa_repro.model.encoded_audio import ENCODED
from r1_aqa_repro.model.files import model_digest
from r1_aqa_repro.model.folder import check_files, check_finite
from r1_aqa_repro.run.arguments import EvaluationArguments, RunArguments
from r1_aqa_repro.run.checkpoints import FINAL, is_last, last_checkpoint
from r1_aqa_repro.run.checks import (
    check_disk,
    check_evaluation,
    check_schedule,
    check_settings,
    check_tools,
    count_parameters,
)
from r1_aqa_repro.run.clips import SKIPPED
from r1_aqa_repro.run.folder import check_run_folder, data_hashes, resolved_config, start_run
from r1_aqa_repro.run.kinds import Kind, Record
from r1_aqa_repro.run.training_state import check_resumable

RUN_LOCK = ".training.lock"


@contextmanager
def sole_run(training: TrainingArguments) -> Iterator[None]:
    """Have the run folder for this run alone, from before anything is checked until its process ends.

    The main process locks it; the others wait for that, and follow its refusal. The name is not `LOCK`: what composes
    whole runs may have the folder, with a training among its stages.

    Raises:
        Refused: another run has it, or it cannot be written; on every process.
    """
    problems: list[Problem] = []
    with ExitStack() as held:
        if is_main_process():
            with collecting(problems):
                folder, remedy = Path(str(training.output_dir)), "Choose another --output_dir."
                check_writable(folder, remedy)
                held.enter_context(sole_use(folder / RUN_LOCK, remedy))
        _refuse(problems, [])
        yield


def prepare(
    data: RunArguments, training: TrainingArguments, model: ModelConfig, kind: Kind[Record], extra: list[Problem]
) -> tuple[list[Record], list[Record]]:
    """Check data, model, settings, disk space and run folder; then make the folder this run's own.

    `extra` is what the entry point found wrong by itself.

    Returns:
        The usable records of `train_file`, and of `eval_file` if it is given.

    Raises:
        Refused: with everything that is wrong, on any process. Nothing has been written then.
    """
    problems = extra + check_settings(training, model) + check_evaluation(training)
    problems += check_tools(training)
    parameters = None
    with collecting(problems):
        config_of_model = kind.check_model(model)
        parameters = count_parameters(training, model, lambda: kind.build(config_of_model))

    dropped: list[Problem] = []

    def usable(file: str | None, read: Callable[[str], tuple[list[Record], list[Problem]]]) -> list[Record]:
        records: list[Record] = []
        bad: list[Problem] = []
        with collecting(bad):
            if file is None:
                remedy = "Set train_file: docs/data.md has the formats."
                raise Refused.because("train_file", "no training data is given", remedy)
            records, bad = read(file)
        (dropped if data.skip_bad_records and records else problems).extend(bad)
        return records

    eval_file = getattr(training, "eval_file", None)
    others = len(problems)
    records = usable(data.train_file, kind.trainable)
    # how many there are is not known before each of them is repaired or left out
    hindering, doubtful = check_schedule(training, len(records)) if len(problems) == others else ([], [])
    problems += hindering
    limit = getattr(training, "eval_limit", None)
    held_out = [] if eval_file is None else usable(eval_file, lambda file: kind.usable(file, limit))
    problems += kind.check_held_out(records, held_out, str(eval_file))
    sample_file = getattr(data, "sample_file", None)
    with collecting(problems):
        problems += kind.choose_samples(records, sample_file, held_out, str(eval_file))

    folder = Path(str(training.output_dir))
    config = resolved_config(data=data, training=training, model=model)
    files = (data.train_file, eval_file, sample_file, getattr(training, "persona_rubric", None))
    hashes = {"data": data_hashes(*files), "models": {}}
    if not problems and is_main_process():  # one is enough: they are large
        with collecting(problems):
            hashes["models"] = _model_digests(training, model)
    with collecting(problems):
        if not data.overwrite:
            problems += check_run_folder(folder, config, hashes)
            last = None if (folder / FINAL).is_dir() else last_checkpoint(folder)
            if last is not None and not is_last(last, training):
                if not training.deepspeed:  # which may keep the weights in files of its own
                    check_files(last, "Delete the checkpoint: the run goes on from the one before.")
                check_resumable(last, training)
                if is_main_process():
                    check_finite(last)
    if parameters is not None and (data.overwrite or not (folder / FINAL).is_dir()):
        cache = kind.cache_bytes(records, training, model, config_of_model)
        problems += check_disk(training, *parameters, len(records), max(0, cache - size_of(folder / ENCODED)))
    _refuse(problems, records + held_out)
    records, bad = kind.sound(records, str(data.train_file))
    held_out, of_held_out = kind.sound(held_out, str(eval_file))
    something_left = records and (held_out or eval_file is None)
    (dropped if data.skip_bad_records and something_left else problems).extend(bad + of_held_out)
    _refuse(problems, records + held_out)

    if is_main_process():
        start_run(folder, config, hashes, training.seed, data.overwrite)
        kind.begin()
        for problem in doubtful:
            say(f"warning: {problem}")
        if dropped:
            _list_dropped(dropped, folder / SKIPPED, isinstance(training, EvaluationArguments))
    # no process may look for checkpoints before the main one has deleted those of an earlier run
    if training.distributed_state is not None:
        training.distributed_state.wait_for_everyone()
    return records, held_out


def _model_digests(training: TrainingArguments, model: ModelConfig) -> dict[str, str]:
    """By folder; what comes from the hub has a name instead."""
    keys = ("reward_model_name_or_path", "value_model_name_or_path")
    names = [getattr(training, key, None) for key in keys] + [model.model_name_or_path]
    folders = [name for name in names if name is not None and Path(name).is_dir()]
    for folder in folders:
        check_finite(Path(folder))  # before the run's folder begins; other processes do when they load it
    return {name: model_digest(name) for name in folders}


def _refuse(problems: list[Problem], records: Sequence[Record]) -> None:
    """Refuse what any process found wrong (machines may see different files), and that they read different records."""
    everywhere = list(dict.fromkeys(gather_object(problems)))
    if len(set(gather_object([tuple(record.id for record in records)]))) > 1 and not everywhere:
        everywhere.append(
            Problem("data", "the processes read different records", "Give all machines the same files and clips.")
        )
    if everywhere:
        end_distributed()
        raise Refused(everywhere)


def _list_dropped(dropped: list[Problem], file: Path, has_evaluation: bool) -> None:
    if not file.is_file():  # of this run: the clips that have failed in the meantime stand there too
        write_json(file, [str(problem) for problem in dropped])
    lost = " (of eval_file, those without a usable clip count as wrong)" if has_evaluation else ""
    say(f"{len(dropped)} bad records are left out{lost}; they are listed in {file}")
