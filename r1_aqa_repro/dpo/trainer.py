"""TRL's DPOTrainer with one more loss: `relative`, relative preference optimisation (arXiv 2402.10958).

DPO contrasts the two answers to one prompt. RPO contrasts the chosen answer to each prompt of a batch with the rejected
answer to each prompt, the more so the more alike the prompts are. What TRL once called `rpo_alpha` is something else:
the weight of a log-likelihood term beside DPO's loss (arXiv 2404.19733), today `loss_type: [sigmoid, sft]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import logsigmoid, normalize
from trl import DPOTrainer

from r1_aqa_repro.common.errors import Problem
from r1_aqa_repro.run.checkpoints import ResumableTrainer
from r1_aqa_repro.run.config import PairDPOConfig

RELATIVE = "relative"


def relative_weights(embeddings: torch.Tensor, tau: float) -> torch.Tensor:
    """How much the chosen answer to prompt i is contrasted with the rejected answer to prompt j: [N, N], rows sum to 1.

        w_ij = exp(cos(f_i, f_j) / tau) / sum over j' of exp(cos(f_i, f_j') / tau)

    The same as with the paper's cosine distance 1 - cos in the place of -cos. A large tau contrasts all alike, a small
    one only prompts that are alike.

    Args:
        embeddings: f, [N, H], one a prompt.
        tau: above 0.
    """
    directions = normalize(embeddings.float(), dim=-1)
    return (directions @ directions.T / tau).softmax(dim=-1)


def relative_loss(
    chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, weights: torch.Tensor, beta: float
) -> torch.Tensor:
    """RPO's loss on pairs (arXiv 2402.10958, with the weights inside the sigmoid, as its authors' code has them).

        loss = -1 / N^2 sum over i, j of log sigmoid(beta w_ij (h_i+ - h_j-))

    Of one pair it is DPO's. As the weights of a row sum to 1, N prompts that are all alike have w = 1 / N: the larger
    the batch, the softer the sigmoid.

    Args:
        chosen_logratios: h+, [N], log pi(y | x) - log pi_ref(y | x) of the chosen answers.
        rejected_logratios: h-, [N], of the rejected ones.
        weights: w, [N, N], see `relative_weights`.
        beta: as of DPO.
    """
    contrasts = chosen_logratios[:, None] - rejected_logratios[None, :]
    return -logsigmoid(beta * weights * contrasts).mean()


def inverse_frequencies(prompts: Sequence[Sequence[int]], num_tokens: int) -> torch.Tensor:
    """log((1 + prompts) / (1 + prompts that hold the token)) of every token: [num_tokens]. 0 of those in all prompts,
    such as the chat template's, which would make all prompts alike."""
    holding = Counter(token for ids in prompts for token in set(ids))
    counts = torch.zeros(num_tokens, dtype=torch.float64)
    counts[list(holding)] = torch.tensor(list(holding.values()), dtype=torch.float64)
    return ((1 + len(prompts)) / (1 + counts)).log().float()


def check_relative(training: PairDPOConfig) -> list[Problem]:
    """A problem for each setting that the loss `relative` cannot work with, or would ignore."""
    if RELATIVE not in training.loss_type:
        return []
    problems = []
    if training.per_device_train_batch_size < 2:
        what = f"{RELATIVE} contrasts the pairs that a device has at once, and that is one"
        remedy = "Raise max_examples_per_device, or use loss_type sigmoid, which would be the same."
        problems.append(Problem("max_examples_per_device", what, remedy))
    for key, default in (("f_divergence_type", "reverse_kl"), ("ld_alpha", None), ("use_weighting", False)):
        value = getattr(training, key)
        if getattr(value, "value", value) != default:
            problems.append(Problem(key, f"the loss {RELATIVE} takes none", f"Leave it at {default}."))
    return problems


class PairDPOTrainer(ResumableTrainer, DPOTrainer):
    """TRL's DPOTrainer, whose interrupted runs continue exactly, with the loss `relative`.

    A prompt is embedded as the mean of its tokens' input embeddings in the model itself, each weighted by
    `inverse_frequencies` over the training prompts. Contrasted are the pairs that a device has at once.
    """

    args: PairDPOConfig
    loss_types: list[str]
    loss_weights: list[float]

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.relative_weight = weights.pop(RELATIVE, None)
        if self.relative_weight is None:
            return
        self.loss_types, self.loss_weights = list(weights), list(weights.values())  # the others stay TRL's
        vocabulary = self.model.get_input_embeddings().num_embeddings
        self.frequencies = inverse_frequencies(self.train_dataset["prompt_ids"], vocabulary)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if self.relative_weight is None:
            return super()._compute_loss(model, inputs, return_outputs)
        with self._watched() as (embedded, log_probs):
            loss = super()._compute_loss(model, inputs, return_outputs)
        own, *reference = (values.sum(dim=1).chunk(2) for values in log_probs)
        starts = reference[0] if reference else (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        chosen, rejected = (now - start for now, start in zip(own, starts, strict=True))
        is_prompt = inputs["attention_mask"].bool() & ~inputs["completion_mask"].bool()
        scale = self.frequencies.to(is_prompt.device)[inputs["input_ids"]] * is_prompt
        # the first half of the rows are the chosen answers, each with its prompt
        embeddings = (embedded[0].float() * scale[..., None]).sum(dim=1)[: len(chosen)]
        relative = relative_loss(chosen, rejected, relative_weights(embeddings, self.args.relative_tau), self.beta)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["loss/relative"].append(self.accelerator.gather(relative.detach()).mean().item())
        if return_outputs:
            return loss[0] + self.relative_weight * relative, loss[1]
        return loss + self.relative_weight * relative

    @contextmanager
    def _watched(self) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """What the models say while TRL asks them: the policy's embeddings [2N, L, H], then log-probs [2N, L - 1] of
        policy and reference, 0 outside the answers."""
        embedded: list[torch.Tensor] = []
        log_probs: list[torch.Tensor] = []
        with ExitStack() as watching:
            table = self.model.get_input_embeddings()
            hook = table.register_forward_hook(lambda _, __, output: embedded.append(output.detach()))
            watching.callback(hook.remove)
            for watched in (self.model, self.ref_model):  # with an adapter the first one is asked twice
                if watched is not None:
                    hook = watched.register_forward_hook(lambda _, __, output: log_probs.append(output.log_probs))
                    watching.callback(hook.remove)
            yield embedded, log_probs
