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
from mllm_align.compute.packing import Batch, answer_starts, on_axes, predictors
from mllm_align.compute.pieces import decode, embed_prompts, embed_tokens, lm_head

# Logits held at once, in numbers: 2**25 float32 are 128 MB. More positions are scored in checkpointed pieces.
LOGITS_AT_ONCE = 2**25


def response_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """log p(token | prompt, earlier response tokens) of every response token: (B, k, R) float32, 0 at
    padding.

    Gradients flow to whatever is trained. The model may be wrapped by PEFT, in train mode and under gradient
    checkpointing.
    """
    values, _, places = _predicted(model, batch)
    return values.new_zeros(batch.response_ids.shape).index_put(places, values)


def logprobs_and_states(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`response_logprobs` and the hidden states that each token is predicted from, by one forward pass.

    -> (B, k, R) float32, (B, k, R, hidden): 0 at padding. The state of token t has seen the tokens before t,
    so a head on it is a value function of the state that the token is an action in.
    """
    values, states, places = _predicted(model, batch)
    shape = batch.response_ids.shape
    logprobs = values.new_zeros(shape).index_put(places, values)
    return logprobs, states.new_zeros(*shape, states.shape[-1]).index_put(places, states)


def _predicted(
    model: Any, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of the n response tokens log-probability (n,), hidden state before (n, hidden), and place in (B, k, R)."""
    hidden = _packed_forward(model, batch, fed=batch.response_ids[..., :-1])
    rows, forks, tokens = batch.response_mask.nonzero(as_tuple=True)
    states = hidden[rows, predictors(batch)[rows, forks, tokens]]
    values = token_logprobs(lm_head(model), states, batch.response_ids[rows, forks, tokens])
    return values, states, (rows, forks, tokens)


def final_states(model: Any, batch: Batch) -> torch.Tensor:
    """The hidden state at each response's last token (its end token, where it has one): (B, k, hidden).

    It has seen the whole response: what a reward head reads. 0 for a missing response.
    """
    hidden = _packed_forward(model, batch, fed=batch.response_ids)
    forks, width = batch.response_ids.shape[1:]
    lengths = batch.response_mask.sum(-1)  # (B, k)
    starts = batch.prompt_ids.shape[1] + width * torch.arange(forks, device=lengths.device)  # (k,)
    places = starts + (lengths - 1).clamp(min=0)  # (B, k)
    states = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return states * (lengths > 0)[..., None]


def _packed_forward(model: Any, batch: Batch, fed: torch.Tensor) -> torch.Tensor:
    """Hidden states of packed rows [prompt | fed tokens of each response]: fed (B, k, W) -> (B, P + k W,
    hidden).
    """
    rows, forks, width = fed.shape
    prompt = embed_prompts(model, batch)
    inputs = fed.reshape(rows, -1)  # (B, k W)
    embeds = torch.cat([prompt, embed_tokens(model, inputs).to(prompt.dtype)], dim=1)
    mask = response_mask(batch.prompt_mask, forks, width, embeds.dtype)
    return decode(model, embeds, _positions(batch, width), mask, prefix_length=batch.prompt_ids.shape[1])


def _positions(batch: Batch, width: int) -> torch.Tensor:
    """Position ids of the packed rows: every response starts where its own prompt ends."""
    steps = torch.arange(width, device=batch.prompt_ids.device).repeat(batch.response_ids.shape[1])  # (k W,)
    return torch.cat(
        [batch.positions, on_axes(answer_starts(batch)[:, None] + steps, batch.positions)], dim=-1
    )


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
