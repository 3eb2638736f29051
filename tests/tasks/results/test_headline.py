"""Which columns are shown first."""

import pytest
from boards import column, manifest

from tasks.metrics.base import Column
from tasks.metrics.registry import metrics
from tasks.results.headline import COLUMNS, KINDS, headline, ranked

TWO = {"insertion": [column("insertion")], "entropy": [column("entropy", "lower")]}
LOCAL = {"pointing_game": [column("pointing_game_center", None), column("pointing_game")]}


def of(chosen: dict[str, list[Column]], **job: object) -> list[str]:
    return headline(manifest(["gradcam"], chosen, job=job))


def test_every_metric_of_the_kinds_exists_and_stands_in_one_kind_only() -> None:
    named = [name for kind in KINDS.values() for name in kind]
    assert len(set(named)) == len(named)
    assert set(named) <= set(metrics.names())
    assert COLUMNS.keys() <= set(named)


def test_one_column_of_each_kind_is_chosen_in_the_order_of_the_kinds() -> None:
    sanity = {"random_logit": [column("random_logit", "lower"), column("random_logit_ssim", "lower")]}
    more = {"deletion": [column("deletion")], "sparseness": [column("sparseness")]}
    assert of(more | sanity | LOCAL | TWO) == ["insertion", "pointing_game", "random_logit", "sparseness"]
    assert of(TWO) == ["insertion", "entropy"]


def test_a_metric_may_be_stood_for_by_another_column_than_its_first() -> None:
    road = {"road": [column("road_morf", "lower"), column("road_combined")]}
    assert of(road) == ["road_combined"]
    # A metric of a run of another version may lack that column.
    assert of({"road": [column("road_morf", "lower")]}) == ["road_morf"]
    assert of({"adcc": [column("coherency"), column("adcc", None)]}) == ["coherency"]


def test_plug_ins_follow_with_one_column_each() -> None:
    plug_ins = {
        f"mine.py:M{i}": [column(f"m{i}_area", None), column(f"m{i}"), column(f"m{i}_b")] for i in range(5)
    }
    assert of(plug_ins) == ["m0", "m1", "m2", "m3"]
    assert of(plug_ins | TWO) == ["insertion", "entropy", "m0", "m1"]
    assert of({"mine.py:M": [column("area", None)]}) == []


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (["entropy"], ["entropy"]),
        (["entropy", "pointing_game"], ["entropy", "pointing_game"]),
        (None, ["insertion", "pointing_game", "entropy"]),
        # A job that was extended, or a folder from anybody, may name what is not there.
        (["nothing", "pointing_game_center"], ["insertion", "pointing_game", "entropy"]),
        ("entropy", ["insertion", "pointing_game", "entropy"]),
    ],
)
def test_the_job_may_name_the_columns(asked: object, shown: list[str]) -> None:
    assert of(TWO | LOCAL, headline=asked) == shown


def test_reference_columns_are_not_ranked() -> None:
    assert ranked(manifest(["gradcam"], LOCAL | TWO)) == ["pointing_game", "insertion", "entropy"]
