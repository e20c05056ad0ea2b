"""Figures of micro-batches add up to the figures of the whole batch."""

from __future__ import annotations

import torch

from mllm_align.modules.figures import counted, figure, means, merge


def test_micro_batches_of_different_size_give_the_exact_mean() -> None:
    parts = [{"loss": figure(torch.tensor([1.0, 2.0, 6.0]))}, {"loss": figure(torch.tensor([11.0]))}]
    assert means(merge(parts)) == {"loss": 5.0}  # 20 / 4, not (3 + 11) / 2


def test_a_figure_missing_in_one_part_counts_where_it_is() -> None:
    assert means(merge([{"ties": counted(1, 4)}, {"ties": counted(0, 4), "agreement": counted(3, 4)}])) == {
        "ties": 0.125,
        "agreement": 0.75,
    }


def test_nothing_counted_is_left_out_and_never_divided_by() -> None:
    assert means({"agreement": counted(0, 0), "loss": figure(torch.tensor([2.0]))}) == {"loss": 2.0}
    assert means({}) == {}


def test_figures_carry_no_graph() -> None:
    assert not figure(torch.ones(2, requires_grad=True)).requires_grad
