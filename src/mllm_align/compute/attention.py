"""Attention over a shared prompt, registered with transformers as "shared_prefix".

The function is plain SDPA until a forward pass brings one of two keywords:

- `prefix_length=P`: a packed row `[prompt (P) | response 1 | ... | response k]`. The prompt attends causally
  to itself; the responses attend to the whole row under a small mask (`response_mask`) that shows each the
  prompt and itself.
- `fork=cache`: decoding of k responses from one prompt, or of answers to k questions about it (`ForkCache`).

So it is set on the language model once and for good: other calls (`generate`, a trainer's forward) run as
with SDPA, and gradient checkpointing, which runs layers again after the forward pass has returned, finds the
same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "shared_prefix"


def install(language_model: Any) -> None:
    """Make "shared_prefix" the attention of `language_model` (a no-op the second time).

    Raises ValueError for a decoder with layers that don't attend to the whole past (sliding windows).
    """
    config = language_model.config
    if config._attn_implementation == NAME:
        return
    window = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = set(getattr(config, "layer_types", None) or [window])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{type(language_model).__name__} has layers of {', '.join(sorted(kinds))}; a shared prompt needs full "
            "attention in every layer, so choose another base model"
        )
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_length: int | None = None,
    fork: ForkCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query (B, H, L, D), key and value (B, H_kv, L, D) -> (B, L, H,
    D), None.
    """
    if fork is not None:
        return fork.attend(module.layer_idx, query, key, value, scaling, attention_mask), None  # type: ignore[arg-type]
    if prefix_length is not None:
        return _shared(query, key, value, attention_mask, prefix_length, dropout, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def _shared(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: int,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    key, value = _repeat(key, query.shape[1]), _repeat(value, query.shape[1])
    # Right padding needs no mask here: only padding looks at padding.
    head = causal(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], dropout, scaling)
    if query.shape[2] == prefix:
        return head.transpose(1, 2)
    tail = scaled_dot_product_attention(
        query[:, :, prefix:], key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return torch.cat([head.transpose(1, 2), tail.transpose(1, 2)], dim=1)  # (B, L, H, D)


def causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """Causal attention of a right-padded prompt over itself: (B, H, P, D)."""
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)


def _repeat(states: torch.Tensor, heads: int) -> torch.Tensor:
    """Grouped-query attention: (B, H_kv, L, D) -> (B, H, L, D)."""
    groups = heads // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def response_mask(prompt_mask: torch.Tensor, responses: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask of the response queries: (B, 1, k W, P + k W), 0 where they look and -inf elsewhere.

    `prompt_mask` (B, P) is true on real prompt tokens; `width` W is the number of input tokens a response. A
    response sees the prompt and its own past. Padding inside a response needs no entry: nothing real comes
    after it.
    """
    batch, prompt = prompt_mask.shape
    length = responses * width
    own = torch.ones(width, width, dtype=torch.bool, device=prompt_mask.device).tril()
    own = torch.block_diag(*[own] * responses).bool() if responses > 1 else own  # (k W, k W)
    seen = torch.cat(
        [
            prompt_mask.bool()[:, None, :].expand(batch, length, prompt),
            own[None].expand(batch, length, length),
        ],
        dim=-1,
    )
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, float("-inf"))[:, None]


def prepared(device: torch.device) -> torch.Tensor:
    """A 4D stand-in mask: transformers passes 4D masks on as they are, so that no mask is built for
    `fork`.
    """
    return torch.zeros(1, 1, 1, 1, device=device)


class ForkCache:
    """Keys and values of B prompts, each held once, and of the k responses that fork from each.

    The first pass over the prompts fills `prompt`; every later pass appends one token a fork. A prompt's keys
    are never copied k times: the k queries of a row attend to them as k queries of one sequence, and to their
    own keys each for itself.

    `seen` is true on the tokens of a prompt that its forks attend to: (B, P) for all forks of a row alike, or
    (B, k, P) for forks that start at places of their own. The prompt itself is causal in either case, so it
    is padded on the right.

    With `tails` (B, k, W), true on real tokens, the first pass is over packed rows [prompt | tail 1 | ... | tail k]
    under the mask of `response_mask`: every fork goes on from a tail of its own, padded on the right.
    """

    def __init__(self, seen: torch.Tensor, growth: int = 32, tails: torch.Tensor | None = None) -> None:
        # Tokens a fork so far, counting the one being computed.
        self.length = 0 if tails is None else tails.shape[2]
        self.missing = None if tails is None else ~tails.bool()  # (B, k, W)
        self.growth = growth
        hidden = ~seen.bool()
        self.hidden = (hidden if seen.ndim == 3 else hidden[:, None])[:, None, None]  # (B, 1, 1, k or 1, P)
        self.masked = bool(self.hidden.any())
        self.prompt: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> (B, H_kv, P, D) twice
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> (B, H_kv, k, T, D) twice

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer's attention, (B, L, H, D): of the prompts (first pass; `mask` is that of the tails), then of one
        token a fork (L = k).
        """
        if layer not in self.prompt:
            if self.missing is not None:
                split = query.shape[2] - self.missing[0].numel()
                self.own[layer] = (self._tails(key[:, :, split:]), self._tails(value[:, :, split:]))
                self.prompt[layer] = (key[:, :, :split].contiguous(), value[:, :, :split].contiguous())
                return _shared(query, key, value, mask, split, 0.0, scaling)
            # Attention layers hand out transposed views; a product with one copies it at every step.
            self.prompt[layer] = (key.contiguous(), value.contiguous())
            heads = query.shape[1]
            return causal(query, _repeat(key, heads), _repeat(value, heads), scaling=scaling).transpose(1, 2)
        own_key, own_value = self._append(layer, key, value)
        return self._decode(
            query * (scaling or query.shape[-1] ** -0.5), *self.prompt[layer], own_key, own_value
        )

    def _tails(self, states: torch.Tensor) -> torch.Tensor:
        """(B, H_kv, k W, D) -> (B, H_kv, k, W, D), with room to grow."""
        assert self.missing is not None
        own = states.unflatten(2, self.missing.shape[1:])
        return torch.cat([own, own.new_empty(*own.shape[:3], self.growth, own.shape[4])], dim=3)

    def _append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        room = self.own[layer][0].shape[3] if layer in self.own else 0
        if room < self.length:
            shape = (*key.shape[:3], max(self.growth, room), key.shape[3])
            fresh = (key.new_empty(shape), value.new_empty(shape))
            old = self.own.get(layer)
            self.own[layer] = (
                fresh if old is None else (torch.cat([old[0], fresh[0]], 3), torch.cat([old[1], fresh[1]], 3))
            )
        own_key, own_value = self.own[layer]
        own_key[:, :, :, self.length - 1] = key
        own_value[:, :, :, self.length - 1] = value
        return own_key[:, :, :, : self.length], own_value[:, :, :, : self.length]

    def _decode(
        self,
        query: torch.Tensor,  # (B, H, k, D), scaled
        key: torch.Tensor,  # (B, H_kv, P, D)
        value: torch.Tensor,
        own_key: torch.Tensor,  # (B, H_kv, k, T, D)
        own_value: torch.Tensor,
    ) -> torch.Tensor:
        batch, heads, forks, size = query.shape
        groups = heads // key.shape[1]
        grouped = query.reshape(batch, -1, groups * forks, size)  # (B, H_kv, G k, D)
        per_fork = query.reshape(batch, -1, groups, forks, size).transpose(2, 3)  # (B, H_kv, k, G, D)
        to_prompt = grouped @ key.transpose(2, 3)  # (B, H_kv, G k, P)
        if self.masked:
            by_fork = to_prompt.view(*to_prompt.shape[:2], groups, forks, -1)  # (B, H_kv, G, k, P)
            to_prompt = by_fork.masked_fill(self.hidden, float("-inf")).view_as(to_prompt)
        to_own = (per_fork @ own_key.transpose(3, 4)).transpose(2, 3)  # (B, H_kv, G, k, T)
        if self.missing is not None:
            to_own[..., : self.missing.shape[2]].masked_fill_(self.missing[:, None, None], float("-inf"))
        scores = torch.cat([to_prompt, to_own.reshape(*to_prompt.shape[:3], -1)], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        split = key.shape[2]
        from_prompt = weights[..., :split] @ value  # (B, H_kv, G k, D)
        own_weights = (
            weights[..., split:].reshape(batch, -1, groups, forks, weights.shape[-1] - split).transpose(2, 3)
        )
        from_own = (own_weights @ own_value).transpose(2, 3).reshape_as(from_prompt)
        return (from_prompt + from_own).view(batch, heads, forks, size).transpose(1, 2)

    def take(self, parts: Sequence[ForkCache]) -> None:
        """Take over the prompts of caches that have been filled with some of the rows each, in order."""
        for layer in list(parts[0].prompt):
            keys, values = zip(*(part.prompt.pop(layer) for part in parts), strict=True)
            self.prompt[layer] = (
                (torch.cat(keys), torch.cat(values)) if len(parts) > 1 else (keys[0], values[0])
            )

    def keep(self, rows: torch.Tensor, forks: torch.Tensor) -> None:
        """Forget all but these: rows (b,), and of each of them the forks (b, k')."""
        if len(rows) < len(self.hidden):  # else the prompts, the most of the memory, stay where they are
            self.prompt = {layer: (k[rows], v[rows]) for layer, (k, v) in self.prompt.items()}
        if self.hidden.shape[3] > 1:
            self.hidden = self.hidden[rows[:, None], 0, 0, forks][:, None, None]  # (b, 1, 1, k', P)
        else:
            self.hidden = self.hidden[rows]
        if self.missing is not None:
            self.missing = self.missing[rows[:, None], forks]
        self.own = {
            layer: (_choose(k, rows, forks), _choose(v, rows, forks)) for layer, (k, v) in self.own.items()
        }


def _choose(states: torch.Tensor, rows: torch.Tensor, forks: torch.Tensor) -> torch.Tensor:
    """Forks (b, k') of rows (b,): (B, H_kv, k, T, D) -> (b, H_kv, k', T, D)."""
    return states[rows[:, None], :, forks].transpose(1, 2).contiguous()
