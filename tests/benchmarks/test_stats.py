"""Intervals against values worked by hand, textbook tables and their own promised coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mllm_align.benchmarks import stats
from mllm_align.benchmarks.stats import Counts, Interval


def share(totals):
    return {"share": totals["right"] / totals["asked"]}


def counts(right, asked=None, images=None):
    right = np.asarray(right, dtype=float)
    asked = np.ones_like(right) if asked is None else np.asarray(asked, dtype=float)
    images = images or [f"i{k}" for k in range(len(right))]
    return Counts(tuple(images), ("right", "asked"), np.stack([right, asked], axis=1))


def difference(ours, base, **options):
    return stats.mean_paired_difference([(ours, base)], share, **options)["share"]


def test_sum_by_image_adds_the_items_of_an_image():
    items = [("a", {"right": 1}), ("b", {"right": 2, "asked": 5}), ("a", {"asked": 3})]
    summed = stats.sum_by_image(items, ["right", "asked"])
    assert summed.images == ("a", "b")
    assert summed.values.tolist() == [[1, 3], [2, 5]]
    assert summed.totals() == {"right": 3, "asked": 8}


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no predictions"):
        stats.sum_by_image([], ["right"])


def test_the_estimate_is_the_metric_and_the_interval_that_of_the_normal_approximation():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    found = stats.intervals(counts(right), share)["share"]
    mean = right.mean()
    half = 1.96 * math.sqrt(mean * (1 - mean) / 400)
    assert found.value == mean
    assert found.n == 400
    assert found.method == "BCa"
    assert found.low == pytest.approx(mean - half, abs=0.006)
    assert found.high == pytest.approx(mean + half, abs=0.006)


def test_the_same_seed_gives_the_same_interval_and_another_gives_another():
    data = counts(np.random.default_rng(1).random(50))
    first, again = (stats.intervals(data, share, seed=3, draws=500) for _ in range(2))
    assert first == again
    assert first != stats.intervals(data, share, seed=4, draws=500)


def test_questions_of_one_image_are_not_independent():
    # 50 images whose 10 questions are all right or all wrong hold 50 observations, not 500.
    right = (np.arange(50) % 2) * 10.0
    clustered = stats.intervals(counts(right, np.full(50, 10.0)), share)["share"]
    independent = stats.intervals(counts(np.arange(500) % 2), share)["share"]
    ratio = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.08)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for replicate in range(200):
        skill = rng.beta(4, 2, 60)  # a difficulty of each image, shared by its 5 questions; mean 2/3
        data = counts(rng.binomial(5, skill), np.full(60, 5.0))
        found = stats.intervals(data, share, draws=600, seed=replicate)["share"]
        hits += found.low <= 2 / 3 <= found.high
    assert 0.90 <= hits / 200 <= 0.985  # three standard errors of 0.95 are 0.046


def test_bca_follows_the_skew_that_a_percentile_interval_ignores():
    # Means of an exponential: the exact 95% interval reaches further up than down.
    data = counts(np.random.default_rng(2).exponential(size=25))
    found = stats.intervals(data, share, draws=20_000)["share"]
    assert found.high - found.value > 1.3 * (found.value - found.low)


def test_bca_tail_by_hand():
    # Without bias and acceleration it is the percentile; with z0 = 0.1, a = 0.02: by hand, eq. 14.10:
    # z0 + (z0 + z) / (1 - a (z0 + z)) with z = -1.959964 is 0.1 - 1.859964 / 1.03719928 = -1.6932552.
    assert stats._bca_tail(0.0, 0.0, 0.025) == pytest.approx(0.025)
    assert stats._bca_tail(0.1, 0.02, 0.025) == pytest.approx(
        0.5 * math.erfc(1.6932552 / math.sqrt(2)), abs=1e-6
    )


def test_no_variation_gives_a_point():
    found = stats.intervals(counts([1, 1, 1]), share)["share"]
    assert (found.low, found.high, found.method) == (1, 1, "no variation")


def test_a_paired_difference_cancels_what_both_share():
    rng = np.random.default_rng(3)
    base = rng.integers(0, 100, 200).astype(float)  # images differ a lot
    ours = base + 1 + rng.normal(0, 0.5, 200)  # the method adds one to each
    found = difference(counts(ours), counts(base))
    alone = stats.intervals(counts(ours), share)["share"]
    assert found.value == pytest.approx(np.mean(ours - base))
    assert found.high - found.low < 0.03 * (alone.high - alone.low)
    assert found.p < 2 / 10_001  # 28 standard errors from 0: the normal tail goes below what draws can count


def test_pairs_are_matched_by_image_and_not_by_place():
    images = [f"i{k}" for k in range(40)]
    right = np.arange(40.0)
    reversed_ = counts(right[::-1], images=images[::-1])
    found = difference(counts(right, images=images), reversed_)
    assert (found.low, found.value, found.high) == (0, 0, 0)
    assert found.p == 1.0


def test_other_images_cannot_be_paired():
    with pytest.raises(ValueError, match="different images"):
        difference(counts([1, 0]), counts([1, 0], images=["i0", "other"]))


def test_other_questions_cannot_be_paired():
    ours, base = replace(counts([1, 0]), asked="a"), replace(counts([1, 0]), asked="b")
    with pytest.raises(ValueError, match="different questions"):
        difference(ours, base)
    assert ours.take(["i1", "i0"]).asked == "a"


@pytest.mark.parametrize("mean", [3, 5, 8, 12, 20])
def test_few_images_that_differ_are_not_significant_more_often_than_said(mean):
    """Of 300 images a Poisson number gets better and as many on average worse: nothing differs in truth.

    The error at 0.05 and at Holm's first step of 24 comparisons, summed over every outcome.
    """
    rng, images = np.random.default_rng(0), 300
    error = {0.05: 0.0, 0.05 / 24: 0.0}
    for better in range(31):
        for worse in range(better + 1):
            odds = [better / images, worse / images, 1 - (better + worse) / images]
            drawn = rng.multinomial(images, odds, 10_000)
            p = stats._p_value((better - worse) / images, (drawn[:, 0] - drawn[:, 1]) / images)
            chance = poisson(mean / 2, better) * poisson(mean / 2, worse) * (1 if better == worse else 2)
            for alpha in error:
                error[alpha] += chance * (p < alpha)
    assert all(found <= 1.1 * alpha for alpha, found in error.items()), error


def poisson(mean, count):
    return math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1))


def test_a_mean_over_seeds_uses_each_seed_once():
    base = counts([0, 0, 0, 0])
    pairs = [(counts([1, 0, 0, 0]), base), (counts([1, 1, 1, 0]), base)]
    assert stats.mean_paired_difference(pairs, share)["share"].value == pytest.approx((0.25 + 0.75) / 2)
    assert stats.mean_intervals([p[0] for p in pairs], share)["share"].value == pytest.approx(0.5)


def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(7)
    found = []
    for _ in range(200):
        ours, base = counts(rng.random(40)), counts(rng.random(40))
        found.append(difference(ours, base, draws=400).p)
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.12
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (120, 1.97993)]
)
def test_student_quantiles_are_those_of_the_tables(freedom, quantile):
    assert stats.t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-5)
    assert stats.t_cdf(quantile, freedom) == pytest.approx(0.975, abs=1e-6)
    assert stats.t_cdf(-quantile, freedom) == pytest.approx(0.025, abs=1e-6)


def test_over_seeds_by_hand():
    # 80, 82, 84: mean 82, sd 2, t(2) = 4.30265, half = 4.30265 * 2 / sqrt(3) = 4.96827
    found = stats.over_seeds([80, 82, 84])
    assert (found.value, found.high - 82) == (82, pytest.approx(4.96827, abs=1e-4))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        stats.over_seeds([80])


def test_seeds_and_images_add_their_variances():
    # var of the seeds' mean: 4 / 3; of the images: (1.96 / 1.959964)^2 = 1; together 2.3333.
    images = Interval(82, 80.04, 83.96, 1000, 0.0, "BCa")
    found = stats.over_seeds_and_images([80, 82, 84], images)
    freedom = (4 / 3 + 1) ** 2 / ((4 / 3) ** 2 / 2 + 1 / 999)  # 6.1181
    assert found.high - found.value == pytest.approx(
        stats.t_quantile(0.975, freedom) * math.sqrt(7 / 3), abs=1e-3
    )
    assert found.p == pytest.approx(0.0, abs=1e-6)
    # Seeds that agree leave the images' variance, and its many degrees of freedom.
    same = stats.over_seeds_and_images([82, 82, 82], images)
    assert same.high - same.value == pytest.approx(1.96, abs=0.01)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4, 3, 2, 1: .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
