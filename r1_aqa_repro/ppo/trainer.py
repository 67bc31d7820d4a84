"""PPOTrainer: rollout, rewards, advantages, a few epochs of clipped updates; then the next rollout.

Four models take part. The *actor* is the policy that is trained. The *reference*, a frozen copy of where it started,
prices how far it has gone. The *reward* is one or several functions and models of whole completions. The
*critic* predicts, at each token, what reward is still to come; it is what GRPO replaces by comparing completions of
the same prompt. Formulas are in `objectives`; the names of the settings are those of TRL's former PPOTrainer.

Resuming, checkpoints, logging, callbacks and DeepSpeed are those of transformers' Trainer. Its loop is replaced.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import disable_dropout_in_model

from r1_aqa_repro.data.conversations import TextPrompt, answer
from r1_aqa_repro.model.files import make_portable
from r1_aqa_repro.model.generation import generate, sampling_config
from r1_aqa_repro.model.inputs import PromptInputs, attention_mask_left, pad_left, pad_right, text_inputs
from r1_aqa_repro.model.text_loading import load_policy, load_reward_model
from r1_aqa_repro.ppo.actor_critic import ActorCritic, restore_adapter, score_tokens
from r1_aqa_repro.ppo.arguments import PPOArguments
from r1_aqa_repro.ppo.objectives import (
    adapted_kl_coef,
    approximate_kl,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    kl_penalised_rewards,
    whiten,
)
from r1_aqa_repro.ppo.rollout import Answers, Rollout
from r1_aqa_repro.rewards.reward_model import RewardModel
from r1_aqa_repro.rewards.rules import RewardFunction, require_finite
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.completion_table import CompletionTable
from r1_aqa_repro.run.finite_steps import shown_by_gradient

CRITIC = "critic"  # folder inside a checkpoint
_KL_CONTROL = "AdaptiveKL"  # of TrainerState.stateful_callbacks, which every checkpoint holds
_NOTED = 4  # completions of a logged step in completions.csv


@dataclass
class PPOConfig(PPOArguments, TrainingArguments):
    """transformers' TrainingArguments for PPO; the learning rate changes from step to step."""


class PPOTrainer(ResumableTrainer):
    """PPO (arXiv 1707.06347) on text prompts, with the KL penalty in the reward (arXiv 1909.08593, 2203.02155).

    Args:
        policy: a Qwen2ForCausalLM.
        critic: a Qwen2ForSequenceClassification of one output.
        reference: another copy of the policy, which stays as it is; None if policy and critic are PEFT models: it is
            then the policy without its adapter.
        args: the configuration.
        prompts: what is asked; every column that any of them has reaches the reward functions, as None for a prompt
            without it.
        processing_class: the policy's tokenizer.
        reward_funcs: by name; None is the reward of a completion to which one does not apply. The weights are
            `args.reward_weights`.
        held_out: prompts of the evaluation while training.
        **kwargs: passed on to Trainer.
    """

    args: PPOConfig
    model: ActorCritic
    processing_class: PreTrainedTokenizerBase
    optimizer: Any
    control: TrainerControl

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: PreTrainedModel,
        reference: PreTrainedModel | None,
        args: PPOConfig,
        prompts: Sequence[TextPrompt],
        processing_class: PreTrainedTokenizerBase,
        reward_funcs: Mapping[str, RewardFunction],
        held_out: Sequence[TextPrompt] = (),
        **kwargs: Any,
    ):
        disable_dropout_in_model(policy)  # else the same weights would give another ratio than 1
        disable_dropout_in_model(critic)
        kwargs |= {"eval_dataset": list(held_out)} if held_out else {}
        super().__init__(model=ActorCritic(policy, critic), args=args, processing_class=processing_class, **kwargs)
        set_seed(args.seed, device_specific=True)  # Trainer has given every process the same random numbers
        self.reference = None if reference is None else self._frozen(reference)
        self.kl_coef = args.kl_coef
        self.reward_funcs = reward_funcs
        for function in reward_funcs.values():
            if isinstance(function, RewardModel):
                function.model = self._frozen(function.model)
        weights = args.reward_weights or [1.0] * len(self.reward_funcs)
        self.reward_weights = torch.tensor(weights, device=self.accelerator.device)
        self.prompts = prompts
        self._columns = sorted({name for prompt in [*prompts, *held_out] for name in prompt.columns})
        self.generation_config = sampling_config(policy, processing_class, args.max_completion_length, args.temperature)
        self._completions = CompletionTable(args.output_dir)

    def _frozen(self, model: nn.Module) -> nn.Module:
        """A model that is only asked, on its device and, with ZeRO-3, in parts."""
        model.requires_grad_(False)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return model.to(self.accelerator.device).eval()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `args.optim` names, with a learning rate of its own for the critic."""
        if self.optimizer is None:
            optimizer_type, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate, of_critic = self.args.learning_rate, self.args.critic_learning_rate
            rates = {"policy": rate, "critic": rate if of_critic is None else of_critic}
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[str, bool], dict[str, Any]] = {}
            for name, parameter in self.model.named_parameters():
                if not parameter.requires_grad:  # under an adapter
                    continue
                network, decays = name.split(".")[0], name in decayed
                new = {"params": [], "lr": rates[network], "weight_decay": self.args.weight_decay if decays else 0.0}
                groups.setdefault((network, decays), new)["params"].append(parameter)
            self.optimizer = optimizer_type(list(groups.values()), **options)
        return self.optimizer

    # --- The loop

    def _inner_training_loop(
        self, batch_size: int | None = None, resume_from_checkpoint: str | None = None, **_: Any
    ) -> TrainOutput:
        """PPO's steps in the place of Trainer's; what comes before and lies around them is Trainer's."""
        args = self.args
        max_steps = args.max_steps
        if max_steps <= 0:
            max_steps = ceil(args.num_train_epochs * len(self.prompts) / args.prompts_per_step)
        self._init_training_state(max_steps, 1, 1, resume_from_checkpoint, None)
        self._prepare_for_training(max_steps, None, resume_from_checkpoint)
        self._load_rng_state(resume_from_checkpoint)
        self.kl_coef = self.state.stateful_callbacks.get(_KL_CONTROL, {}).get("kl_coef", args.kl_coef)
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        if args.eval_on_start and self.state.global_step == 0:
            self.evaluate()
        while self.state.global_step < max_steps and not self.control.should_training_stop:
            self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
            figures = self._step()
            self.state.global_step += 1
            self.state.epoch = self.state.global_step * args.prompts_per_step / len(self.prompts)
            self.control = self.callback_handler.on_step_end(args, self.state, self.control)
            if self.control.should_log:
                self.log(figures)
            if self.control.should_evaluate:
                self.evaluate()
            if self.control.should_save:
                self._save_checkpoint(self.model_wrapped, None)
                self.control = self.callback_handler.on_save(args, self.state, self.control)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, 0.0, {})

    def _step(self) -> dict[str, float]:
        """One rollout and its updates; what they amounted to, over all processes."""
        began = time.perf_counter()
        rollout, figures = self._roll_out(self._prompts_of_step(self.state.global_step))
        figures |= self._update(rollout)
        if self.args.adap_kl_ctrl:
            kl, target, horizon = figures["kl_per_answer"], float(self.args.target_kl or 0), self.args.horizon
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, target, self.args.prompts_per_step, horizon)
            self.state.stateful_callbacks[_KL_CONTROL] = {"kl_coef": self.kl_coef}  # saved with every checkpoint
        figures["learning_rate"] = self._get_learning_rate()
        self.lr_scheduler.step()
        tokens = self._total(rollout.mask.sum()).item()
        return figures | {"tokens_per_second": tokens / (time.perf_counter() - began)}

    def _prompts_of_step(self, step: int) -> list[TextPrompt]:
        """This process's share of a step's prompts."""
        indices = indices_of_step(step, self.args.prompts_per_step, len(self.prompts), self.args.seed)
        share = len(indices) // self.accelerator.num_processes
        return [self.prompts[index] for index in indices[self.accelerator.process_index * share :][:share]]

    # --- The rollout

    def _roll_out(self, prompts: list[TextPrompt]) -> tuple[Rollout, dict[str, float]]:
        """Sample a completion a prompt, reward it, and work out each token's advantage."""
        args = self.args
        answers = self._answer(prompts)
        mask, scores, values = answers.rows["mask"], answers.scores, answers.values
        log_probs, reference_log_probs = answers.log_probs, answers.reference_log_probs
        rewards = kl_penalised_rewards(scores, log_probs, reference_log_probs, mask, self.kl_coef)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, self._total, keep_mean=True)
        advantages, returns = generalized_advantages(rewards, values, mask, args.gamma, args.lam)
        advantages = whiten(advantages, mask, self._total)
        self._note(prompts, answers)
        figures = self._figures_of(answers) | {
            "kl_coef": self.kl_coef,
            "explained_variance": explained_variance(values, returns, mask, self._total).item(),
        }
        rollout = Rollout(**answers.rows, log_probs=log_probs, values=values, advantages=advantages, returns=returns)
        return rollout, figures

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Sample a completion for each held-out prompt, always by the same random numbers, and log their figures as
        `eval_*`. Training goes on undisturbed."""
        prompts, process = list(self.eval_dataset), self.accelerator.process_index
        share = ceil(len(prompts) / self.accelerator.num_processes)  # the same for all: they generate together
        places = range(process * share, (process + 1) * share)
        devices = [] if self.accelerator.device.type == "cpu" else [self.accelerator.device]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed + process)
            answers = self._answer([prompts[place % len(prompts)] for place in places])
        figures = self._figures_of(answers, counts=torch.tensor([place < len(prompts) for place in places]))
        figures = {f"eval_{name}": value for name, value in figures.items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _figures_of(self, answers: Answers, counts: torch.Tensor | None = None) -> dict[str, float]:
        """Means over the answers of all processes; of this process's those that count."""
        counts = torch.ones(len(answers.scores), dtype=torch.bool) if counts is None else counts
        mask = answers.rows["mask"][counts]
        kl = (answers.log_probs - answers.reference_log_probs)[counts].sum(dim=1)
        by_name = zip(self.reward_funcs, answers.by_function[counts].T, strict=True)
        return {f"rewards/{name}": self._mean(values) for name, values in by_name} | {
            "reward": self._mean(answers.scores[counts]),
            "kl": (self._total(kl.sum()) / self._total(mask.sum())).item(),
            "kl_per_answer": self._mean(kl),
            "completions/mean_length": self._mean(mask.sum(dim=1)),
            "completions/ended": self._mean(answers.ended[counts]),
        }

    def _answer(self, prompts: list[TextPrompt]) -> Answers:
        """Sample a completion a prompt, and have it judged by rewards, reference and critic."""
        args, device, pad = self.args, self.accelerator.device, self.processing_class.pad_token_id
        self.model_wrapped.eval()
        inputs = text_inputs(self.processing_class, [prompt.messages for prompt in prompts])
        completion_ids = self._generate(inputs)
        ended = torch.tensor([ids[-1] in self.generation_config.eos_token_id for ids in completion_ids], device=device)
        by_function = self._rewards(prompts, completion_ids)
        scores = (by_function * self.reward_weights).nansum(dim=1) - (args.missing_eos_penalty or 0.0) * ~ended

        completion_mask = pad_right([[1] * len(ids) for ids in completion_ids], 0)
        rows = {
            "input_ids": torch.cat([pad_left(inputs.prompt_ids, pad), pad_right(completion_ids, pad)], 1).to(device),
            "attention_mask": torch.cat([attention_mask_left(inputs.prompt_ids), completion_mask], 1).to(device),
            "mask": completion_mask.bool().to(device),
        }
        log_probs, reference_log_probs, values = self._score(**rows)
        return Answers(rows, completion_ids, by_function, scores, ended, log_probs, reference_log_probs, values)

    def _generate(self, inputs: PromptInputs) -> list[list[int]]:
        """The ids of a completion a prompt, each with its end of sequence unless it was cut off."""
        completion_ids: list[list[int]] = []
        at_once = self.args.local_rollout_forward_batch_size or self.args.max_prompts_per_device
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            for start in range(0, len(inputs.prompt_ids), at_once):
                batch = PromptInputs(inputs.prompt_ids[start : start + at_once])
                completion_ids += generate(
                    model.policy,
                    batch,
                    torch.arange(len(batch.prompt_ids)),
                    self.generation_config,
                    share=False,  # there is nothing to share: one completion a prompt
                    autocast=self.accelerator.autocast(),
                )
        return completion_ids

    def _score(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """The completions' log-probs by policy and reference, and their values by the critic: [N, C], 0 on padding."""
        length, temperature = mask.size(1), self.args.temperature
        parts = []
        with torch.no_grad(), self.accelerator.autocast():
            for rows in torch.arange(len(mask)).split(self.args.per_device_train_batch_size):
                inputs = input_ids[rows], attention_mask[rows], length, temperature
                log_probs, _, values = self.model_wrapped(*inputs)
                with nullcontext() if self.reference is not None else self.model.policy.disable_adapter():
                    reference = self.model.policy if self.reference is None else self.reference
                    parts.append((log_probs, score_tokens(reference, *inputs)[0], values))
        return [torch.cat(part).masked_fill(~mask, 0.0) for part in zip(*parts, strict=True)]

    def _rewards(self, prompts: list[TextPrompt], completion_ids: list[list[int]]) -> torch.Tensor:
        """Rewards [N, R] of each completion by each function; NaN if one does not apply to it."""
        texts = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        columns = {name: [prompt.columns.get(name) for prompt in prompts] for name in self._columns} | {
            "prompts": [prompt.messages for prompt in prompts],
            "completions": [answer(text) for text in texts],
            "completion_ids": completion_ids,
        }
        rewards = [require_finite(name, function(**columns), texts) for name, function in self.reward_funcs.items()]
        known = [[float("nan") if value is None else value for value in values] for values in rewards]
        return torch.tensor(known, device=self.accelerator.device).T

    # --- The updates

    def _update(self, rollout: Rollout) -> dict[str, float]:
        """`num_ppo_epochs` passes over the rollout, each in `num_mini_batches` updates; means over all of them."""
        args, model = self.args, self.model_wrapped
        model.train()
        # without a data loader here, that of an earlier training in this process must not say when to synchronise
        accumulation = {"num_steps": args.gradient_accumulation_steps, "sync_with_dataloader": False}
        self.accelerator.gradient_state.plugin_kwargs |= accumulation
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.accelerator.device))
        norms = []
        for _ in range(args.num_ppo_epochs):
            for minibatch in torch.randperm(len(rollout)).split(len(rollout) // args.num_mini_batches):
                tokens = self._total(rollout.mask[minibatch].sum())
                for rows in minibatch.split(args.per_device_train_batch_size):
                    with self.accelerator.accumulate(model):
                        terms = self._loss_terms(rollout[rows])
                        # the mean over the minibatch's tokens on all processes: what is divided by the number of
                        # processes (DDP) and of accumulation steps (accelerate) is multiplied by them first
                        scale = self.accelerator.num_processes * args.gradient_accumulation_steps / tokens
                        self.accelerator.backward(shown_by_gradient(self._loss(terms) * scale))
                        if self.accelerator.sync_gradients:
                            bound = args.max_grad_norm or inf  # 0: no clipping, as for Trainer and DeepSpeed
                            norms.append(float(self.accelerator.clip_grad_norm_(model.parameters(), bound)))
                            if not self.may_be_taken(norms[-1]):
                                self.optimizer.zero_grad()
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                    for name, term in terms.items():
                        sums[name] += term.detach()
        seen = args.num_ppo_epochs * self._total(rollout.mask.sum())
        figures = {name: (self._total(total) / seen).item() for name, total in sums.items()}
        return figures | {"grad_norm": sum(norms) / len(norms)}

    def _loss_terms(self, batch: Rollout) -> dict[str, torch.Tensor]:
        """Sums over the tokens of a batch of completions."""
        args = self.args
        log_probs, entropies, values = self.model_wrapped(
            batch.input_ids, batch.attention_mask, batch.mask.size(1), args.temperature, args.entropy_coef != 0
        )
        log_probs = log_probs.masked_fill(~batch.mask, 0.0)  # the ratio of padding might overflow
        policy, policy_clipped = clipped_policy_loss(log_probs, batch.log_probs, batch.advantages, args.cliprange)
        value, value_clipped = clipped_value_loss(values, batch.values, batch.returns, args.cliprange_value)
        terms = {
            "loss/policy": policy,
            "loss/value": value,
            "entropy": entropies,
            "approx_kl": approximate_kl(log_probs, batch.log_probs),
            "clip_fraction/policy": policy_clipped.float(),
            "clip_fraction/value": value_clipped.float(),
        }
        return {name: term.masked_fill(~batch.mask, 0.0).sum() for name, term in terms.items()}

    def _loss(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """Equation 9 of arXiv 1707.06347, as a loss."""
        bonus = self.args.entropy_coef * terms["entropy"]
        return terms["loss/policy"] + self.args.vf_coef * terms["loss/value"] - bonus

    # --- All processes together

    def _total(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes."""
        return self.accelerator.reduce(part, "sum")

    def _mean(self, values: torch.Tensor) -> float:
        """Mean of numbers [N] over the completions of all processes that have one."""
        there = ~values.isnan()
        return (self._total(values[there].float().sum()) / self._total(there.sum())).item()

    # --- What is written

    def _note(self, prompts: list[TextPrompt], answers: Answers) -> None:
        """Write a few completions of a logged step into the run folder's table."""
        step = self.state.global_step + 1
        if not self.accelerator.is_main_process or step % self.state.logging_steps:
            return
        texts = self.processing_class.batch_decode(answers.completion_ids[:_NOTED], skip_special_tokens=True)
        rewards, kl = answers.by_function, (answers.log_probs - answers.reference_log_probs).sum(dim=1)
        self._completions.add(
            step,
            [
                {"id": prompts[row].id, "prompt": prompts[row].messages[-1]["content"], "completion": text}
                | dict(zip(self.reward_funcs, rewards[row].tolist(), strict=True))
                | {"kl_per_answer": round(kl[row].item(), 4)}
                for row, text in enumerate(texts)
            ],
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The policy in the folder itself, the critic in one inside it, both as `from_pretrained` reads them."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir))
        weights = self.model.state_dict() if state_dict is None else state_dict
        for name, target in (("policy", folder), ("critic", folder / CRITIC)):
            own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
            getattr(self.model, name).save_pretrained(target, state_dict=own)
            make_portable(target, self.processor_files)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Policy and critic as `_save` wrote them, strictly; DeepSpeed restores its own shards."""
        policy, critic = self.model.policy, self.model.critic
        if isinstance(policy, PeftModel):
            restore_adapter(policy, Path(resume_from_checkpoint))
            restore_adapter(critic, Path(resume_from_checkpoint) / CRITIC)
            return
        saved = load_policy(resume_from_checkpoint, policy.dtype)
        policy.load_state_dict(saved.state_dict())
        saved = load_reward_model(Path(resume_from_checkpoint) / CRITIC, self.processing_class, critic.dtype)
        critic.load_state_dict(saved.state_dict())


def indices_of_step(step: int, per_step: int, num_prompts: int, seed: int) -> list[int]:
    """Which prompts a step asks: the next `per_step` of all epochs laid end to end, each in an order of its own.

    A function of its arguments alone, so that a resumed run asks the same.
    """
    positions = range(step * per_step, (step + 1) * per_step)
    epochs = range(positions[0] // num_prompts, positions[-1] // num_prompts + 1)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_prompts) for epoch in epochs}
    return [int(orders[position // num_prompts][position % num_prompts]) for position in positions]
