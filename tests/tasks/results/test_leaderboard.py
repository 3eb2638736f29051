"""The leaderboard against the scores it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isnan, nan
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from boards import column, manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from storage.manifest import ExplainerEntry, Manifest
from tasks.results import statistics
from tasks.results.leaderboard import LEVEL, ROUNDING, Leaderboard, leaderboard
from tasks.results.statistics import PairedScores, result_rows

CONTROLS = ["random", "sobel", "all_ones"]


@pytest.fixture(autouse=True, scope="module")
def _few_resamples() -> Iterator[None]:
    """The intervals are passed on as they are, so that few resamples do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 5)
        yield


def made(
    scores: dict[str, tuple[str | None, np.ndarray]], names: list[str], about: Manifest, **more: Any
) -> Leaderboard:
    """The leaderboard of scores (explainers, images) by column, with NaN where there is none."""
    paired = [PairedScores(name, better, ~np.isnan(v), v) for name, (better, v) in scores.items()]
    controls = [i for i, name in enumerate(names) if (about.explainers[name].name or name) in CONTROLS]
    wanted = [(i, c) for c in controls for i in range(len(names)) if i not in controls]
    summary, compared = result_rows(paired, names, wanted, seed=0)
    for row in summary:
        known = ~np.isnan(scores[row["metric"]][1][names.index(row["explainer"])])
        row |= {"n": int(known.sum()), "reason": None if known.any() else "no value"}
    costs = [{"explainer": name, "milliseconds": float(i)} for i, name in enumerate(names)]
    tables = (pa.Table.from_pylist(rows) for rows in (summary, compared, costs))
    return leaderboard(*tables, about, **more)


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[str], dict[str, tuple[str, np.ndarray]]]:
    """Explainers and controls, and their scores on up to 24 images, of which some are missing."""
    names = [f"e{i}" for i in range(draw(st.integers(1, 3)))] + CONTROLS[: draw(st.integers(0, 3))]
    images, seed = draw(st.sampled_from([1, 5, 7, 12, 24])), draw(st.integers(0, 10**6))
    generator = np.random.default_rng(seed)
    found = {}
    for index in range(draw(st.integers(1, 2))):
        shift = generator.choice([0, 0.02, 0.3], (len(names), 1))
        values = generator.random((len(names), images)) + shift
        if images == 24:  # with ties; with fewer images SciPy's test of ties takes long
            values = np.round(values, 1)
        values[generator.random(values.shape) < draw(st.sampled_from([0, 0, 0.2]))] = nan
        if draw(st.booleans()):  # one who has what another has, but for rounding
            values[0] = values[-1] + 1e-8
        found[f"m{index}"] = draw(st.sampled_from(["higher", "lower"])), values
    return names, found


def beats_by_hand(
    names: list[str], better: str, values: np.ndarray, best: int | None
) -> dict[str, bool | None]:
    """Which explainers are better than every control that has a value, from the scores alone."""
    signed = values if better == "higher" else -values
    controls = [i for i, name in enumerate(names) if name in CONTROLS]
    pairs = {frozenset((i, c)) for c in controls for i in range(len(names)) if i not in controls}
    pairs |= {frozenset((i, best)) for i in range(len(names)) if best not in (None, i)}
    p_values = {}
    for pair in pairs:
        one, other = pair
        gap = (signed[one] - signed[other])[~np.isnan(signed[one] - signed[other])]
        if len(gap):
            p_values[pair] = 1.0 if not gap.any() else wilcoxon(gap).pvalue
    corrected, least = {}, 0.0
    for position, pair in enumerate(sorted(p_values, key=lambda pair: p_values[pair])):
        least = max(least, p_values[pair] * (len(p_values) - position))
        corrected[pair] = min(1.0, least)
    found: dict[str, bool | None] = {}
    for i, name in enumerate(names):
        told: list[bool | None] = []
        for c in (c for c in controls if i not in controls and not np.isnan(values[c]).all()):
            gap = (signed[i] - signed[c])[~np.isnan(signed[i] - signed[c])]
            if not len(gap) or 0.5 ** (len(gap) - 1) * len(p_values) >= LEVEL:
                told.append(None)
                continue
            majority = (gap > 0).sum() > (gap < 0).sum()
            told.append(corrected[frozenset((i, c))] < LEVEL and gap.mean() > ROUNDING and majority)
        found[name] = False if False in told else True if told and None not in told else None
    return found


@settings(max_examples=40)
@given(scored())
def test_marks_are_those_of_the_scores(given: tuple[list[str], dict[str, tuple[str, np.ndarray]]]) -> None:
    names, scores = given
    about = manifest(names, {name: [column(name, better)] for name, (better, _) in scores.items()})
    board = made(scores, names, about)
    assert [row.name for row in board.controls] == [name for name in names if name in CONTROLS]
    assert {row.name for row in board.explainers} == set(names) - set(CONTROLS)
    for name, (better, values) in scores.items():
        signed = values if better == "higher" else -values
        common = ~np.isnan(values[~np.isnan(values).all(1)]).any(0)
        known = [i for i in range(len(names)) if not np.isnan(values[i]).all()]
        means = {i: signed[i][common].mean() for i in known} if common.any() else {}
        best = max(means, key=means.__getitem__, default=None)
        cells = {row.name: row.cells[name] for row in (*board.explainers, *board.controls)}
        hand = beats_by_hand(names, better, values, best)
        assert {each: cell.beats for each, cell in cells.items()} == hand
        most = (~np.isnan(values)).sum(1).max()
        for i, each in enumerate(names):
            n = int((~np.isnan(values[i])).sum())
            assert (cells[each].n, cells[each].fewer) == (n, n < most)
            assert not n or np.isclose(cells[each].mean, np.nanmean(values[i]))
            if best is not None and not np.isnan(values).any():  # all have the same images
                assert cells[each].best == (means[best] - means[i] <= ROUNDING)
        of_controls = {i: means[i] for i in means if names[i] in CONTROLS}
        found = board.columns[name].best_control
        assert (found is None) == (not of_controls)
        assert found is None or means[names.index(found)] == max(of_controls.values())
        assert board.columns[name].n == most


def test_a_difference_of_rounding_is_no_win_however_often_it_occurs() -> None:
    """On every image the explainer is better by 1e-8: the test is sure of it, and it means nothing."""
    noise = np.random.default_rng(0).random(50)
    names = ["gradcam", "random"]
    scores = {"m": ("higher", np.stack([noise + 1e-8, noise]))}
    about = manifest(names, {"m": [column("m")]})
    board = made(scores, names, about)
    (row,), (control,) = board.explainers, board.controls
    assert row.cells["m"].over == {"random": False}
    assert row.cells["m"].best
    assert control.cells["m"].best
    # In a column without ends the numbers say what is small.
    for scale, beats in ((1.0, False), (1e-9, True)):
        wide = manifest(names, {"m": [column("m", low=0.0, high=inf)]})
        board = made({"m": ("higher", np.stack([noise * scale + 1e-8, noise * scale]))}, names, wide)
        assert board.explainers[0].cells["m"].beats is beats


def test_a_mean_that_a_few_images_make_is_no_win() -> None:
    """Worse on 40 of 50 images, and far better on 10: the test tells them apart, but not in its favour."""
    values = np.stack([np.r_[np.full(40, 0.4), np.full(10, 1.0)], np.r_[np.full(40, 0.45), np.full(10, 0.1)]])
    names = ["gradcam", "random"]
    board = made({"m": ("higher", values)}, names, manifest(names, {"m": [column("m")]}))
    assert values[0].mean() > values[1].mean()
    assert board.explainers[0].cells["m"].beats is False


def test_a_control_has_its_label_and_columns_added_since_are_left_out() -> None:
    generator = np.random.default_rng(1)
    names = ["gradcam", "noise", "late"]
    about = manifest(names, {"m": [column("m")], "new": [column("new")]})
    about.explainers["noise"] = ExplainerEntry(parameters={}, grid=(8, 8), name="random")
    board = made({"m": ("higher", generator.random((2, 9)))}, names[:2], about)
    assert [row.name for row in board.controls] == ["noise"]
    assert [row.name for row in board.explainers] == ["gradcam"]
    assert list(board.columns) == ["m"]
    assert board.controls[0].milliseconds == 1.0
    assert board.inputs == "images"


def test_explainers_stand_in_one_order_whichever_columns_are_shown() -> None:
    """It is that of the mean rank in the headline columns, and where these are tied, in all ranked ones."""
    names = ["a", "b", "c", "late", "random"]
    values = np.linspace(0.1, 0.5, 5)[:, None] + np.zeros(3)
    values[3] = nan
    scores = {"up": ("higher", values), "down": ("lower", values), "also": ("lower", values)}
    columns = {name: [column(name, better)] for name, (better, _) in scores.items()}

    def orders(*headline: str) -> list[list[str]]:
        about = manifest(names, columns, job={"headline": headline})
        shown = [None, ["up"], ["also", "down"]]
        return [[row.name for row in made(scores, names, about, columns=own).explainers] for own in shown]

    assert orders("up") == [["c", "b", "a", "late"]] * 3
    assert orders("down") == [["a", "b", "c", "late"]] * 3
    assert orders("down", "up") == [["a", "b", "c", "late"]] * 3  # tied: `also` decides


def test_references_belong_to_the_column_whose_name_they_begin_with() -> None:
    names, same = ["a", "random"], np.full((2, 4), 0.25)
    scores = {
        "box": ("higher", same),
        "box_v2": ("higher", same),
        "box_v2_center": (None, same),
        "box_center": (None, same * 2),
        "other": (None, same),
        "single": ("higher", same),
        "area": (None, same),
        "depends": (None, np.array([[0.1] * 4, [0.2] * 4])),
    }
    of = {"boxes": list(scores)[:5], "energy": list(scores)[5:]}
    about = manifest(names, {m: [column(c, scores[c][0]) for c in own] for m, own in of.items()})
    board = made(scores, names, about)
    assert {name: dict(each.references) for name, each in board.columns.items()} == {
        "box": {"box_center": 0.5},
        "box_v2": {"box_v2_center": 0.25},
        "single": {"area": 0.25},  # `depends` is another number for each explainer
    }


def test_a_reference_is_that_of_the_rows_with_the_most_images() -> None:
    names = ["a", "b", "random"]
    lacking = np.array([[0.0, 1.0], [nan, 1.0], [0.0, 1.0]])
    scores = {"m": ("higher", lacking), "m_center": (None, lacking)}
    about = manifest(names, {"m": [column("m"), column("m_center", None)]})
    board = made(scores, names, about)
    assert board.columns["m"].references == {"m_center": 0.5}
    assert [row.cells["m"].fewer for row in sorted(board.explainers, key=lambda row: row.name)] == [
        False,
        True,
    ]


def test_a_row_without_a_value_says_why() -> None:
    names = ["a", "b", "random"]
    values = np.array([[0.5] * 3, [nan] * 3, [0.5] * 3])
    board = made({"m": ("higher", values)}, names, manifest(names, {"m": [column("m")]}))
    rows = {row.name: row.cells["m"] for row in board.explainers}
    assert (rows["b"].n, rows["b"].best, rows["b"].beats, rows["b"].reason) == (0, False, None, "no value")
    assert isnan(rows["b"].mean)
    assert rows["a"].reason is None


def test_a_summary_of_an_earlier_version_has_no_reasons() -> None:
    names = ["a", "random"]
    values = np.array([[nan] * 3, [0.5] * 3])
    paired = [PairedScores("m", "higher", ~np.isnan(values), values)]
    summary, compared = result_rows(paired, names, [(0, 1)], seed=0)
    known = [row | {"n": int((~np.isnan(values)).sum(1)[i])} for i, row in enumerate(summary)]
    tables = (
        pa.Table.from_pylist(rows) for rows in (known, compared, [{"explainer": "a", "milliseconds": 1.0}])
    )
    board = leaderboard(*tables, manifest(names, {"m": [column("m")]}))
    assert board.explainers[0].cells["m"].reason is None
    assert board.controls[0].milliseconds is None


@pytest.mark.parametrize(("images", "beats"), [(1, None), (5, None), (6, True)])
def test_no_test_can_tell_on_too_few_images(images: int, beats: bool | None) -> None:
    """With five images the lowest p-value is 2 / 2**5, even if all agree."""
    generator = np.random.default_rng(0)
    values = np.stack([1 - generator.random(images) / 9, generator.random(images) / 9])
    names = ["a", "random"]
    board = made({"m": ("higher", values)}, names, manifest(names, {"m": [column("m")]}))
    assert board.explainers[0].cells["m"].beats is beats
