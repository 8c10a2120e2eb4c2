"""Shares beside the limit that decided on them: what is printed must not say the opposite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.wording import tenths


@pytest.mark.parametrize(
    ("part", "whole", "down", "up"),
    [
        (9495, 10_000, "94.9", "95.0"),
        (9999, 10_000, "99.9", "100.0"),
        (501, 10_000, "5.0", "5.1"),
        (19, 20, "95.0", "95.0"),
        (0, 7, "0.0", "0.0"),
        (7, 7, "100.0", "100.0"),
    ],
)
def test_a_share_is_rounded_to_the_safe_side(part: int, whole: int, down: str, up: str) -> None:
    assert (tenths(part, whole), tenths(part, whole, up=True)) == (down, up)


@given(st.integers(1, 10**9).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole))))
def test_what_is_printed_is_on_the_same_side_of_the_limit(pair: tuple[int, int]) -> None:
    part, whole = pair
    assert (float(tenths(part, whole)) >= 95) == (100 * part >= 95 * whole)
    assert (float(tenths(part, whole, up=True)) > 5) == (100 * part > 5 * whole)
