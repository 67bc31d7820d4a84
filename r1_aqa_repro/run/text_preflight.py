"""What `preflight` does for audio, for the entry points that train text-only Qwen2."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    TrainingArguments,
)

from r1_aqa_repro.common.errors import Problem, Refused
from r1_aqa_repro.data.conversations import (
    PreferencePair,
    Read,
    SFTExample,
    TextPrompt,
    answer,
    read_pairs,
    read_prompts,
    read_sft,
)
from r1_aqa_repro.model.files import adapter_base
from r1_aqa_repro.model.inputs import token_ids
from r1_aqa_repro.model.text_loading import TextModelConfig, check_vocabulary, checked_config, load_tokenizer
from r1_aqa_repro.rewards.registry import check_prompts, check_uses, reward_model_positions
from r1_aqa_repro.run.arguments import RunArguments
from r1_aqa_repro.run.preflight import Run, begin_run, check_settings, count_parameters

Record = TypeVar("Record", TextPrompt, PreferencePair, SFTExample)
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Kind(Generic[Record]):
    """How one kind of records is read and measured.

    read: of `text_data`.
    conversations: what the model sees of a record, each one conversation.
    limits: the longest conversation by what sets it, in tokens, beside the model's own; None sets none.
    shorten: what else than the record can be changed where one is too long.
    room: tokens that the model adds to a conversation.
    complete: the conversations hold the assistant's last turn.
    check: problems of records, given with the name of their file.
    check_all: problems of all records of train_file together.
    """

    read: Callable[[str], Read[Record]]
    conversations: Callable[[Record], Sequence[Messages]]
    limits: Mapping[str, int | None]
    shorten: str
    room: int = 0
    complete: bool = True
    check: Callable[[Sequence[Record], str], list[Problem]] = lambda records, file: []
    check_all: Callable[[Sequence[Record], str], list[Problem]] = lambda records, file: []


def prompts_to_answer(
    rewarding: Any, shorten: str = "lower max_completion_length", critic: int | None = None
) -> Kind[TextPrompt]:
    """Prompts for which completions are sampled and rewarded.

    Args:
        rewarding: a configuration with the keys of `RewardArguments` and `max_completion_length`.
        shorten: see `Kind`.
        critic: the longest conversation that a critic can take, where there is one.
    """
    return Kind(
        read_prompts,
        lambda prompt: [prompt.messages],
        {"the reward model can take": reward_model_positions(rewarding), "the critic can take": critic},
        shorten,
        rewarding.max_completion_length,
        complete=False,
        check=lambda prompts, file: check_prompts(rewarding, prompts, file),
        check_all=lambda prompts, file: check_uses(rewarding, prompts, file),
    )


def preference_pairs(max_length: int | None) -> Kind[PreferencePair]:
    """Preference pairs, both of whose answers are seen with the prompt."""
    return Kind(
        read_pairs,
        lambda pair: [[*pair.prompt, *answer(pair.chosen)], [*pair.prompt, *answer(pair.rejected)]],
        {"max_length allows": max_length},
        "raise max_length",
    )


def demonstrations(max_length: int | None) -> Kind[SFTExample]:
    """Prompts with an answer to imitate."""
    return Kind(
        read_sft,
        lambda example: [[*example.prompt, *answer(example.completion)]],
        {"max_length allows": max_length},
        "raise max_length",
    )


def prepare_text(
    data: RunArguments,
    training: TrainingArguments,
    model: TextModelConfig,
    extra: list[Problem],
    kind: Kind[Record],
    build: Callable[[PreTrainedConfig], Any] = Qwen2ForCausalLM,
) -> tuple[list[Record], list[Record]]:
    """Check data, model, settings, disk space and run folder; then make the folder this run's own.

    Args:
        data, training, model: the run's configuration.
        extra: what the entry point found wrong by itself.
        kind: of the records.
        build: makes what is trained of the model's configuration.

    Returns:
        The records of `train_file` and of `eval_file` (none where it is not given).

    Raises:
        Refused: with everything that is wrong. Nothing has been written then.
    """
    problems = extra + check_settings(training, model) + check_evaluation(training)
    if model.use_peft and model.rope:
        what = "an adapter does not keep them: whoever loads it would get the base as it was"
        remedy = "Write them into the base's config.json, or leave use_peft out."
        problems.append(Problem("rope_parameters", what, remedy))
    parameters, checked = None, None
    try:
        config, tokenizer = check_text_model(model)
        parameters = count_parameters(training, model, lambda: build(config))
        checked = config, tokenizer
    except Refused as refusal:
        problems += refusal.problems
    dropped: list[Problem] = []

    def usable(file: str | None) -> list[Record]:
        try:
            records, bad = read_usable(file, kind, checked)
        except Refused as refusal:
            problems.extend(refusal.problems)
            return []
        if data.skip_bad_records and records:
            dropped.extend(bad)
        else:
            problems.extend(bad)
        return records

    records = usable(data.train_file)
    problems += kind.check_all(records, str(data.train_file))
    eval_file = getattr(training, "eval_file", None)
    held_out = [] if eval_file is None else usable(eval_file)
    problems += check_held_out(records, held_out, eval_file)
    ids = [record.id for record in records + held_out]
    begin_run(Run(data, training, model, ids, len(records), parameters), problems, dropped)
    return records, held_out


def check_evaluation(training: TrainingArguments) -> list[Problem]:
    """A problem for each key of an evaluation where there are no held-out records."""
    if getattr(training, "eval_file", None) is not None:
        return []
    given = [key for key in ("eval_steps", "eval_on_start") if getattr(training, key)]
    given += ["eval_strategy"] if training.eval_strategy != "no" else []
    remedy = "Set eval_file too, or leave this out." if hasattr(training, "eval_file") else "Leave this out."
    return [Problem(key, "there is nothing to evaluate on", remedy) for key in given]


def check_held_out(records: Sequence[Any], held_out: Sequence[Any], eval_file: str | None) -> list[Problem]:
    """A problem for each held-out example or pair whose prompt is trained on."""
    trained_on = {json.dumps(record.prompt): record.id for record in records} if held_out else {}
    return [
        Problem(
            f"{eval_file}: {record.id}",
            f"its prompt is trained on ({trained_on[prompt]})",
            "Take it out of train_file or of eval_file.",
        )
        for record in held_out
        if (prompt := json.dumps(record.prompt)) in trained_on
    ]


def check_text_model(model: TextModelConfig) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a Qwen2 that can be trained; its weights are not read.

    Raises:
        Refused: there is none, or it is an adapter, or its tokenizer does not fit.
    """
    name = model.model_name_or_path
    if name is None:
        raise Refused.because("model_name_or_path", "no model is given", "Set it to a Qwen2 folder or hub id.")
    config = checked_config(name, model.rope)
    if adapter_base(name) is not None:
        remedy = "Merge it into its base with r1_aqa_repro.merge_adapter."
        raise Refused.because(name, "an adapter cannot be trained further", remedy)
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, config, name)
    return config, tokenizer


def read_usable(
    file: str | None, kind: Kind[Record], checked: tuple[PreTrainedConfig, PreTrainedTokenizerBase] | None
) -> tuple[list[Record], list[Problem]]:
    """The records of a file that the model can take whole, and a problem for each of the others.

    Libraries cut what is too long, or leave it out, without a word.

    Raises:
        Refused: no file is given, or see `text_data`.
    """
    if file is None:
        raise Refused.because("train_file", "no training data is given", "Set train_file to a JSON-lines file.")
    read = kind.read(file)
    if checked is None:
        return read.records, read.problems
    config, tokenizer = checked
    own = "the model can take"
    limits = {own: config.max_position_embeddings} | {
        name: limit for name, limit in kind.limits.items() if limit is not None
    }
    narrowest = min(limits, key=limits.__getitem__)
    limit = limits[narrowest] - kind.room
    beside = f" beside {kind.room} of an answer" if kind.room else ""
    usable, problems = [], list(read.problems)
    for record in read.records:
        bad = kind.check([record], file)
        length = max(map(len, token_ids(tokenizer, kind.conversations(record), kind.complete)))
        if length > limit:
            what = f"{length} tokens are more than the {limit} that {narrowest}{beside}"
            longer = "use a longer context (docs/long_context.md), " if narrowest == own else ""
            remedy = f"Shorten it, {kind.shorten}, {longer}or leave it out."
            bad.append(Problem(f"{file}: {record.id}", what, remedy))
        problems += bad
        if not bad:
            usable.append(record)
    return usable, problems
