"""SharedPrefixGRPOTrainer: TRL's GRPOTrainer with one computation of the prompt, and of its clip, a group.

AudioGRPOTrainer and TextGRPOTrainer say what a question is; everything else is the same for both.

TRL keeps configuration, reward calls, advantages, loss types, KL, logging, checkpoints, DeepSpeed and PEFT. What this
subclass replaces is how a batch is tokenised, generated and scored. TRL is pinned exactly, since private methods are
overridden: read them in `trl/trainer/grpo_trainer.py` before another version is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from r1_aqa_repro.data.conversations import TextPrompt
from r1_aqa_repro.data.questions import AudioQuestion
from r1_aqa_repro.grpo.answer_probability import AnswerProbability
from r1_aqa_repro.grpo.monitor import StepClock, StepMonitor, StepRecord, answer_shares
from r1_aqa_repro.grpo.rollout import Rollout, group_rows, question_columns, rows_of
from r1_aqa_repro.grpo.scoring import score_plain, score_shared
from r1_aqa_repro.grpo.selection import EpochRepeatSampler, StdFilter, draw_further
from r1_aqa_repro.model.encoded_audio import EncodedAudio
from r1_aqa_repro.model.generation import complete
from r1_aqa_repro.model.inputs import ModelInputs, PromptInputs, process, text_inputs
from r1_aqa_repro.model.loading import base_of, check_reference, prepare_for_sharing, widen_adapter
from r1_aqa_repro.model.shared_attention import share_prefixes
from r1_aqa_repro.model.text_loading import take_rope
from r1_aqa_repro.rewards.rules import REWARDS, RewardFunction, completion_text, finite, require_finite
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.clips import Clips, ClipWatch, as_heard
from r1_aqa_repro.run.completion_table import CompletionTable
from r1_aqa_repro.run.config import AudioGRPOConfig, SharedPrefixGRPOConfig
from r1_aqa_repro.run.evaluating import EvaluatingTrainer
from r1_aqa_repro.run.part_rates import PartRatesTrainer


class SharedPrefixGRPOTrainer(EvaluatingTrainer, ResumableTrainer, GRPOTrainer):
    """GRPO (arXiv 2402.03300, equation 3 as R1-AQA uses it) on questions of any kind.

    A subclass says which columns of a question TRL and the rewards read (`_columns`), what the model is given of it
    (`_inputs_of`), what the table of completions shows of it (`_noted`), and how a model is prepared for sharing
    (`_prepare_model`). A batch travels as a `Rollout`.

    Args:
        model: a Qwen2AudioForConditionalGeneration or Qwen2ForCausalLM, or a PEFT model of one.
        args: the configuration; `args.sharing` switches the sharing.
        questions: the training questions, equal if they are the same, each with an `id` of its own.
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
        self.clock, self.record = StepClock(), StepRecord()
        self._questions = questions
        self._index_of = {question.id: index for index, question in enumerate(questions)}
        self._completions = CompletionTable(args.output_dir)
        self._at_work: list[Rollout] = []
        reward_funcs = AnswerProbability.in_its_place(self, reward_funcs)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[one if isinstance(one, torch.nn.Module) else finite(name, one) for name, one in reward_funcs],
            train_dataset=rows_of(questions, self._columns),
            processing_class=processing_class,
            **kwargs,
        )
        # TRL calls a function by its `__name__` and a model by its folder; here both have the configuration's name
        self.reward_func_names = [name for name, _ in reward_funcs]
        wrapped = [model for model in (self.model, self.ref_model) if model is not None]
        models = [base_of(self.accelerator.unwrap_model(model)) for model in wrapped]
        if self.ref_model is not None:  # TRL loads it itself
            check_reference(*models)
        for each in models:
            self._prepare_model(each)
        widen_adapter(self.accelerator.unwrap_model(self.model))
        self.add_callback(StepMonitor(self.clock, self.record, self._add_figures))
        if (std_filter := StdFilter.of(args, self.accelerator)) is not None:
            self.add_callback(std_filter)
        self.std_filter = std_filter

    def _columns(self, question: Any) -> dict[str, Any]:
        """What TRL and the rewards read of a question, by name: `prompt` (its messages), `task` and others."""
        raise NotImplementedError

    def _inputs_of(self, rows: Sequence[dict[str, Any]]) -> PromptInputs:
        """What the model is given of U questions, from a row of each."""
        raise NotImplementedError

    def _lost(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether each of U questions, whose inputs have just been made, could not be put to the model as it is."""
        return [False] * len(rows)

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the table of completions shows of a row's question, by column."""
        raise NotImplementedError

    def _prepare_model(self, model: PreTrainedModel) -> None:
        """Let the policy's or the reference's model (not wrapped by PEFT) share prefixes."""
        raise NotImplementedError

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochRepeatSampler:
        sampler: RepeatSampler = super()._get_train_sampler(dataset)
        sampler.__class__ = EpochRepeatSampler
        return sampler

    # --- Sampling and rewarding

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollout = self._roll_out(inputs)
        if self.model.training:
            by_name = zip(self.reward_func_names, rollout.rewards.T, strict=True)
            reward = rollout.reward.masked_fill(rollout.lost, torch.nan)
            figures = {f"rewards/{name}": column for name, column in by_name} | {"reward": reward}
            self.record.add_rewards(figures, [row["task"] for row in rollout.rows])
            if self.args.dynamic_sampling:
                self._replace_zero_variance_groups(rollout)
            self._note_completions(rollout)
            kept = rollout.kept(self.args.advantage_filter, self.args.advantage_top_fraction)
            # the others count as zero in the mean over completions, and are not computed
            rollout.output["completion_mask"] = rollout.output["completion_mask"] * kept[:, None]
            self.record.batches += 1
        # TRL shuffles the rows of everything in its output: what a row belongs to travels with it
        return rollout.output | {"group": rollout.group, "rollout": [rollout] * len(inputs)}

    def _roll_out(self, rows: list[dict[str, Any]]) -> Rollout:
        """Sample completions of whole groups of rows, and reward them."""
        num_generations: int = self.num_generations if self.model.training else self.num_generations_eval
        group = group_rows([row["question"] for row in rows], num_generations)
        with self.clock("audio"):
            inputs = self._inputs_of(rows[::num_generations])
        rollout = Rollout(inputs, group.to(self.accelerator.device), list(rows))
        rollout.lost = torch.tensor(self._lost(rows[::num_generations]), device=rollout.group.device)[rollout.group]
        with self._working_on(rollout):
            rollout.output = super()._generate_and_score_completions(rows)
        # no advantage, as TRL gives it to rows without a reward, and no KL; the others' share in the mean stays
        rollout.output["completion_mask"] = rollout.output["completion_mask"] * ~rollout.lost[:, None]
        return rollout

    def _replace_zero_variance_groups(self, rollout: Rollout) -> None:
        """Ask further questions in the place of those whose completions all got the same reward.

        Every process asks as many as the one that needs most, since gathering and ZeRO-3 take all of them. What is
        logged of rewards and completions stays that of the questions that were asked first.
        """
        batches = self.accelerator.num_processes * self.args.gradient_accumulation_steps  # of a step
        budget = self.args.dynamic_sampling // batches
        place = (self.state.global_step, self.record.batches, self.accelerator.process_index)
        asked = sorted({self._index_of[row["question"].id] for row in rollout.rows})
        left = len(self._questions) - len(rollout.rows) // self.num_generations
        metrics = self._metrics["train"]
        logged = {name: list(values) for name, values in metrics.items()}
        drawn = replaced = 0
        while True:
            missing = (~rollout.informative).sum()
            wanted = min(int(self.accelerator.gather(missing[None]).max()), budget - drawn, left - drawn)
            if wanted <= 0:
                break
            indices = draw_further(len(self._questions), asked, wanted, self.args.seed, *place, drawn)
            rows = [row for row in map(self.train_dataset.__getitem__, indices) for _ in range(self.num_generations)]
            replaced += rollout.take_informative_groups(self._roll_out(rows), self._tokenizer.pad_token_id)
            asked += indices
            drawn += wanted
        rollout.output["num_items_in_batch"] = self.accelerator.gather(rollout.output["completion_mask"].sum()).sum()
        metrics.clear()
        metrics.update(logged)
        totals = self.accelerator.reduce(torch.tensor([drawn, replaced], device=self.accelerator.device), "sum")
        names = ("dynamic_sampling/drawn", "dynamic_sampling/replaced")
        self._add_figures(dict(zip(names, totals.tolist(), strict=True)))

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """Rewards [N of all processes, R], NaN for lost questions; the rollout keeps those of this process's rows."""
        with self.clock("reward"):
            rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rollout = self._at_work[-1]
        own = rewards[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        for name, function, column in zip(self.reward_func_names, self.reward_funcs, own.T, strict=True):
            if isinstance(function, torch.nn.Module):  # TRL has asked it by itself
                require_finite(name, column.tolist(), completions)
        rewards[self.accelerator.gather(rollout.lost.long()).bool()] = torch.nan
        rollout.rewards = own.clone()
        rollout.reward = (rollout.rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        if self.std_filter is not None:
            asked = rollout.reward[~rollout.lost], self.num_generations
            rollout.least_std = self.std_filter.count(*asked, self.state.global_step + 1, self._add_figures)
        return rewards

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        rollout = self._at_work[-1]
        return [rollout.inputs.prompt_ids[index] for index in rollout.group.tolist()], None, {}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        **_: Any,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        rollout = self._at_work[-1]
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
            completions = complete(
                model,
                rollout.inputs,
                rollout.group,
                self.generation_config,
                share=self.share,
                autocast=self.accelerator.autocast(),
                cuda_graphs=self.args.cuda_graphs,
            )
        self.record.clips += len(rollout.inputs.prompt_ids)
        self.record.tokens += sum(map(len, completions.token_ids))
        return completions.token_ids, completions.log_probs

    # --- Scoring and the loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.clock("backward"):  # what is left of it after the parts inside; DeepSpeed's optimizer step too
            return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self.clock("other"):
            return super()._prepare_inputs(generation_batch)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        rollout = replace(inputs["rollout"][0], group=inputs["group"])  # in the order of the shuffled rows
        with self.clock("forward"), self._working_on(rollout):
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        if (sampled := inputs.get("sampling_per_token_logps")) is not None:
            self._compare_logps(sampled, inputs.get("old_per_token_logps", rollout.scored_logps), inputs)
        return loss

    def _compare_logps(self, sampled: torch.Tensor, scored: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Log how far the log-probs of the sampled tokens are from those that the same weights give them when scored.

        Sampling and scoring compute them in different ways; more than rounding between them means that one of the two
        is wrong, and that the gradient belongs to other completions than those that were sampled.
        """
        mask = inputs["completion_mask"]
        apart = ((sampled - scored).abs() * mask).sum() / mask.sum().clamp(min=1)
        self._add_figures({"sampling/logp_difference": self.accelerator.gather(apart).mean().item()})

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
        score = score_shared if self.share else score_plain
        with self.clock("forward" if torch.is_grad_enabled() else "reference"), self.accelerator.autocast():
            log_probs, entropy = score(
                model, self._at_work[-1], input_ids, attention_mask, logits_to_keep, self._tokenizer.pad_token_id
            )
        if torch.is_grad_enabled():
            self._at_work[-1].scored_logps = log_probs.detach()
        return log_probs, entropy if compute_entropy else None, None

    # --- What is logged, and the batch at work

    def _note_completions(self, rollout: Rollout) -> None:
        """Write the first group of a logged step's first batch into the run folder's table."""
        step = self.state.global_step + 1
        if step % self.state.logging_steps or self.record.batches or not self.accelerator.is_main_process:
            return
        group = slice(0, self.num_generations)
        texts = self._tokenizer.batch_decode(rollout.output["completion_ids"][group], skip_special_tokens=True)
        advantages, rewards = rollout.output["advantages"][group].tolist(), rollout.rewards[group].tolist()
        self._completions.add(
            step,
            [
                self._noted(row)
                | {"completion": text}
                | dict(zip(self.reward_func_names, values, strict=True))
                | {"advantage": round(advantage, 4)}
                for row, text, values, advantage in zip(rollout.rows[group], texts, rewards, advantages, strict=True)
            ],
        )

    def _add_figures(self, figures: dict[str, float]) -> None:
        """To what TRL averages and logs with the next logged step."""
        for name, value in figures.items():
            self._metrics["train"][name].append(value)

    @contextmanager
    def _working_on(self, rollout: Rollout) -> Iterator[None]:
        """Let the methods that TRL calls without their batch find it."""
        self._at_work.append(rollout)
        try:
            yield
        finally:
            self._at_work.pop()


class AudioGRPOTrainer(PartRatesTrainer, SharedPrefixGRPOTrainer):
    """GRPO for multiple-choice questions about audio clips.

    Args:
        model: a Qwen2AudioForConditionalGeneration, or a PEFT model of one.
        args: the configuration; `args.reward_funcs` names the rewards.
        questions: the training questions.
        processing_class: the model's processor.
        prompt_style, audio_channel: how questions are asked and clips are read.
        clips: of the run; by default of one whose clips nobody has measured.
        weak_weight: what multiplies the advantages of questions labelled weak; None leaves them.
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
        clips: Clips | None = None,
        weak_weight: float | None = None,
        **kwargs: Any,
    ):
        self.prompt_style, self.audio_channel, self.weak_weight = prompt_style, audio_channel, weak_weight
        self.clips = clips or Clips(Path(str(args.output_dir)))
        # TRL suppresses `config.image_token_id` in sampling; a sampled audio token breaks the count of features too
        model.config.image_token_id = model.config.audio_token_id
        rewards = [(name, REWARDS[name]) for name in args.reward_funcs]
        super().__init__(model, args, questions, processing_class, rewards, **kwargs)
        del model.config.image_token_id
        encoder = base_of(self.accelerator.unwrap_model(self.model)).model.audio_tower
        self.add_callback(ClipWatch(self.clips, len(questions)))
        self._encoded = EncodedAudio.of_run(args.output_dir, encoder, self.accelerator) if self.share else None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.weak_weight is not None:
            rollout: Rollout = output["rollout"][0]
            rollout.weigh(self.weak_weight)
            output["advantages"] = rollout.output["advantages"]
        return output

    def _columns(self, question: AudioQuestion) -> dict[str, Any]:
        return question_columns(question, self.prompt_style)

    def _inputs_of(self, rows: Sequence[dict[str, Any]]) -> ModelInputs:
        questions, step = [row["question"] for row in rows], self.state.global_step + 1
        clips = [self.clips.hear(question, self.audio_channel, self.processing_class, step) for question in questions]
        inputs = process(self.processing_class, [row["prompt"] for row in rows], [samples for samples, _ in clips])
        self.clips.are_lost(questions, [reason for _, reason in clips], step)
        if self._encoded is None or not self.share:
            return inputs
        heard = [as_heard(question, *clip) for question, clip in zip(questions, clips, strict=True)]
        return self._encoded(inputs, heard, self.audio_channel)

    def _lost(self, rows: Sequence[dict[str, Any]]) -> list[bool]:
        step = self.state.global_step + 1
        return self.clips.are_lost([row["question"] for row in rows], [None] * len(rows), step)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        shares = answer_shares(map(completion_text, completions), [row["choices"] for row in inputs])
        means = self.accelerator.gather(torch.tensor([list(shares.values())], device=rewards.device)).mean(dim=0)
        self._add_figures(dict(zip(shares, means.tolist(), strict=True)))
        return rewards

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        question: AudioQuestion = row["question"]
        return {
            "id": question.id,
            "task": question.task,
            "question": question.question,
            "answer": question.answer,
        }

    def _prepare_model(self, model: PreTrainedModel) -> None:
        prepare_for_sharing(model)


class TextGRPOTrainer(SharedPrefixGRPOTrainer):
    """GRPO for text prompts.

    Args:
        model: a Qwen2ForCausalLM, or a PEFT model of one.
        args: the configuration.
        questions: the prompts; every column that any of them has reaches the rewards, as None for a prompt without it.
        processing_class: the model's tokenizer.
        reward_funcs: reward functions and reward models.
        **kwargs: passed on, among them `reward_processing_classes`, the reward models' tokenizers.
    """

    @cached_property
    def _names(self) -> list[str]:
        return sorted({"task"} | {name for prompt in self._questions for name in prompt.columns})

    def _columns(self, question: TextPrompt) -> dict[str, Any]:
        return {name: question.columns.get(name) for name in self._names} | {"prompt": question.messages}

    def _inputs_of(self, rows: Sequence[dict[str, Any]]) -> PromptInputs:
        return text_inputs(self.processing_class, [row["prompt"] for row in rows])

    def _noted(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["question"].id, "prompt": row["prompt"][-1]["content"]}

    def _prepare_model(self, model: PreTrainedModel) -> None:
        """TRL has loaded the reference from the policy's folder, without the run's own `rope_parameters`."""
        take_rope(model, base_of(self.accelerator.unwrap_model(self.model)).config)
        share_prefixes(model)
