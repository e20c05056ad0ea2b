"""Log-probabilities under the frozen reference: the same weights with the adapter off.

They are computed once a preference set and stored as a table, example id -> (k,) sums over response tokens
in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mllm_align.compute.logprobs import response_logprobs
from mllm_align.compute.packing import Batch, collate
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
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The table of a preference set: example id -> (k,) float32, on the CPU. `progress` hears of Groups done.

    Raises ValueError if two Groups share an id: the table could hold only one of them.
    """
    _check_unique(groups)
    device = next(policy.model.parameters()).device
    table: dict[str, Tensor] = {}
    for start in range(0, len(groups), batch_size):
        part = groups[start : start + batch_size]
        batch = collate(part, policy.processor, max_length=max_length).to(device)
        with autocast(device, precision):
            sums = frozen_sums(policy, batch).float().cpu()  # (B, k)
        table |= {g.example.id: row[: len(g.responses)].clone() for g, row in zip(part, sums, strict=True)}
        if progress:
            progress(len(part))
    return table


def frozen_sums(policy: Policy, batch: Batch) -> Tensor:
    """log pi_ref(y|x) of the batch's responses, summed over their tokens. -> (B, k), without gradient"""
    with reference(policy) as model:
        return response_logprobs(model, batch).sum(-1)


def look_up(table: Table, batch: Batch) -> Tensor:
    """The batch's rows of the table on its device, 0 where a Group has fewer than k responses. -> (B, k)

    Raises KeyError for an id that is not in the table.
    """
    width = batch.response_ids.shape[1]
    rows = [torch.nn.functional.pad(table[i], (0, width - len(table[i]))) for i in batch.ids]
    return torch.stack(rows).to(batch.response_ids.device)


def check_table(table: Table, groups: Sequence[Group]) -> None:
    """Raises ValueError if a Group has no row in the table, or one of another length."""
    for group in groups:
        found = table.get(group.example.id)
        if found is None or len(found) != len(group.responses):
            has = "is missing" if found is None else f"has {len(found)} values"
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
