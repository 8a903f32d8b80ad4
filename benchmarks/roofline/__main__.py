"""Computes the tables of docs/roofline.md: ``python -m benchmarks.roofline [--write]``. No GPU, no network."""

from __future__ import annotations

import argparse

from benchmarks.roofline import tables
from benchmarks.roofline.heads import Side
from benchmarks.roofline.paper import ROOT, VOCABULARIES, paper_steps

PAGE = ROOT / "docs/roofline.md"
_BEGIN, _END = "<!-- {}: python -m benchmarks.roofline --write -->\n", "\n<!-- end of {} -->"


def computed() -> dict[str, str]:
    """All tables of the page, by name."""
    steps = paper_steps()
    one = steps[0]
    projected = paper_steps("llama1b_from_qwen4b_p_kl", ("one_h100",))[0]
    student = Side(VOCABULARIES[""], one.memory.student.head.shape[1])
    num_rows = one.run.batch_size * (one.run.sequence_length - 1)
    works = {"H-KL and KL": (one.heads, student), "P-KL": (projected.heads, student)}
    sides = {
        name: Side(VOCABULARIES[name], skeleton.head.shape[1])
        for name, skeleton in {"": one.memory.student, **one.memory.teachers}.items()
    }
    row_bytes = 2 * sum(side.vocabulary_size for side in sides.values())
    sizes, num_blocks = one.heads.sizes, one.heads.num_blocks
    return {
        "throughput": tables.throughput(steps),
        "parts": tables.parts(one),
        "parts of P-KL": tables.parts(projected),
        "links": tables.links(steps),
        "block rows": tables.block_rows(sides, row_bytes),
        "budgets": tables.budgets(one, [side.vocabulary_size for side in sides.values()]),
        "blocks": f"With {one.run.logits_memory / 1e9:g} GB, a batch of {num_rows:,} rows has {num_blocks} blocks "
        f"of at most {sizes.block_rows:,} rows, and losses see {sizes.piece_rows} rows at a time.",
        "passes": tables.passes(works, num_rows),
        "checkpoints": tables.checkpoints(one),
    }


def replaced(page: str, found: dict[str, str]) -> str:
    """The page with the computed tables between its marks."""
    for name, table in found.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, _, rest = page.partition(begin)
        if end not in rest:
            raise ValueError(f"the page must have the marks {begin.strip()!r} and {end.strip()!r} around the table")
        page = before + begin + table + end + rest.partition(end)[2]
    return page


def main() -> None:
    """Prints the tables, or writes them to the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables to docs/roofline.md")
    writes = parser.parse_args().write
    found = computed()
    if writes:
        PAGE.write_text(replaced(PAGE.read_text(), found))
        return
    print(f"computed, not measured; attainable: {tables.described_shares()}")
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
