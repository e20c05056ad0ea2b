"""Log-probabilities of k responses to one prompt, from one pass over image, prompt and responses.

Each Group is one packed row: the image goes through the vision tower once, the prompt through the language
model once, and logits are made only where a response token is predicted. Equal to k separate rows to 1e-5 in
float32 (tests/compute/plain.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mllm_align.compute.attention import response_mask
from mllm_align.compute.packing import Batch, predictors
from mllm_align.compute.pieces import embed_prompts, embed_tokens, language_model, lm_head

# Logits held at once, in numbers: 2**25 float32 are 128 MB. More positions are scored in checkpointed pieces.
LOGITS_AT_ONCE = 2**25


def response_logprobs(
    model: Any, batch: Batch, *, image_features: tuple[torch.Tensor, ...] | None = None
) -> torch.Tensor:
    """log p(token | prompt, earlier response tokens) of every response token: (B, k, R) float32, 0 at
    padding.

    Gradients flow to whatever is trained. `image_features` (from `pieces.image_features`) spares the vision
    tower. The model may be wrapped by PEFT, in train mode and under gradient checkpointing.
    """
    hidden = _packed_forward(model, batch, image_features)  # (B, P + k (R - 1), hidden)
    rows, places, tokens = batch.response_mask.nonzero(as_tuple=True)
    states = hidden[rows, predictors(batch)[rows, places, tokens]]  # (n, hidden)
    values = token_logprobs(lm_head(model), states, batch.response_ids[rows, places, tokens])
    result = values.new_zeros(batch.response_ids.shape)
    return result.index_put((rows, places, tokens), values)


def _packed_forward(model: Any, batch: Batch, features: tuple[torch.Tensor, ...] | None) -> torch.Tensor:
    decoder = language_model(model)
    rows, forks, width = batch.response_ids.shape
    prompt = embed_prompts(model, batch, features)
    inputs = batch.response_ids[..., :-1].reshape(rows, -1)  # (B, k (R - 1)), see `predictors`
    embeds = torch.cat([prompt, embed_tokens(model, inputs).to(prompt.dtype)], dim=1)
    output = decoder(
        inputs_embeds=embeds,
        position_ids=_positions(batch),
        attention_mask=response_mask(batch.prompt_mask, forks, width - 1, embeds.dtype),
        use_cache=False,
        prefix_length=batch.prompt_ids.shape[1],
    )
    return output.last_hidden_state


def _positions(batch: Batch) -> torch.Tensor:
    """Position ids of the packed rows: every response starts where its own prompt ends."""
    rows, forks, width = batch.response_ids.shape
    prompt = torch.arange(batch.prompt_ids.shape[1], device=batch.prompt_ids.device).expand(rows, -1)
    steps = torch.arange(width - 1, device=prompt.device).repeat(forks)  # (k (R - 1),)
    return torch.cat([prompt, batch.prompt_mask.sum(1)[:, None] + steps], dim=1)


def token_logprobs(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(head(states))[targets]: (n, hidden), (n,) -> (n,) float32."""
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(states) <= size:
        return _score(head, states, targets)
    pieces = zip(states.split(size), targets.split(size), strict=True)
    # The logits of a piece are made again in the backward pass instead of being kept.
    return torch.cat([checkpoint(_score, head, s, t, use_reentrant=False) for s, t in pieces])


def _score(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = head(states).float()
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)
