"""The gallery's samples are those that brute force finds, and every reason is true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.control_names import CONTROLS
from storage.query import query
from storage.run import Run
from tasks.page.choice import AT_RANDOM, EACH, Facts, choose, facts_of


def facts(n: int, scores: dict[str, list[float]], better: str = "higher", **more: list[float]) -> Facts:
    nothing = {"wrong": np.full(n, np.nan), "failed": np.zeros(n, int), "degenerate": np.zeros(n, int)}
    told = nothing | {key: np.array(values) for key, values in more.items()}
    return Facts(
        rows=np.arange(n) * 10,
        column="insertion",
        better=better,
        scores={name: np.array(values, float) for name, values in scores.items()},
        **told,
    )


def chosen_for(found: dict, kind: str) -> list[int]:
    return [row for row, reasons in found.items() if kind in {reason.kind for reason in reasons}]


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan]), min_size=1, max_size=12),
    st.sampled_from(["higher", "lower"]),
)
def test_the_best_and_worst_are_those_of_sorted_scores_and_no_sample_is_both(
    scores: list[float], better: str
) -> None:
    found = choose(facts(len(scores), {"a": scores}, better), seed=0)
    known = sorted(score for score in scores if not np.isnan(score))
    number = min(EACH, len(known) // 2)
    low = [score for score in known[:number] if score < known[-1]]
    high = [score for score in known[::-1][:number] if score > known[0]]
    best, worst = chosen_for(found, "best"), chosen_for(found, "worst")
    extremes = sorted(scores[row // 10] for row in best), sorted(scores[row // 10] for row in worst)
    assert extremes == ((high[::-1], low) if better == "higher" else (low, high[::-1]))
    assert not set(best) & set(worst)


def test_samples_are_disagreed_about_by_the_spread_of_their_scores() -> None:
    a = [0.1, 0.5, 0.9, 0.4, np.nan, 0.3, 0.3, 0.2, 0.0]
    b = [0.1, 0.7, 0.1, 0.5, 0.9, 0.6, np.nan, 0.6, 0.2]
    found = choose(facts(9, {"a": a, "b": b}), seed=0)
    # Spreads: 0, 0.2, 0.8, 0.1, none, 0.3, none, 0.4, 0.2
    assert set(chosen_for(found, "disagreed")) == {20, 70, 50, 10, 80, 30}


def test_every_reason_gets_room_before_one_gets_more() -> None:
    n = 400
    values = np.random.default_rng(1).random(n).tolist()
    scores = {f"e{i}": np.roll(values, i).tolist() for i in range(25)}
    wrong = [0.9 if i >= 200 else np.nan for i in range(n)]
    found = choose(facts(n, scores, wrong=wrong, failed=[i > 300 for i in range(n)]), seed=3)
    assert len(found) == 48
    for name in scores:
        assert any(f"best of {name} in" in reason.text for own in found.values() for reason in own), name
    for kind in ("random", "disagreed", "wrong", "failed"):
        assert chosen_for(found, kind), kind


def test_what_is_true_of_a_sample_is_a_reason_whatever_it_was_chosen_for() -> None:
    found = choose(facts(3, {}, wrong=[0.2, np.nan, 0.7], degenerate=[0, 2, 0], failed=[0, 0, 1]), seed=0)
    assert {row: {reason.kind for reason in own} - {"random"} for row, own in found.items()} == {
        0: {"wrong"},
        10: {"degenerate"},
        20: {"wrong", "failed"},
    }


def test_the_random_samples_follow_the_seed() -> None:
    one, same, other = (choose(facts(1000, {}), seed) for seed in (0, 0, 1))
    assert list(one) == list(same)
    assert len(one) == len(other) == AT_RANDOM
    assert set(one) != set(other)


def test_the_facts_of_a_run_are_those_of_its_tables(finished: Run) -> None:
    found = facts_of(finished)
    samples = query(finished.root, "SELECT * FROM samples").to_pylist()
    assert found.rows.tolist() == list(range(finished.rows))
    assert (found.column, found.better) == ("insertion", "higher")
    assert list(found.scores) == ["ddcam", "gradcam"]
    wrong = [s["confidence"] if s["prediction"] not in s["labels"] else None for s in samples]
    assert [None if np.isnan(value) else value for value in found.wrong] == wrong
    rows = query(finished.root, "SELECT * FROM scores WHERE metric = 'insertion'").to_pylist()
    for name, values in found.scores.items():
        known = {row["sample_id"]: row["value"] for row in rows if row["explainer"] == name}
        assert values.tolist() == pytest.approx([known[s["sample_id"]] for s in samples])
    flat = {s["sample_id"]: 0 for s in samples}
    for row in rows:
        flat[row["sample_id"]] += row["explainer"] not in CONTROLS and row["status"] in {
            "all_zero",
            "constant",
        }
    assert found.degenerate.tolist() == list(flat.values())
    assert not found.failed.any()
