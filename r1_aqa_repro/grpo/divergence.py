"""How far a policy has moved from the model it started from."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from r1_aqa_repro.model.generation import generate, sampling_config
from r1_aqa_repro.model.inputs import PromptInputs, pad_right


def token_kls(
    policy: PreTrainedModel,
    start: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    inputs: PromptInputs,
    max_new_tokens: int,
    seed: int,
) -> list[torch.Tensor]:
    """KL(policy || start) at each token of one completion a prompt, exact over the vocabulary, in nats: U tensors.

    The completions are sampled from the policy at temperature 1. The sum over a completion estimates the divergence of
    whole completions without bias: it is the chain rule, with the sampled tokens as what comes before. With beta 0
    training computes no KL at all: this is how it is watched then.
    """
    config = sampling_config(policy, processor, max_new_tokens)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        completions = generate(policy, inputs, torch.arange(len(inputs.prompt_ids)), config)
    rows = [prompt + completion for prompt, completion in zip(inputs.prompt_ids, completions, strict=True)]
    input_ids = pad_right(rows, config.pad_token_id)
    scored = torch.zeros_like(input_ids[:, 1:], dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(inputs.prompt_ids, completions, strict=True)):
        scored[row, len(prompt) - 1 : len(prompt) - 1 + len(completion)] = True
    batch = {
        "input_ids": input_ids,
        "attention_mask": pad_right([[1] * len(row) for row in rows], 0),
        **inputs.audio(policy.device),
    }
    with torch.no_grad():
        log_p, log_q = (
            model(**batch).logits[:, :-1][scored].float().log_softmax(-1) for model in (policy, start)
        )  # [num_tokens, vocabulary]
    return list((log_p.exp() * (log_p - log_q)).sum(-1).split([len(completion) for completion in completions]))
