"""AudioGRPOTrainer: TRL's GRPOTrainer for audio questions, with one computation of the prompt and its clip a group.

TRL keeps configuration, reward calls, advantages, loss types, KL, logging, checkpoints, DeepSpeed and PEFT. What this
subclass replaces is how a batch is tokenised, generated and scored. TRL is pinned exactly, since private methods are
overridden; `tests/grpo/test_trainer.py` names what to look at when an update changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from r1_aqa_repro.config import AudioGRPOConfig
from r1_aqa_repro.generation import generate
from r1_aqa_repro.grpo.sampler import EpochRepeatSampler
from r1_aqa_repro.grpo.shared_prefix import keep_scored_positions, pack_groups
from r1_aqa_repro.inputs import IGNORE, ModelInputs, question_inputs
from r1_aqa_repro.modeling import prepare_for_sharing
from r1_aqa_repro.prompts import build_messages
from r1_aqa_repro.resuming import ResumableTrainer
from r1_aqa_repro.rewards import REWARDS
from r1_aqa_repro.schema import AudioQuestion


@dataclass
class Batch:
    """The questions that one batch of rows belongs to.

    inputs: prompts and clips of the U questions, computed once each.
    group: int64 [N], the question of each row, in the row order of whoever is working on the batch.
    """

    inputs: ModelInputs
    group: torch.Tensor


class AudioGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """GRPO (arXiv 2402.03300, equation 3 as R1-AQA uses it) for multiple-choice questions about audio clips.

    Args:
        model: a Qwen2AudioForConditionalGeneration, or a PEFT model of one.
        args: the configuration; `args.reward_funcs` names the rewards, `args.sharing` switches the sharing.
        questions: the training questions.
        processing_class: the model's processor.
        prompt_style, audio_channel: how the questions are asked and heard.
        **kwargs: passed on to GRPOTrainer (`peft_config`, `callbacks`, ...).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: AudioGRPOConfig,
        questions: Sequence[AudioQuestion],
        processing_class: ProcessorMixin,
        prompt_style: str,
        audio_channel: str = "first",
        **kwargs: Any,
    ):
        self.args: AudioGRPOConfig
        self.model: torch.nn.Module
        self.processing_class: ProcessorMixin
        self.prompt_style, self.audio_channel = prompt_style, audio_channel
        self.share = args.sharing == "auto"
        # an evaluation between generation and loss must not replace the training batch: one a mode
        self._inputs: dict[str, ModelInputs] = {}
        self._batch: Batch | None = None
        # TRL suppresses `config.image_token_id` in sampling; a sampled audio token would break the feature count alike
        model.config.image_token_id = model.config.audio_token_id
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[REWARDS[name] for name in args.reward_funcs],
            train_dataset=question_rows(questions, prompt_style),
            processing_class=processing_class,
            **kwargs,
        )
        del model.config.image_token_id
        for wrapped in (self.model, self.ref_model):  # TRL loads the reference itself
            if wrapped is not None:
                base = self.accelerator.unwrap_model(wrapped)
                base = base.get_base_model() if isinstance(base, PeftModel) else base
                prepare_for_sharing(base)
                keep_scored_positions(base)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        sampler: RepeatSampler = super()._get_train_sampler(dataset)
        return EpochRepeatSampler(
            data_source=sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        num_generations: int = self.num_generations if self.model.training else self.num_generations_eval
        questions, group = group_rows([row["question"] for row in inputs], num_generations)
        batch = Batch(
            question_inputs(self.processing_class, questions, self.prompt_style, self.audio_channel),
            group.to(self.accelerator.device),
        )
        self._inputs[self._mode] = batch.inputs
        with self._working_on(batch):
            output = super()._generate_and_score_completions(inputs)
        # TRL shuffles the rows of every tensor in `output`; the group index must travel with them
        output["group"] = batch.group
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        batch = self._current_batch
        return [batch.inputs.prompt_ids[index] for index in batch.group.tolist()], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **_: Any,
    ) -> tuple[list[list[int]], None]:
        batch = self._current_batch
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            completion_ids = generate(
                model,
                batch.inputs,
                batch.group,
                self.generation_config,
                share=self.share,
                autocast=self.accelerator.autocast(),
            )
        return completion_ids, None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self._working_on(Batch(self._inputs[self._mode], inputs["group"])):
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities (and entropies) of the completion tokens, [N, C], under the full softmax."""
        score = self._score_shared if self.share else self._score_plain
        log_probs, entropy = score(model, input_ids, attention_mask, logits_to_keep)
        return log_probs, entropy if compute_entropy else None, None

    def _score_shared(
        self, model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One packed row a group, one forward of the wrapped model: DDP, ZeRO and PEFT hooks fire as usual."""
        batch = self._current_batch
        present, group = batch.group.unique(return_inverse=True)
        packed = pack_groups(input_ids, attention_mask, group, completion_length, self._tokenizer.pad_token_id)
        with self.accelerator.autocast():
            output = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                **packed.attention(),
                shift_labels=packed.shift_labels[packed.scored][None],
                scored=packed.scored,
                fused_lm_head=True,
                **batch.inputs.audio(input_ids.device, present),
            )
        entropy = getattr(output, "entropy", None)
        return packed.unpack(output.log_probs[0]), None if entropy is None else packed.unpack(entropy[0])

    def _score_plain(
        self, model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Every row with its own prompt and its own clip, as TRL does it: the comparison for the shared forward."""
        batch = self._current_batch
        labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
        labels[:, :-completion_length] = IGNORE
        with self.accelerator.autocast():
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=labels,
                fused_lm_head=True,
                **batch.inputs.audio(input_ids.device, batch.group, trim=False),
            )
        entropy = getattr(output, "entropy", None)
        kept = slice(-completion_length, None)
        return output.log_probs[:, kept], None if entropy is None else entropy[:, kept]

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _current_batch(self) -> Batch:
        if self._batch is None:
            raise RuntimeError("no batch is being worked on: this method is called from generation and loss only")
        return self._batch

    @contextmanager
    def _working_on(self, batch: Batch) -> Iterator[None]:
        outer, self._batch = self._batch, batch
        try:
            yield
        finally:
            self._batch = outer


def question_rows(questions: Sequence[AudioQuestion], prompt_style: str) -> Dataset:
    """A Dataset of the columns that TRL and the rewards read, one row a question.

    The rows are made when they are read: kept in Arrow, a message's text part would get an `audio` key that is None,
    which the chat template counts as a second clip.
    """
    columns: dict[str, Callable[[AudioQuestion], Any]] = {
        "question": lambda question: question,
        "prompt": lambda question: build_messages(question, prompt_style),
        "answer": lambda question: question.answer,
        "choices": lambda question: list(question.choices),
        "task": lambda question: question.task,
        "prompt_style": lambda question: prompt_style,
    }

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        picked = [questions[index] for index in batch["index"]]
        return {name: [column(question) for question in picked] for name, column in columns.items()}

    return Dataset.from_dict({"index": list(range(len(questions)))}).with_transform(rows)


def group_rows(questions: Sequence[AudioQuestion], num_generations: int) -> tuple[list[AudioQuestion], torch.Tensor]:
    """The U distinct questions of N = U * num_generations consecutive rows, and the question index of each row [N].

    Groups are the sampler's consecutive rows, never guessed from equal text: neighbours may ask the same about
    different clips.

    Raises:
        ValueError: the rows are not whole groups of one question and one clip.
    """
    if len(questions) % num_generations:
        raise ValueError(f"{len(questions)} rows are not whole groups of {num_generations}")
    distinct = list(questions[::num_generations])
    group = torch.arange(len(distinct)).repeat_interleave(num_generations)
    for row, question in enumerate(questions):
        leader = distinct[row // num_generations]
        if (question.id, question.audio_path) != (leader.id, leader.audio_path):
            raise ValueError(f"row {row} belongs to question {question.id}, its group to {leader.id}")
    return distinct, group
