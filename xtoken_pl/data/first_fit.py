"""First-fit packing of items with several sizes into bins, in a time that hardly grows with the number of bins."""

from __future__ import annotations

from collections.abc import Sequence

# D sizes of an item, one for each side


def first_fit(sizes: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Puts each item into the first bin that has room for it in all sizes, or into a new one.

    Args:
        sizes: D sizes of each item, in the order in which the items are placed.
        limit: Largest sum of each size in a bin. An item that exceeds it gets a bin of its own.

    Returns:
        Bin of each item.
    """
    if not sizes:
        return []
    num_leaves = 1 << (len(sizes) - 1).bit_length()
    # A binary tree over all bins, root at 1: the largest room below each node, for each size. No bin is used yet.
    room = [(limit,) * len(sizes[0])] * (2 * num_leaves)
    bins: list[int] = []
    num_bins = 0
    for item in sizes:
        found = _first_leaf(room, item, num_leaves)
        leaf = num_leaves + num_bins if found is None else found
        num_bins = max(num_bins, leaf - num_leaves + 1)
        bins.append(leaf - num_leaves)
        room[leaf] = tuple(free - size for free, size in zip(room[leaf], item, strict=True))
        while leaf > 1:
            leaf //= 2
            room[leaf] = tuple(map(max, room[2 * leaf], room[2 * leaf + 1]))
    return bins


def _first_leaf(room: Sequence[tuple[int, ...]], item: Sequence[int], num_leaves: int) -> int | None:
    """First leaf with room for an item; the rooms of a node may come from different leaves below it."""
    nodes = [1]
    while nodes:
        node = nodes.pop()
        if all(size <= free for size, free in zip(item, room[node], strict=True)):
            if node >= num_leaves:
                return node
            nodes += (2 * node + 1, 2 * node)
    return None
