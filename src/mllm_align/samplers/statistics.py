"""What there is to tell of a sampling run: how many answers differ enough, after how many iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align.records import Group


def statistics(groups: Sequence[Group]) -> dict[str, Any]:
    """Figure 10 of arXiv 2407.02477 and what belongs to it, from the provenance; {} for other samplers' Groups.

    - "below eps_s": share of the answers whose similarity was below eps_s after iteration 1, 2, ..., N;
    - "without a preference": answers that are empty, or the reference itself;
    - "swapped": answers with a yes or no turned into its opposite;
    - "unguided": answers of the last iteration, which were drawn without the reference;
    - "mean similarity", "answers".
    """
    drawn = [(group, found) for group in groups if (found := _provenance(group)) is not None]
    if not drawn:
        return {}
    about = [found for _, found in drawn]
    return {
        "answers": len(drawn),
        "below eps_s": below(about),
        "without a preference": sum(not group.preferences for group, _ in drawn),
        "swapped": sum(any(part["swapped"] for part in found["sentences"]) for found in about),
        "unguided": sum(not found["guided"] for found in about),
        "mean similarity": round(sum(found["similarity"] for found in about) / len(about), 4),
    }


def below(about: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Iteration -> share of the answers that were below eps_s by then."""
    differ = [found["iteration"] for found in about if found["similarity"] < found["eps_s"]]
    last = max(found["iterations"] for found in about)
    return {str(i): round(sum(at <= i for at in differ) / len(about), 4) for i in range(1, last + 1)}


def _provenance(group: Group) -> Mapping[str, Any] | None:
    """That of the drawn answer, which stands last."""
    found = group.responses[-1].provenance if group.responses else None
    return found if found is not None and "eps_s" in found else None
