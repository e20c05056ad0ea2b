"""Whether a policy broke down while it was trained, read from the figures of its run.

The paper reports in Table 8 that RLOO and PPO were not stable with one of its reward models; here such a run
is recognised by evidence that is written into its record: figures that are no numbers any more, a KL
divergence out of proportion, responses much longer or shorter than at first, responses that repeat
themselves or each other, and a reward that rises while the truth (where it is known) falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

History = Mapping[str, Sequence[float]]
# Figures that are finite in every step of a run that is sound.
ALWAYS_FINITE = ("loss", "grad_norm", "kl_policy")


@dataclass(frozen=True)
class Limits:
    """Where a policy counts as collapsed. "At first" and "at last" are means over `window` entries.

    kl_per_token: nats; the mean of log pi - log pi_ref of a response, divided by the mean number of tokens,
    at last. shorter, longer: mean response length at last, as a share of that at first. distinct: the same of
    distinct-2. reward_gain: rise of the mean reward, in standard deviations of the reward at first;
    oracle_drop: fall of the mean oracle score, in its own units; both must be exceeded at once.
    """

    window: int = 5
    kl_per_token: float = 1.5
    shorter: float = 0.2
    longer: float = 4.0
    distinct: float = 0.2
    reward_gain: float = 0.5
    oracle_drop: float = 0.2

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"alignment.collapse.window is {self.window}; it must be 1 or more")


def collapsed(history: History, limits: Limits) -> str | None:
    """The evidence in words, or None for a policy that held. `history` maps a figure to its values in order.

    A figure that is not there, or has less than two windows of values, is no evidence for anything; figures
    that are not finite always are.
    """
    broken = _not_finite(history)
    if broken:
        return broken
    found = [check(history, limits) for check in CHECKS]
    evidence = [text for text in found if text]
    return "; ".join(evidence) or None


def _not_finite(history: History) -> str | None:
    for name in ALWAYS_FINITE:
        for place, value in enumerate(history.get(name, ()), start=1):
            if not math.isfinite(value):
                return f"{name} became {value} at its entry {place} of {len(history[name])}"
    return None


def _kl(history: History, limits: Limits) -> str | None:
    kl, tokens = _ends(history, "kl_policy", limits), _ends(history, "response_tokens", limits)
    if kl is None or tokens is None:
        return None
    rate = kl[1] / max(tokens[1], 1.0)
    if rate <= limits.kl_per_token:
        return None
    return f"KL to the reference is {rate:.2f} nats a token at last (limit {limits.kl_per_token:g})"


def _length(history: History, limits: Limits) -> str | None:
    ends = _ends(history, "response_tokens", limits)
    if ends is None or limits.shorter <= ends[1] / ends[0] <= limits.longer:
        return None
    return (
        f"responses went from {ends[0]:.1f} to {ends[1]:.1f} tokens "
        f"(limits {limits.shorter:g} to {limits.longer:g} times the first)"
    )


def _distinct(history: History, limits: Limits) -> str | None:
    ends = _ends(history, "distinct_2", limits)
    if ends is None or ends[1] >= limits.distinct * ends[0]:
        return None
    return f"distinct-2 went from {ends[0]:.3f} to {ends[1]:.3f} (limit {limits.distinct:g} times the first)"


def _hacked(history: History, limits: Limits) -> str | None:
    reward, oracle = _ends(history, "reward", limits), _ends(history, "oracle_score", limits)
    scale = _ends(history, "reward_std", limits)
    if reward is None or oracle is None or scale is None:
        return None
    rose = reward[1] - reward[0] > limits.reward_gain * scale[0]
    if not (rose and oracle[0] - oracle[1] > limits.oracle_drop):
        return None
    return (
        f"the reward rose from {reward[0]:.2f} to {reward[1]:.2f} while the oracle's score fell "
        f"from {oracle[0]:.2f} to {oracle[1]:.2f}"
    )


CHECKS: tuple[Callable[[History, Limits], str | None], ...] = (_kl, _length, _distinct, _hacked)


def _ends(history: History, name: str, limits: Limits) -> tuple[float, float] | None:
    """Means over the first and the last window of a figure."""
    values = history.get(name, ())
    if len(values) < 2 * limits.window:
        return None
    first, last = values[: limits.window], values[-limits.window :]
    return sum(first) / len(first), sum(last) / len(last)
