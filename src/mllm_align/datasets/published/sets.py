"""The published sets, a builder each; conf/dataset/published says where their files are.

A builder takes what `collect.Source` names and the options of its own, and returns Groups with a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

from mllm_align.datasets.published import forms
from mllm_align.datasets.published.collect import Built, Source, collect
from mllm_align.datasets.published.vlfeedback import ASPECTS, VLFeedback
from mllm_align.datasets.reading import one_of


def povid(**source: Unpack[Source]) -> Built:
    """POVID (arXiv 2402.11411), and what has its format (CSR)."""
    return collect("povid", forms.povid, **source)


def rlhf_v(**source: Unpack[Source]) -> Built:
    """RLHF-V (arXiv 2312.00849)."""
    return collect("rlhf_v", forms.rlhf_v, **source)


def rlaif_v(**source: Unpack[Source]) -> Built:
    """RLAIF-V (arXiv 2405.17220)."""
    return collect("rlaif_v", forms.rlaif_v, **source)


def stic(**source: Unpack[Source]) -> Built:
    """STIC (arXiv 2405.19716)."""
    return collect("stic", forms.stic, **source)


def llava_rlhf(history: str = "leave_out", **source: Unpack[Source]) -> Built:
    """LLaVA-RLHF (arXiv 2309.14525)."""
    one_of("history", history, "leave_out", "drop")
    return collect("llava_rlhf", partial(forms.llava_rlhf, history=history), **source)


def nlf(rejected: str = "first", **source: Unpack[Source]) -> Built:
    """NLF of DRESS (arXiv 2311.10081)."""
    one_of("rejected", rejected, "first", "previous")
    return collect("nlf", partial(forms.nlf, rejected=rejected), **source)


def llava_instruct(rounds: str = "first", **source: Unpack[Source]) -> Built:
    """LLaVA-Instruct (arXiv 2304.08485): answers without pairs."""
    one_of("rounds", rounds, "first", "each")
    return collect("llava_instruct", partial(forms.llava_instruct, rounds=rounds), **source)


def vlfeedback(
    pairs: str = "best_worst",
    aspects: Sequence[str] = ASPECTS,
    min_margin: float = 0.0,
    prompts: str | None = None,
    chosen_by: str | None = None,
    **source: Unpack[Source],
) -> Built:
    """VLFeedback (arXiv 2312.10665); the rules are those of `vlfeedback.VLFeedback`."""
    form = VLFeedback(pairs, tuple(aspects), min_margin, prompts, chosen_by)
    return collect("vlfeedback", form, form.hint, **source)
