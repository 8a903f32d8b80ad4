"""First-fit packing gives the bins of a slow reference."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xtoken_pl.data.first_fit import first_fit


def reference(sizes: list[tuple[int, int]], limit: int) -> list[int]:
    used: list[tuple[int, int]] = []
    bins = []
    for first, second in sizes:
        fits = [place for place, (a, b) in enumerate(used) if a + first <= limit and b + second <= limit]
        place = fits[0] if fits else len(used)
        if place == len(used):
            used.append((0, 0))
        used[place] = used[place][0] + first, used[place][1] + second
        bins.append(place)
    return bins


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60))
def test_each_item_goes_into_the_first_bin_with_room(sizes: list[tuple[int, int]]) -> None:
    assert first_fit(sizes, 10) == reference(sizes, 10)


def test_work_grows_hardly_faster_than_the_number_of_items() -> None:
    counts = []
    for num_items in (1_000, 4_000):
        compared: list[int] = []

        class Size(int):
            def __le__(self, other: int) -> bool:
                compared.append(1)  # noqa: B023
                return int(self) <= other

        first_fit([(Size(9),)] * num_items, 10)
        counts.append(len(compared))
    assert counts[1] < 6 * counts[0]
