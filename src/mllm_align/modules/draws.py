"""Which Groups are trained on: what the sampler draws, a mixture with the dataset's pairs, or both joined.

Every draw has the signature of `Draw`. A method names one under `draw:` in its file of conf/alignment/. With
`sampler.when=offline` it is called once, with the starting policy, and its Groups are stored; with
`sampler.when=online` inside every training step, with the policy as it is then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mllm_align.annotators.base import Annotator, Judgement, fill
from mllm_align.models.load import Policy
from mllm_align.modules.order import stable_seed
from mllm_align.records import Group, Preference


class Sampler(Protocol):
    """Anything that draws responses; see samplers/."""

    def sample(self, policy: Policy, groups: Sequence[Group], seed: int) -> list[Group]:
        """One Group for each of the dataset's, in order."""


@dataclass(frozen=True)
class Drawn:
    """One Group a prompt, in order; without preferences where there is nothing to prefer (a tie).

    The others have one entry a Group: `judgements` None where nobody was asked, `made` what came from the sampler, with
    the preferences in it, before anything was joined to it; None for a Group that is the dataset's own.
    """

    groups: list[Group]
    judgements: list[Judgement | None]
    made: list[Group | None]


# draw(policy, groups of the dataset, seed, sampler, annotator or None) -> Drawn.
Draw = Callable[[Policy, Sequence[Group], int, Sampler, Annotator | None], Drawn]


def sampled(
    policy: Policy, groups: Sequence[Group], seed: int, sampler: Sampler, annotator: Annotator | None
) -> Drawn:
    """Every prompt anew: Online-DPO (arXiv 2407.02477, 2.3), and BDHS without an annotator (3.4)."""
    drawn = sampler.sample(policy, groups, seed)
    if annotator is None:
        return Drawn(drawn, [None] * len(drawn), list(drawn))
    judgements = annotator.judge(drawn)
    judged = fill(drawn, judgements, annotator.pairs)
    return Drawn(judged, list(judgements), list(judged))


def mixed(
    policy: Policy,
    groups: Sequence[Group],
    seed: int,
    sampler: Sampler,
    annotator: Annotator | None,
    *,
    p: float,
) -> Drawn:
    """Mixed-DPO (Eq. 4): an example keeps the dataset's pair with probability `p`, else it is drawn anew.

    The Bernoulli draw of an example depends on (seed, its id) alone.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"alignment.draw.p is {p}; it is a probability")
    kept = [_uniform(seed, group.example.id) < p for group in groups]
    drawn = sampled(policy, [g for g, k in zip(groups, kept, strict=True) if not k], seed, sampler, annotator)
    rest = iter(zip(drawn.groups, drawn.judgements, strict=True))
    both = [(group, None) if keep else next(rest) for group, keep in zip(groups, kept, strict=True)]
    made = [None if keep else group for (group, _), keep in zip(both, kept, strict=True)]
    return Drawn([group for group, _ in both], [j for _, j in both], made)


def averaged(
    policy: Policy,
    groups: Sequence[Group],
    seed: int,
    sampler: Sampler,
    annotator: Annotator | None,
    *,
    gamma: float,
) -> Drawn:
    """Averaged DPO (Eq. 5): gamma L(y+, y-) + (1 - gamma) L(y+, y~-), y- the dataset's rejected response and
    y~- the sampler's. One chosen and two rejected responses in one Group.

    Several pairs of the dataset share gamma by their weights; y~- is compared with the y+ of the first, which samplers
    start from. Where they found no y~- that differs from y+, the dataset's pairs have the whole weight, 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"alignment.draw.gamma is {gamma}; it is a share")
    drawn = sampler.sample(policy, groups, seed)
    joined = [_joined(given, new, gamma) for given, new in zip(groups, drawn, strict=True)]
    return Drawn(joined, [None] * len(joined), list(drawn))


def _joined(given: Group, new: Group, gamma: float) -> Group:
    share = (gamma if new.preferences else 1.0) / sum(p.weight for p in given.preferences)
    pairs = tuple(replace(p, weight=share * p.weight) for p in given.preferences)
    if not new.preferences:
        return used_only(replace(given, preferences=pairs))
    rejected = new.responses[new.preferences[0].rejected]
    own = Preference(given.preferences[0].chosen, len(given.responses), 1 - gamma)
    return used_only(replace(given, responses=(*given.responses, rejected), preferences=(*pairs, own)))


def used_only(group: Group) -> Group:
    """The Group with only the responses that are in a preference: no other needs a forward pass."""
    kept = sorted({i for p in group.preferences for i in (p.chosen, p.rejected)})
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        group,
        responses=tuple(group.responses[i] for i in kept),
        preferences=tuple(
            Preference(place[p.chosen], place[p.rejected], p.weight) for p in group.preferences
        ),
    )


def _uniform(seed: int, name: str) -> float:
    return float(np.random.default_rng(stable_seed(seed, "mixed", name)).random())
