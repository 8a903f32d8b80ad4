"""What a loss refuses, and what it says of itself."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fake_vocabularies import bound, empty_projection, letters, random_projection

from xtoken_pl import (
    ALM,
    BPM,
    ESCD,
    GOLD,
    BytePrefixKL,
    HybridKL,
    PrefixPartitionKL,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    TokenKL,
)
from xtoken_pl.losses import Merge


def test_unknown_merge_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="chain_rule, mean, got 'sum'"):
        ProjectionKL(merge=cast(Merge, "sum"))


def test_projection_kl_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a projection"):
        bound(ProjectionKL(), None)


def test_projection_of_zero_rows_only_is_refused() -> None:
    with pytest.raises(ValueError, match="only zero rows"):
        bound(ProjectionKL(), empty_projection(3, 5))


WITH_DIVERGENCES: list[type[SpanLoss]] = [
    *(ProjectionKL, TokenKL, GOLD, HybridKL, BytePrefixKL, BPM, ESCD, PrefixPartitionKL, SimCT, StrictTopK, ALM)
]


@pytest.mark.parametrize("kind", WITH_DIVERGENCES)
def test_unknown_divergence_is_refused_with_the_choices(kind: Any) -> None:
    with pytest.raises(ValueError, match="divergence must be one of forward, reverse, jensen_shannon, got 'js'"):
        kind(divergence="js")


@pytest.mark.parametrize("kind", [GOLD, HybridKL])
@pytest.mark.parametrize("name", ["kl_weight", "uld_weight"])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_weight_of_a_term_must_not_be_negative(kind: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got {value}"):
        kind(**{name: value})


def test_weights_that_are_both_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="would be zero everywhere"):
        GOLD(kl_weight=0.0, uld_weight=0.0)


def test_empty_partition_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"GOLD needs tokens .* none in common \(\|C\| = 0.* use ProjectionKL or ULD"):
        bound(GOLD(), teacher=letters("uvwxyz"))
    with pytest.raises(ValueError, match=r"HybridKL needs tokens .* none in common .* use ULD"):
        bound(HybridKL(), empty_projection(), teacher=letters("uvwxyzopqrs"))


def test_hybrid_kl_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="HybridKL needs a projection"):
        bound(HybridKL(), None)


def test_top_k_below_one_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="teacher_top_k must be >= 1, got 0; None keeps"):
        ProjectionKL(teacher_top_k=0)


def test_a_bound_loss_shows_its_partition() -> None:
    assert "|C| = 4, |U_S| = 9, |U_T| = 7" in repr(bound(GOLD()))
    assert "W: 4 exact" in repr(bound(ProjectionKL(), random_projection()))
