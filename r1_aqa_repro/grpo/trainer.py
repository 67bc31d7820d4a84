"""SharedPrefixGRPOTrainer: TRL's GRPOTrainer with one computation of the prompt, and of its clip, a group.

AudioGRPOTrainer and TextGRPOTrainer say what a question is; everything else is the same for both.

TRL keeps configuration, reward calls, advantages, loss types, KL, logging, checkpoints, DeepSpeed and PEFT. What this
subclass replaces is how a batch is tokenised, generated and scored. TRL is pinned exactly, since private methods are
overridden; `tests/grpo/test_trainer.py` names what to look at when an update changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.prompts import build_messages
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.monitor import CompletionTable, StepClock, StepRecord
from r1_aqa_repro.grpo.sampler import EpochRepeatSampler
from r1_aqa_repro.grpo.shared_prefix import pack_groups
from r1_aqa_repro.grpo.signal import better_completions, draw_further, groups_with_signal, indices_of, replace_groups
from r1_aqa_repro.model.encoded_audio import ENCODED, EncodedAudio
from r1_aqa_repro.model.generation import generate
from r1_aqa_repro.model.inputs import IGNORE, ModelInputs, PromptInputs, question_inputs, text_inputs
from r1_aqa_repro.model.loading import prepare_for_sharing
from r1_aqa_repro.model.shared_attention import share_prefixes
from r1_aqa_repro.rewards.rules import REWARDS, RewardFunction
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import AudioGRPOConfig, SharedPrefixGRPOConfig
from r1_aqa_repro.run.evaluating import EvaluatingTrainer


@dataclass
class Batch:
    """The questions that one batch of rows belongs to.

    inputs: prompts, and clips if any, of the U questions, computed once each.
    group: int64 [N], the question of each row, in the row order of whoever is working on the batch.
    """

    inputs: PromptInputs
    group: torch.Tensor


class SharedPrefixGRPOTrainer(EvaluatingTrainer, ResumableTrainer, GRPOTrainer):
    """GRPO (arXiv 2402.03300, equation 3 as R1-AQA uses it) on questions of any kind.

    A subclass says what the model is given of a question (`_inputs_of`), which columns its rewards and the table of
    completions see (`_columns`, `_noted`), and how a model is prepared for sharing (`_prepare_model`).

    Args:
        model: a Qwen2AudioForConditionalGeneration or Qwen2ForCausalLM, or a PEFT model of one.
        args: the configuration; `args.sharing` switches the sharing.
        questions: the training questions, equal where they are the same and each with an `id` of its own.
        processing_class: the model's processor or tokenizer.
        reward_funcs: names, each with a reward function or a reward model as TRL takes them.
        **kwargs: passed on (`evaluator` to EvaluatingTrainer, `peft_config` and others to GRPOTrainer).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SharedPrefixGRPOConfig,
        questions: Sequence[Any],
        processing_class: ProcessorMixin | PreTrainedTokenizerBase,
        reward_funcs: Sequence[tuple[str, RewardFunction | PreTrainedModel]],
        **kwargs: Any,
    ):
        self.args: SharedPrefixGRPOConfig
        self.model: torch.nn.Module
        self.processing_class: Any
        self.share = args.sharing == "auto"
        self.clock = StepClock()
        self._questions = questions
        self._index_of = {question.id: index for index, question in enumerate(questions)}
        self._batch_of_step = 0  # batches of the optimizer step that this process has finished
        self.record = StepRecord()
        self._completions: CompletionTable | None = None
        # an evaluation between generation and loss must not replace the training batch: one a mode
        self._inputs: dict[str, PromptInputs] = {}
        self._batch: Batch | None = None
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[judge for _, judge in reward_funcs],
            train_dataset=rows_of(questions, self._columns()),
            processing_class=processing_class,
            **kwargs,
        )
        for index, (name, judge) in enumerate(reward_funcs):
            if isinstance(judge, torch.nn.Module):  # TRL calls it by its folder
                self.reward_func_names[index] = name
        for wrapped in (self.model, self.ref_model):  # TRL loads the reference itself
            if wrapped is not None:
                self._prepare_model(self._base_of(wrapped))
        self.add_callback(_StepMonitor(self))

    def _base_of(self, wrapped: torch.nn.Module) -> PreTrainedModel:
        """A model without what accelerate, DeepSpeed and PEFT have put around it."""
        model = self.accelerator.unwrap_model(wrapped)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def _columns(self) -> dict[str, Callable[[Any], Any]]:
        """What TRL and the rewards read of a question, by name: `prompt`, `task` and others."""
        raise NotImplementedError

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the table of completions shows of a row's question, by column."""
        raise NotImplementedError

    def _inputs_of(self, questions: Sequence[Any]) -> PromptInputs:
        """What the model is given of U questions, each computed once."""
        raise NotImplementedError

    def _prepare_model(self, model: PreTrainedModel) -> None:
        """Let the policy's or the reference's model (not wrapped by PEFT) share prefixes."""
        raise NotImplementedError

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
        output, batch = self._rollout(inputs)
        if self.model.training:
            figures = {
                f"rewards/{name}": column
                for name, column in zip(self.reward_func_names, output["rewards"].T, strict=True)
            }
            figures["reward"] = self._total(output["rewards"])
            self.record.add_rewards(figures, [row["task"] for row in inputs])
            if self.args.dynamic_sampling:
                output, batch = self._replace_silent_groups(inputs, output, batch)
            kept = better_completions(
                self._total(output["rewards"]),
                self.num_generations,
                self.args.advantage_filter,
                self.args.advantage_top_fraction,
            )
            self._note_completions(inputs, output)
            # they count as zero in the mean over completions, and are not computed
            output["completion_mask"] = output["completion_mask"] * kept[:, None]
        del output["rewards"]
        self._inputs[self._mode] = batch.inputs
        # TRL shuffles the rows of every tensor in `output`; the group index must travel with them
        output["group"] = batch.group
        return output

    def _rollout(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], Batch]:
        """Sample and judge completions of whole groups of rows: TRL's output, and each row's `rewards` [N, R] in it."""
        num_generations: int = self.num_generations if self.model.training else self.num_generations_eval
        questions, group = group_rows([row["question"] for row in rows], num_generations)
        with self.clock("audio"):
            inputs = self._inputs_of(questions)
        batch = Batch(inputs, group.to(self.accelerator.device))
        with self._working_on(batch):
            output: dict[str, Any] = super()._generate_and_score_completions(rows)
        output["rewards"] = self._rewards
        return output, batch

    def _total(self, rewards: torch.Tensor) -> torch.Tensor:
        """Weighted sums [N] of rewards [N, R], as TRL forms them: rows of equal rewards have equal sums, to the bit."""
        return (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)

    def _replace_silent_groups(
        self, rows: list[dict[str, Any]], output: dict[str, Any], batch: Batch
    ) -> tuple[dict[str, Any], Batch]:
        """Ask further questions in the place of those whose completions all got the same reward.

        Every process asks as many as the one that needs most, since gathering and ZeRO-3 take all of them. What is
        logged of rewards and completions stays that of the questions that were asked first.
        """
        batches = self.accelerator.num_processes * self.args.gradient_accumulation_steps  # of a step
        budget = self.args.dynamic_sampling // batches
        place = (self.state.global_step, self._batch_of_step, self.accelerator.process_index)
        asked = sorted({self._index_of[row["question"].id] for row in rows})
        left = len(self._questions) - len(rows) // self.num_generations
        metrics = self._metrics["train"]
        logged = {name: list(values) for name, values in metrics.items()}
        drawn = replaced = 0
        while True:
            silent = (~groups_with_signal(self._total(output["rewards"]), self.num_generations)).sum()
            wanted = min(int(self.accelerator.gather(silent[None]).max()), budget - drawn, left - drawn)
            if wanted <= 0:
                break
            indices = draw_further(len(self._questions), asked, wanted, self.args.seed, *place, drawn)
            further_rows = [self.train_dataset[index] for index in indices for _ in range(self.num_generations)]
            further, further_batch = self._rollout(further_rows)
            speaking, teaching = (
                groups_with_signal(self._total(each["rewards"]), self.num_generations) for each in (output, further)
            )
            pairs = list(zip(indices_of(~speaking), indices_of(teaching), strict=False))
            output = replace_groups(output, further, pairs, self.num_generations, self._tokenizer.pad_token_id)
            batch = Batch(batch.inputs.with_questions_of(further_batch.inputs, pairs), batch.group)
            for mine, theirs in pairs:
                first, others = mine * self.num_generations, theirs * self.num_generations
                rows[first : first + self.num_generations] = further_rows[others : others + self.num_generations]
            asked += indices
            drawn, replaced = drawn + wanted, replaced + len(pairs)
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()
        metrics.clear()
        metrics.update(logged)
        totals = self.accelerator.reduce(torch.tensor([drawn, replaced], device=self.accelerator.device), "sum")
        for name, total in zip(("drawn", "replaced"), totals.tolist(), strict=True):
            metrics[f"dynamic_sampling/{name}"].append(total)
        return output, batch

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """Rewards [N of all processes, R]; those of this process's rows are kept for `_rollout`."""
        with self.clock("reward"):
            rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = rewards[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        return rewards

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.clock("backward"):  # what is left of it after the parts inside; DeepSpeed's optimizer step too
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._batch_of_step += 1
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self.clock("other"):
            return super()._prepare_inputs(generation_batch)

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
        with (
            self.clock("generation"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            completion_ids = generate(
                model,
                batch.inputs,
                batch.group,
                self.generation_config,
                share=self.share,
                autocast=self.accelerator.autocast(),
            )
        self.record.clips += len(batch.inputs.prompt_ids)
        self.record.tokens += sum(map(len, completion_ids))
        return completion_ids, None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self.clock("forward"), self._working_on(Batch(self._inputs[self._mode], inputs["group"])):
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
        with self.clock("forward" if torch.is_grad_enabled() else "reference"):
            log_probs, entropy = score(model, input_ids, attention_mask, logits_to_keep)
        return log_probs, entropy if compute_entropy else None, None

    def _score_shared(
        self, model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One packed row a group, one forward of the wrapped model: DDP, ZeRO and PEFT hooks fire as usual."""
        batch = self._current_batch
        rows = attention_mask[:, -completion_length:].any(dim=1).nonzero().squeeze(1)  # the others are masked out
        rows = rows if len(rows) else rows.new_zeros(1)  # every process must call the model
        present, group = batch.group[rows].unique(return_inverse=True)
        packed = pack_groups(
            input_ids[rows], attention_mask[rows], group, completion_length, self._tokenizer.pad_token_id
        )
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

        def of_rows(values: torch.Tensor) -> torch.Tensor:
            unpacked = packed.unpack(values[0])
            return unpacked.new_zeros(len(input_ids), completion_length).index_copy(0, rows, unpacked)

        entropy = getattr(output, "entropy", None)
        return of_rows(output.log_probs), None if entropy is None else of_rows(entropy)

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

    def _note_completions(self, rows: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """Write the first group of a logged step's first batch into the run folder's table."""
        step = self.state.global_step + 1
        logged = step % self.state.logging_steps == 0 and self._batch_of_step == 0
        if not (logged and self.accelerator.is_main_process):
            return
        if self._completions is None:
            columns = [*self._noted(rows[0]), "completion", *self.reward_func_names, "advantage"]
            folder = Path(str(self.args.output_dir))
            self._completions = CompletionTable(folder / "completions.csv", columns, self.state.global_step)
        group = slice(0, self.num_generations)
        texts = self._tokenizer.batch_decode(output["completion_ids"][group], skip_special_tokens=True)
        self._completions.add(
            step,
            [
                {
                    **self._noted(row),
                    "completion": text,
                    "advantage": round(advantage, 4),
                    **dict(zip(self.reward_func_names, rewards, strict=True)),
                }
                for row, text, advantage, rewards in zip(
                    rows[group],
                    texts,
                    output["advantages"][group].tolist(),
                    output["rewards"][group].tolist(),
                    strict=True,
                )
            ],
        )

    def begin_step(self) -> None:
        """Start the clock, so that what lies between steps (saving, evaluating) is left out."""
        self._batch_of_step = 0
        self.clock.restart()

    def log_step(self) -> None:
        """Add what the step that ends now took and gave to the metrics."""
        seconds, shares = self.clock.read()
        figures = {f"time/{part}": share for part, share in shares.items()} | self.record.read(seconds)
        for name, value in figures.items():
            self._metrics["train"][name].append(value)

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


class AudioGRPOTrainer(SharedPrefixGRPOTrainer):
    """GRPO for multiple-choice questions about audio clips.

    Args:
        model: a Qwen2AudioForConditionalGeneration, or a PEFT model of one.
        args: the configuration; `args.reward_funcs` names the rewards.
        questions: the training questions.
        processing_class: the model's processor.
        prompt_style, audio_channel: how the questions are asked and heard.
        **kwargs: passed on.
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
        self.prompt_style, self.audio_channel = prompt_style, audio_channel
        # TRL suppresses `config.image_token_id` in sampling; a sampled audio token would break the feature count alike
        model.config.image_token_id = model.config.audio_token_id
        rewards = [(name, REWARDS[name]) for name in args.reward_funcs]
        super().__init__(model, args, questions, processing_class, rewards, **kwargs)
        del model.config.image_token_id
        encoder = self._base_of(self.model).model.audio_tower
        self._encoded: EncodedAudio | None = None
        if self.share and not any(parameter.requires_grad for parameter in encoder.parameters()):
            self._encoded = EncodedAudio(Path(str(args.output_dir)) / ENCODED, encoder, self.accelerator)

    def _columns(self) -> dict[str, Callable[[AudioQuestion], Any]]:
        return question_columns(self.prompt_style)

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        question: AudioQuestion = row["question"]
        return {
            "id": question.id,
            "task": question.task,
            "question": question.question,
            "answer": question.answer,
        }

    def _inputs_of(self, questions: Sequence[AudioQuestion]) -> ModelInputs:
        inputs = question_inputs(self.processing_class, questions, self.prompt_style, self.audio_channel)
        return inputs if self._encoded is None else self._encoded(inputs, questions, self.audio_channel)

    def _prepare_model(self, model: PreTrainedModel) -> None:
        prepare_for_sharing(model)


class TextGRPOTrainer(SharedPrefixGRPOTrainer):
    """GRPO for text prompts.

    Args:
        model: a Qwen2ForCausalLM, or a PEFT model of one.
        args: the configuration.
        questions: the prompts; every column that any of them has reaches the rewards, None where one has it not.
        processing_class: the model's tokenizer.
        reward_funcs: reward functions and reward models.
        **kwargs: passed on, among them `reward_processing_classes`, the reward models' tokenizers.
    """

    def _columns(self) -> dict[str, Callable[[TextPrompt], Any]]:
        def column(name: str) -> Callable[[TextPrompt], Any]:
            return lambda prompt: prompt.columns.get(name)

        names = {"task"} | {name for prompt in self._questions for name in prompt.columns}
        return {name: column(name) for name in sorted(names)} | {"prompt": lambda prompt: prompt.messages}

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt: TextPrompt = row["question"]
        return {"id": prompt.id, "prompt": prompt.messages[-1]["content"]}

    def _inputs_of(self, questions: Sequence[TextPrompt]) -> PromptInputs:
        return text_inputs(self.processing_class, [prompt.messages for prompt in questions])

    def _prepare_model(self, model: PreTrainedModel) -> None:
        """TRL has loaded the reference from the policy's folder, without the run's own `rope_parameters`."""
        own, wanted = model.config, self._base_of(self.model).config
        if own.rope_parameters != wanted.rope_parameters:
            own.rope_parameters, own.max_position_embeddings = wanted.rope_parameters, wanted.max_position_embeddings
            model.model.rotary_emb = type(model.model.rotary_emb)(own).to(model.device)
        share_prefixes(model)


class _StepMonitor(TrainerCallback):
    """Tells the trainer when an optimizer step begins and ends, and what of it is the optimizer's."""

    def __init__(self, trainer: SharedPrefixGRPOTrainer):
        self.trainer = trainer
        self._optimizer = ExitStack()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer.enter_context(self.trainer.clock("optimizer"))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer.close()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.log_step()


def question_columns(prompt_style: str) -> dict[str, Callable[[AudioQuestion], Any]]:
    """What TRL and the rewards read of an audio question, by name."""
    return {
        "prompt": lambda question: build_messages(question, prompt_style),
        "answer": lambda question: question.answer,
        "choices": lambda question: list(question.choices),
        "task": lambda question: question.task,
        "prompt_style": lambda question: prompt_style,
    }


def rows_of(questions: Sequence[Any], columns: dict[str, Callable[[Any], Any]]) -> Dataset:
    """A Dataset with a row a question: the question itself and these columns of it.

    The rows are made when they are read: kept in Arrow, a message's text part would get an `audio` key that is None,
    which the chat template counts as a second clip.
    """

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        picked = [questions[index] for index in batch["index"]]
        return {name: list(map(column, picked)) for name, column in columns.items()} | {"question": picked}

    return Dataset.from_dict({"index": list(range(len(questions)))}).with_transform(rows)


def group_rows(questions: Sequence[Any], num_generations: int) -> tuple[list[Any], torch.Tensor]:
    """The U distinct questions of N = U * num_generations consecutive rows, and the question index of each row [N].

    Groups are the sampler's consecutive rows, never guessed from equal text: neighbours may ask the same about
    different clips.

    Raises:
        ValueError: the rows are not whole groups of one question (and its one clip).
    """
    if len(questions) % num_generations:
        raise ValueError(f"{len(questions)} rows are not whole groups of {num_generations}")
    distinct = list(questions[::num_generations])
    group = torch.arange(len(distinct)).repeat_interleave(num_generations)
    for row, question in enumerate(questions):
        leader = distinct[row // num_generations]
        if question != leader:
            raise ValueError(f"row {row} belongs to question {question.id}, its group to {leader.id}")
    return distinct, group
