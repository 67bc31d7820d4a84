"""What a run can learn from: how each kind of records is read and checked, by itself and against the model."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2AudioForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    TrainingArguments,
)
from trl import ModelConfig

from r1_aqa_repro.common.console import say
from r1_aqa_repro.common.errors import Problem, Refused, collecting
from r1_aqa_repro.data.conversations import Read, TextPrompt, read_prompts
from r1_aqa_repro.data.prompts import prompt_text
from r1_aqa_repro.data.questions import CONTRIBUTIONS, AudioQuestion, read_questions, with_answers
from r1_aqa_repro.model.encoded_audio import encoded_bytes
from r1_aqa_repro.model.files import adapter_config
from r1_aqa_repro.model.inputs import minimum_seconds, token_ids, too_long
from r1_aqa_repro.model.loading import check_model_folder, check_pair, check_tensors, load_processor
from r1_aqa_repro.model.plain_text import say_spelled
from r1_aqa_repro.model.text_loading import check_text_model
from r1_aqa_repro.rewards.registry import check_prompts, check_uses, reward_model_positions
from r1_aqa_repro.run.clips import Clips
from r1_aqa_repro.run.samples import NUM, Sampled

Record = TypeVar("Record", bound=AudioQuestion | TextPrompt)
Messages = Sequence[dict[str, str]]


class Kind(ABC, Generic[Record]):
    """A kind of records. `check_model` comes before `usable`, if the model can be read: it decides what is usable."""

    family: str
    build: Callable[[PreTrainedConfig], Any]  # makes what is trained of the model's configuration

    def check_model(self, model: ModelConfig) -> PreTrainedConfig:
        """The configuration of a model that can be trained on such records; its weights are not read.

        Raises:
            Refused: there is no such model, it is an adapter, or its processor or tokenizer does not fit.
        """
        name = model.model_name_or_path
        if name is None:
            remedy = f"Set it to a {self.family} folder or hub id (the embedded runs leave one)."
            raise Refused.because("model_name_or_path", "no model is given", remedy)
        if adapter_config(name) is not None:
            remedy = "Merge it into its base with r1_aqa_repro.merge_adapter."
            raise Refused.because(name, "an adapter cannot be trained further", remedy)
        return self._measure_with(name, model)

    @abstractmethod
    def _measure_with(self, name: str, model: ModelConfig) -> PreTrainedConfig:
        """Keep what records are measured by; the model's configuration."""

    @abstractmethod
    def usable(self, file: str, limit: int | None = None) -> tuple[list[Record], list[Problem]]:
        """The records of a file (of its first `limit`) that can be learned from, and a problem for each other one.

        Raises:
            Refused: the file cannot be read, or no run can learn from all of it together.
        """

    def trainable(self, file: str) -> tuple[list[Record], list[Problem]]:
        """The records of `train_file` that the run is to learn from: `usable`, and what else chooses among them."""
        return self.usable(file)

    def sound(self, records: list[Record], file: str) -> tuple[list[Record], list[Problem]]:
        """What of usable records takes long to know, asked when all else is right; all processes call it together."""
        return records, []

    def begin(self) -> None:
        """The run has begun; the main process calls it."""

    @abstractmethod
    def source(self, record: Record) -> tuple[str, str]:
        """What training and held-out records must not share, and what to call it."""

    def cache_bytes(
        self, records: Sequence[Record], training: TrainingArguments, model: ModelConfig, config: PreTrainedConfig
    ) -> int:
        """What a run keeps of these records on the disk, beside its checkpoints."""
        return 0

    def choose_samples(
        self, records: Sequence[Record], file: str | None, held_out: Sequence[Record], eval_file: str
    ) -> list[Problem]:
        """Choose the held-out records that are looked at before and after training, of `file` or those of `eval_file`;
        a problem for each that cannot be.

        Raises:
            Refused: the file cannot be read.
        """
        return []

    def check_held_out(self, records: Sequence[Record], held_out: Sequence[Record], file: str) -> list[Problem]:
        """A problem for each held-out record whose clip or prompt is trained on."""
        trained_on = {self.source(record)[0]: record.id for record in records} if held_out else {}
        remedy = "Take it out of train_file or of eval_file."
        return [
            Problem(f"{file}: {record.id}", f"its {name} is trained on ({trained_on[source]})", remedy)
            for record in held_out
            for source, name in [self.source(record)]
            if source in trained_on
        ]


class AudioQuestions(Kind[AudioQuestion]):
    """Questions with an answer that the model has room for, about clips that can be decoded and are long enough for it.

    Args:
        clips: of the run.
        style: of the prompts.
        room: tokens of the longest completion.
        contribution: of the training questions only those with this label are learned from; None takes all.
        is_weighted: whether their labels say what they count.
    """

    family, build = "Qwen2-Audio", Qwen2AudioForConditionalGeneration

    def __init__(
        self, clips: Clips, style: str, room: int, contribution: str | None = None, is_weighted: bool = False
    ) -> None:
        self.clips, self.style, self.room = clips, style, room
        self.contribution, self.is_weighted = contribution, is_weighted
        self.chosen: str | None = None  # what labels have left of the training questions, in words
        self.shortest = 0.1  # seconds of a clip; better known once the model is
        self.model: tuple[PreTrainedConfig, ProcessorMixin] | None = None  # once they are known to be sound

    def _measure_with(self, name: str, model: ModelConfig) -> PreTrainedConfig:
        config, processor = check_model_folder(name), load_processor(name)
        check_pair(config, processor, name)
        check_tensors(Qwen2AudioForConditionalGeneration, name)
        self.shortest = minimum_seconds(processor)
        self.model = config, processor
        return config

    def usable(self, file: str, limit: int | None = None) -> tuple[list[AudioQuestion], list[Problem]]:
        read = read_questions(file)
        return self._usable(read.records[:limit], read.problems, file)

    def trainable(self, file: str) -> tuple[list[AudioQuestion], list[Problem]]:
        read = read_questions(file)
        chosen, unlabelled = self._chosen(read.records, file)
        return self._usable(chosen, read.problems + unlabelled, file)

    def _chosen(self, questions: list[AudioQuestion], file: str) -> tuple[list[AudioQuestion], list[Problem]]:
        """The questions with the label that is wanted, and a problem for each without one if labels matter."""
        if self.contribution is None and not self.is_weighted:
            return questions, []
        remedy = "Label it with data_prep.contribution, or leave contribution and contribution_weight out."
        unlabelled = [
            Problem(f"{file}: {question.id}", "it has no contribution, weak or strong", remedy)
            for question in questions
            if question.contribution is None
        ]
        wanted = CONTRIBUTIONS if self.contribution is None else (self.contribution,)
        chosen = [question for question in questions if question.contribution in wanted]
        if not chosen and not unlabelled:
            what = f"none of its {len(questions):,} questions is labelled {self.contribution}"
            raise Refused.because(file, what, "Leave contribution out, or label them by another model.")
        labels = " or ".join(wanted)
        self.chosen = f"{file}: {len(chosen):,} of {len(questions):,} questions are learned from, labelled {labels}"
        return chosen, unlabelled

    def _usable(
        self, asked: list[AudioQuestion], problems: list[Problem], file: str
    ) -> tuple[list[AudioQuestion], list[Problem]]:
        problems = problems + with_answers(asked, file)
        answered = [question for question in asked if question.answer is not None]
        heard, bad = self._heard(answered, file)
        if self.model is None:
            return heard, problems + bad
        config, processor = self.model
        say_spelled(processor.tokenizer, file, ((each.id, prompt_text(each, self.style)) for each in heard))
        remedy = "Shorten its texts, lower max_completion_length, or leave it out."
        beyond = {
            question.id: Problem(f"{file}: {question.id}", what, remedy)
            for question, what in too_long(processor, config, heard, self.style, self.room, taught=True)
        }
        return [question for question in heard if question.id not in beyond], [*problems, *bad, *beyond.values()]

    def sound(self, records: list[AudioQuestion], file: str) -> tuple[list[AudioQuestion], list[Problem]]:
        return self._heard(records, file, decode=True) if self.clips.decodes else (records, [])

    def _heard(
        self, questions: list[AudioQuestion], file: str, decode: bool = False
    ) -> tuple[list[AudioQuestion], list[Problem]]:
        bad = self.clips.measure([question.audio_path for question in questions], self.shortest, decode)
        remedy = "Restore or remove the clip, or give --skip_bad_records."
        problems = [
            Problem(f"{file}: {question.id}", f"{question.audio_path}: {bad[question.audio_path]}", remedy)
            for question in questions
            if question.audio_path in bad
        ]
        return [question for question in questions if question.audio_path not in bad], problems

    def begin(self) -> None:
        if self.chosen is not None:
            say(self.chosen)
        self.clips.keep()

    def cache_bytes(
        self,
        records: Sequence[AudioQuestion],
        training: TrainingArguments,
        model: ModelConfig,
        config: PreTrainedConfig,
    ) -> int:
        """Of `EncodedAudio`, which is filled where the audio encoder is not trained."""
        trains_encoder = getattr(training, "trained_parts", "all") == "all" and not model.use_peft
        if getattr(training, "sharing", "auto") == "off" or trains_encoder:
            return 0
        seconds = map(self.clips.seconds, {question.audio_path for question in records})
        return encoded_bytes(seconds, config.audio_config, training.bf16)

    def source(self, record: AudioQuestion) -> tuple[str, str]:
        return os.path.realpath(record.audio_path), f"clip {record.audio_path}"


@dataclass
class TextRecords(Kind[TextPrompt]):
    """Text that the model can take whole: libraries cut what is too long, or leave it out, without a word.

    Attributes:
        read: the reader of a file.
        limits: the longest conversation by what sets it, in tokens, beside the model's own; None sets no limit.
        shorten: what else than the record can be changed if one is too long, with a comma after it.
        room: tokens that the model adds to a conversation.
        complete: whether the conversations hold the assistant's last turn.
        build: see `Kind`.
        check: problems of one record, given with the name of its file.
        check_all: problems of all that can be used.
        model: configuration and tokenizer, once they are known to be sound.
        sampled: what is looked at before and after training; None if nothing is held out.
    """

    read: Callable[[str], Read[TextPrompt]]
    limits: Mapping[str, int | None]
    shorten: str
    room: int = 0
    complete: bool = True
    build: Callable[[PreTrainedConfig], Any] = Qwen2ForCausalLM
    check: Callable[[TextPrompt, str], list[Problem]] = lambda record, file: []
    check_all: Callable[[Sequence[TextPrompt], str], list[Problem]] = lambda records, file: []
    model: tuple[PreTrainedConfig, PreTrainedTokenizerBase] | None = None
    sampled: Sampled | None = None

    family = "Qwen2"

    def _measure_with(self, name: str, model: ModelConfig) -> PreTrainedConfig:
        makes_head = self.build is Qwen2ForSequenceClassification
        self.model = check_text_model(name, getattr(model, "rope", None), makes_head=makes_head)
        return self.model[0]

    def usable(self, file: str, limit: int | None = None) -> tuple[list[TextPrompt], list[Problem]]:
        read = self.read(file)
        usable, problems = [], list(read.problems)
        for record in read.records[:limit]:
            bad = [] if self.model is None else self.check(record, file) + self._too_long(record, file, *self.model)
            problems += bad
            if not bad:
                usable.append(record)
        if self.model is not None:
            say_spelled(self.model[1], file, ((record.id, record.conversations) for record in usable))
        if together := self.check_all(usable, file):
            raise Refused(problems + together)
        return usable, problems

    def all_sound(self, file: str, limit: int | None, problems: list[Problem]) -> list[TextPrompt]:
        """The records of a file (its first `limit`), if not one is bad and nothing else is wrong.

        Raises:
            Refused: with `problems` and those of the file.
        """
        records: list[TextPrompt] = []
        with collecting(problems):
            records, bad = self.usable(file, limit)
            problems += bad
        if problems:
            raise Refused(problems)
        return records

    def _too_long(
        self, record: TextPrompt, file: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> list[Problem]:
        own = "the model can take"
        limits = {own: config.max_position_embeddings, **self.limits}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        narrowest = min(limits, key=limits.__getitem__)
        limit = limits[narrowest] - self.room
        length = max(map(len, token_ids(tokenizer, record.conversations, self.complete)))
        if length <= limit:
            return []
        beside = f" beside {self.room} of an answer" if self.room else ""
        longer = "use a longer context (docs/long_context.md), " if narrowest == own else ""
        what = f"{length} tokens are more than the {limit} that {narrowest}{beside}"
        return [Problem(f"{file}: {record.id}", what, f"Shorten it, {self.shorten}{longer}or leave it out.")]

    def choose_samples(
        self, records: Sequence[TextPrompt], file: str | None, held_out: Sequence[TextPrompt], eval_file: str
    ) -> list[Problem]:
        scored = self.build is Qwen2ForSequenceClassification
        problems: list[Problem] = []
        if file is not None:
            # of a policy the prompts alone count, whatever its training reads
            own = replace(self, check=lambda record, file: [], check_all=lambda records, file: [])
            kind = own if scored else replace(own, read=read_prompts, limits={}, room=1, complete=False, shorten="")
            held_out, problems = kind.usable(file, NUM)
            trained_on = {self.source(record)[0]: record.id for record in records}
            remedy = "Take it out of train_file or of sample_file."
            problems += [
                Problem(f"{file}: {record.id}", f"its {name} is trained on ({trained_on[source]})", remedy)
                for record in held_out
                for source, name in [kind.source(record)]
                if source in trained_on
            ]
        if held_out:
            self.sampled = Sampled(file or eval_file, held_out[:NUM], scored)
        return problems

    def source(self, record: TextPrompt) -> tuple[str, str]:
        first = record.conversations[0]
        return json.dumps(first[:-1] if self.complete else first), "prompt"


def prompts_to_answer(
    rewarding: Any,
    shorten: str = "lower max_completion_length, ",
    critic: int | None = None,
    build: Callable[[PreTrainedConfig], Any] = Qwen2ForCausalLM,
) -> TextRecords:
    """Prompts for which completions are sampled and rewarded.

    Args:
        rewarding: a configuration with the keys of `RewardArguments` and `max_completion_length`.
        critic: the longest conversation that a critic can take, if there is one.
        shorten, build: see `TextRecords`.
    """
    return TextRecords(
        read_prompts,
        {"the reward model can take": reward_model_positions(rewarding), "the critic can take": critic},
        shorten,
        rewarding.max_completion_length,
        complete=False,
        build=build,
        check=lambda prompt, file: check_prompts(rewarding, [prompt], file),
        check_all=lambda prompts, file: check_uses(rewarding, prompts, file),
    )


def answered_prompts(
    read: Callable[[str], Read[TextPrompt]],
    max_length: int | None,
    build: Callable[[PreTrainedConfig], Any] = Qwen2ForCausalLM,
    check_all: Callable[[Sequence[TextPrompt], str], list[Problem]] = lambda records, file: [],
) -> TextRecords:
    """Demonstrations (`read_sft`) or preference pairs (`read_pairs`): each answer is seen with the prompt."""
    shorten = "" if max_length is None else "raise max_length, "
    return TextRecords(read, {"max_length allows": max_length}, shorten, build=build, check_all=check_all)


def check_labels(answers: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem if judged answers are all good, or all bad: there is nothing to tell apart."""
    if len({each.label for each in answers}) != 1:
        return []
    what = f"all of its {len(answers)} answers are {'good' if answers[0].label else 'bad'} ones"
    return [Problem(file, what, "Give both kinds, label: true and label: false.")]


def check_margins(pairs: Sequence[TextPrompt], file: str) -> list[Problem]:
    """A problem if only some of the pairs have a margin: TRL would stop at the first batch of both."""
    without = [pair.id for pair in pairs if pair.margin is None]
    if len(without) in (0, len(pairs)):
        return []
    what = f"{len(without)} of its {len(pairs)} pairs have no margin, {without[0]} the first of them"
    return [Problem(file, what, "Give each of them one, or set margin: none.")]
