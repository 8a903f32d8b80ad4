"""What the results say: intervals, pairing by seed, the lines that count, verdicts on claims."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_results import METRIC, TABLE, line, suite_of, write_results
from hypothesis import given
from hypothesis import strategies as st

from experiments.claims import ZERO, Claim, broken_claims, load_claims, unknown_runs, verdict
from experiments.finished import Finished, FinishedRun, drop_cut_line, read_finished
from experiments.statistics import Estimate, estimate, paired_difference
from experiments.tables import format_estimate

# Statistics


def test_interval_is_that_of_student_s_sleep_data() -> None:
    """Student (1908), extra hours of sleep, as R's `t.test` gives it, paired."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
    assert found is not None
    assert found.n == 10
    assert found.mean == pytest.approx(-1.58)
    assert found.interval == pytest.approx((-2.4598858, -0.7001142))


def test_interval_of_three_values_is_that_of_the_formula_by_hand() -> None:
    found = estimate([0.2, 0.3, 0.4])
    assert found.interval == pytest.approx((0.3 - 0.248414, 0.3 + 0.248414), abs=1e-6)


def test_one_value_has_no_interval_and_takes_no_side() -> None:
    found = estimate([0.4])
    assert (found.mean, found.interval, found.n, found.side) == (0.4, None, 1, 0)
    assert format_estimate(found) == "0.400"


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 value"):
        estimate([])


@pytest.mark.parametrize(("mean", "half", "side"), [(1, 0.5, 1), (-1, 0.5, -1), (1, 1, 0), (0.5, 1, 0), (0, 0, 0)])
def test_an_interval_that_touches_0_takes_no_side(mean: float, half: float, side: int) -> None:
    assert Estimate(mean, half, 3).side == side


def test_differences_are_paired_by_seed_and_only_over_common_ones() -> None:
    first, second = {7: 1.0, 0: 5.0, 2: 0.0}, {2: -1.0, 0: 4.0, 9: 100.0}
    found = paired_difference(first, second)
    assert found is not None
    assert (found.mean, found.half, found.n) == (1.0, 0.0, 2)  # unpaired the interval would be wide
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


# Results


def test_the_last_wanted_line_of_a_run_counts(tmp_path: Path) -> None:
    lines = [
        line("addition", "ce", 0, 0.1, settings="wanted"),
        line("addition", "ce", 0, 0.2, settings="wanted"),
        line("addition", "ce", 0, 0.3, settings="other"),
        line("addition", "ce", 1, 0.4, settings="other"),
        line("addition", "d_gold", 0, 0.5, settings="wanted"),
    ]
    folder = write_results(tmp_path, lines)
    wanted = {("addition", "ce", seed): "wanted" for seed in (0, 1)}
    with pytest.warns(UserWarning, match=r"1 of the wanted runs .* do not count: addition/ce/1; run them again"):
        found = read_finished(folder, wanted)
    assert found.metric("addition", "ce", METRIC) == {0: 0.2}
    assert found.of("addition", "d_gold") == {}
    assert read_finished(folder).metric("addition", "ce", METRIC) == {0: 0.3, 1: 0.4}


@pytest.mark.parametrize(
    "damaged", ['{"suite": "addition", "ru', '{"suite": "addition"}', "3", '{"metrics": {"x": NaN}}']
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    whole = json.dumps(line("addition", "ce", 0, 0.1))
    if "NaN" in damaged:
        damaged = json.dumps(line("addition", "ce", 1, math.nan))
    (tmp_path / "results.jsonl").write_text(f"{whole}\n{damaged}\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2.*delete the line"):
        read_finished(tmp_path)


def test_a_folder_without_results_has_no_finished_runs(tmp_path: Path) -> None:
    assert read_finished(tmp_path).runs == {}
    drop_cut_line(tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("cut", ['{"suite": "addition", "ru', "{", json.dumps(line("addition", "ce", 1, 0.2))])
def test_a_last_line_without_its_end_is_dropped_and_no_other(tmp_path: Path, cut: str) -> None:
    path = write_results(tmp_path, [line("addition", "ce", 0, 0.1)]) / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + cut.encode())
    drop_cut_line(tmp_path)
    assert path.read_bytes() == whole
    drop_cut_line(tmp_path)
    assert path.read_bytes() == whole
    path.write_text(cut)
    drop_cut_line(tmp_path)
    assert path.read_bytes() == b""


# Claims


def finished_of(values: dict[str, list[float]]) -> Finished:
    runs = [
        FinishedRun("s", run, seed, "", "", {"m": value, "m/loss": value}, {}, 1.0)
        for run, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    return Finished({run.key: run for run in runs})


def claim_of(*comparisons: tuple[str, str], higher_is_better: bool = True, ours: bool = False) -> Claim:
    named = tuple((f"s/{better}", f"s/{worse}") for better, worse in comparisons)
    metric, source = "m" if higher_is_better else "m/loss", "ours; but why" if ours else "X-Token"
    return Claim(claim="c", source=source, metric=metric, comparisons=named)


def claim_above_zero(run: str) -> Claim:
    return replace(claim_of((run, "")), comparisons=((f"s/{run}", ZERO),))


FIXED = finished_of(
    {"low": [0.0, 0.1, 0.2], "high": [1.0, 1.12, 1.19], "noisy": [0.9, -0.6, 0.1], "two": [5.0, 5.0], "one": [9.0]}
)


@pytest.mark.parametrize(
    ("comparisons", "expected"),
    [
        ([("high", "low")], "reproduced"),
        ([("low", "high")], "not reproduced"),
        ([("noisy", "low")], "undecided"),
        ([("high", "low"), ("noisy", "low")], "undecided"),
        ([("high", "low"), ("low", "high")], "not reproduced"),
        ([("noisy", "low"), ("low", "high")], "not reproduced"),
        ([("high", "two")], "not run"),
        ([("one", "low")], "not run"),
        ([("high", "low"), ("absent", "low")], "not run"),
        ([("low", "high"), ("low", "absent")], "not run"),
    ],
)
def test_verdict_follows_from_the_sides_of_all_intervals(comparisons: list[tuple[str, str]], expected: str) -> None:
    claim = claim_of(*comparisons)
    assert verdict(claim, FIXED) == expected
    lower = claim_of(*((worse, better) for better, worse in comparisons), higher_is_better=False)
    assert verdict(lower, FIXED) == expected
    ours = claim_of(*comparisons, ours=True)
    words = {"reproduced": "holds", "not reproduced": "does not hold"}
    assert verdict(ours, FIXED) == words.get(expected, expected)


def test_where_intervals_have_to_be_apart_a_steady_difference_is_not_enough() -> None:
    # Every difference is 0.5, but the values of one run lie in each other's interval.
    results = finished_of({"low": [0.0, 1.0, 2.0], "high": [0.5, 1.5, 2.5], "far": [90.0, 91.1, 92.0]})
    for better, expected in (("high", "undecided"), ("far", "reproduced")):
        assert verdict(replace(claim_of((better, "low")), apart=True), results) == expected
        assert verdict(claim_of((better, "low")), results) == "reproduced"
    assert verdict(replace(claim_of(("low", "far")), apart=True), results) == "not reproduced"


def test_a_run_is_compared_with_zero_by_its_own_values() -> None:
    results = finished_of({"above": [0.9, 1.0, 1.2], "around": [-1.0, 0.5, 0.1]})
    assert verdict(claim_above_zero("above"), results) == "reproduced"
    assert verdict(claim_above_zero("around"), results) == "undecided"
    assert verdict(replace(claim_above_zero("above"), metric="m/loss"), results) == "not reproduced"
    assert verdict(claim_above_zero("absent"), results) == "not run"


def test_the_first_value_of_a_history_counts_where_a_claim_asks_for_it() -> None:
    curves = {"up": [(50, -1.0), (100, 5.0)], "down": [(50, 1.0), (100, -5.0)]}
    runs = [
        FinishedRun("s", run, seed, "", "", {"m": curve[-1][1] + seed / 10}, {"m": [(50, curve[0][1]), curve[1]]}, 1.0)
        for run, curve in curves.items()
        for seed in range(3)
    ]
    results = Finished({run.key: run for run in runs})
    claim = claim_of(("up", "down"))
    assert verdict(claim, results) == "reproduced"
    assert verdict(replace(claim, at="first"), results) == "not reproduced"


def test_a_claim_is_broken_where_one_seed_breaks_it() -> None:
    results = finished_of(
        {"low": [0.0, 0.1, 0.2], "high": [1.0, 1.1, 1.2], "mixed": [0.5, 0.1, 0.6], "two": [9.0, 9.0]}
    )
    holds, breaks, lacks = (claim_of(pair) for pair in (("high", "low"), ("mixed", "low"), ("two", "low")))
    (broken,) = broken_claims([holds, breaks], results)
    assert broken == "c: m of s/mixed is {0: 0.5, 1: 0.1, 2: 0.6}, of s/low {0: 0.0, 1: 0.1, 2: 0.2} (by seed)"
    assert broken_claims([claim_of(("low", "high"), higher_is_better=False)], results) == []
    assert broken_claims([lacks], results) == ["c: s/two and s/low are not finished for the same seeds"]


SEVERAL = st.lists(st.floats(-1, 1), min_size=2, max_size=6)


@given(SEVERAL, SEVERAL, st.booleans())
def test_a_swapped_comparison_swaps_reproduced_and_not_reproduced(
    first: list[float], second: list[float], higher_is_better: bool
) -> None:
    results = finished_of({"a": first, "b": second})
    claim = claim_of(("a", "b"), higher_is_better=higher_is_better)
    swapped = claim_of(("b", "a"), higher_is_better=higher_is_better)
    other = {"reproduced": "not reproduced", "not reproduced": "reproduced"}
    found = verdict(claim, results)
    assert verdict(swapped, results) == other.get(found, found)
    assert (found == "not run") == (min(len(first), len(second)) < 3)


def test_shipped_claims_are_of_one_direction_each_and_different() -> None:
    claims = load_claims()
    assert len({claim.claim for claim in claims}) == len(claims) > 0
    assert len({(claim.comparisons, claim.metric, claim.at) for claim in claims}) == len(claims)
    assert all(better != worse for claim in claims for better, worse in claim.comparisons)


def test_runs_that_no_suite_has_are_found() -> None:
    suites = {"addition": suite_of(TABLE)}
    pair = ("addition/ce", "addition/d_golf"), ("words/ce", "addition/ce"), ("addition/d_gold", ZERO)
    claim = Claim(claim="", source="", metric="m", comparisons=pair)
    assert unknown_runs([claim], suites) == ["addition/d_golf", "words/ce"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": "m"}, "must have"),
        ({"comparisons": []}, "list of pairs"),
        ({"comparisons": [["s/a", "b"]]}, "list of pairs"),
        ({"comparisons": [["s/a", "s/b", "s/c"]]}, "list of pairs"),
        ({"comparisons": [["zero", "s/a"]]}, "list of pairs"),
        ({"apart": 1}, "apart must be true or false"),
        ({"at": "best"}, "first or last, got 'best'"),
    ],
)
def test_an_entry_that_is_no_claim_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entry = {"claim": "c", "source": "", "metric": "m", "comparisons": [["s/a", "s/b"]]}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([entry, {**entry, **change}]))
    with pytest.raises(ValueError, match=f"claim 2.*{message}"):
        load_claims(path)
