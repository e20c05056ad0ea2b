"""Log-probabilities under the frozen reference: the same weights with the adapter off.

They are computed once a preference set and stored as a table, example id -> (k, R) log-probabilities of tokens
in nats, 0 at padding. How a method weighs and reduces them is no concern of the table, so methods share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import Batch, by_group, collate
from mllm_align.models.load import Policy, reference
from mllm_align.records import Group

Table = Mapping[str, Tensor]


def reference_logprobs(
    policy: Policy,
    groups: Sequence[Group],
    batch_size: int,
    *,
    precision: str = "32-true",
    max_length: int | None = None,
) -> dict[str, Tensor]:
    """The table of a preference set: example id -> (k, R) float32, on the CPU, R the longest response's tokens.

    Raises ValueError if two Groups share an id: the table could hold only one of them.
    """
    _check_unique(groups)
    device = next(policy.model.parameters()).device
    table: dict[str, Tensor] = {}
    for start in range(0, len(groups), batch_size):
        part = groups[start : start + batch_size]
        batch = collate(part, policy.processor, max_length=max_length).to(device)
        with autocast(device, precision):
            logprobs = frozen_logprobs(policy, batch).float().cpu()  # (G, K, R)
        widths = _longest(batch)
        table |= {
            group.example.id: row[: len(group.responses), :width].clone()
            for group, row, width in zip(part, logprobs, widths, strict=True)
        }
    return table


def frozen_logprobs(policy: Policy, batch: Batch) -> Tensor:
    """log pi_ref of the tokens of the batch's responses. -> (G, K, R), 0 at padding, without gradient"""
    with reference(policy) as model:
        return by_group(batch, response_logprobs(model, batch))


def look_up(table: Table, batch: Batch) -> Tensor:
    """The batch's Groups in the table, on its device. -> (G, K, R), 0 at padding and for missing responses

    Raises KeyError for an id that is not in the table, ValueError for a Group whose responses have other lengths
    there than in the batch.
    """
    mask = by_group(batch, batch.response_mask)
    forks, width = mask.shape[1:]
    for name, longest in zip(batch.ids, _longest(batch), strict=True):
        found = table[name]
        if len(found) > forks or found.shape[1] != longest:
            raise ValueError(
                f"reference log-probabilities: example {name!r} has {len(found)} responses of up to "
                f"{found.shape[1]} tokens, the batch {forks} of up to {longest}; compute them from the same "
                "preference set with the same max_length"
            )
    rows = [_padded(table[name], forks, width) for name in batch.ids]
    return torch.stack(rows).to(batch.response_ids.device)


def _padded(values: Tensor, forks: int, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1], 0, forks - len(values)))


def _longest(batch: Batch) -> list[int]:
    """Tokens of the longest response of every Group."""
    return by_group(batch, batch.response_mask).sum(-1).amax(-1).tolist()


def check_table(table: Table, groups: Sequence[Group]) -> None:
    """Raises ValueError if a Group has no row in the table, or one of another length."""
    for group in groups:
        found = table.get(group.example.id)
        if found is None or len(found) != len(group.responses):
            has = "is missing" if found is None else f"has {len(found)} rows"
            raise ValueError(
                f"reference log-probabilities: example {group.example.id!r} {has}, its group has "
                f"{len(group.responses)} responses; compute them from the same preference set"
            )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The same arithmetic as the trainer's `precision`, so that the first step's margin is zero."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


def _check_unique(groups: Sequence[Group]) -> None:
    seen: set[str] = set()
    for group in groups:
        if group.example.id in seen:
            raise ValueError(
                f"example id {group.example.id!r} occurs twice in the preference set; "
                "give every row an id of its own"
            )
        seen.add(group.example.id)
