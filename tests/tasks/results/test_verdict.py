"""The sentence at the head of the results says what the marks of the leaderboard say, and no more."""

from __future__ import annotations

import re

import pytest
from boards import board, cell
from hypothesis import given
from hypothesis import strategies as st

from explainers.control_names import CONTROLS
from tasks.results.leaderboard import Row
from tasks.results.verdict import WORDS, verdict

ALL = dict.fromkeys(CONTROLS, True)
NONE = dict.fromkeys(CONTROLS, False)
BUT_THE_CENTRE = ALL | {"center_gaussian": False}
CHANCE = "nothing says whether any explainer beats chance"


def test_every_control_has_a_word() -> None:
    assert WORDS.keys() == set(CONTROLS)


def test_the_sentence_of_the_specification() -> None:
    won = {f"m{i}": ALL for i in range(14)} | {f"l{i}": NONE for i in range(3)}
    over = {name: won | {"deletion": BUT_THE_CENTRE} for name in ("decomcam", "gradcam")}
    over["moxi"] = {name: ALL if name[0] == "l" else each for name, each in won.items()} | {
        "deletion": BUT_THE_CENTRE
    }
    over["moxi"] |= {f"m{i}": NONE for i in range(14)}
    assert verdict(board(over, CONTROLS, 1000)) == (
        "On 1,000 images, decomcam and gradcam beat all four controls in 14 of 18 metrics, moxi in 3; no "
        "explainer beats the centred Gaussian in deletion."
    )


@pytest.mark.parametrize(
    ("over", "controls", "told"),
    [
        ({"a": {"m": {"random": True}}}, ["random"], "On 100 images, a beats random noise in m."),
        ({"a": {"m": {"noise": False}}}, ["noise"], "On 100 images, a does not beat noise in m."),
        (
            {"a": {"m": {"random": True}, "l": {"random": True}}},
            ["random"],
            "On 100 images, a beats random noise in both metrics.",
        ),
        (
            {"a": {"m": {"random": True}, "l": {"random": False}}},
            ["random"],
            "On 100 images, a beats random noise in 1 of 2 metrics; it does not beat random noise in l.",
        ),
        (
            {"a": {"m": NONE, "l": NONE}, "b": {"m": NONE, "l": NONE}},
            CONTROLS,
            "On 100 images, no explainer beats all four controls in m or l.",
        ),
        (
            {"a": {c: {"random": c == "m", "sobel": c == "m"} for c in "mlk"}},
            ["random", "sobel"],
            "On 100 images, a beats both controls in 1 of 3 metrics; it does not beat both controls in l or "
            "k.",
        ),
        (
            {name: dict.fromkeys("mlkj", NONE) for name in "ab"},
            CONTROLS,
            "On 100 images, no explainer beats all four controls in any of 4 metrics.",
        ),
        (  # one beats the first control and the other the second, so that no single one is unbeaten
            {
                "a": {"m": {"random": True, "sobel": True}, "l": {"random": True, "sobel": False}},
                "b": {"m": {"random": True, "sobel": True}, "l": {"random": False, "sobel": True}},
            },
            ["random", "sobel"],
            "On 100 images, a and b beat both controls in 1 of 2 metrics; no explainer beats both controls "
            "in l.",
        ),
    ],
)
def test_small_runs(over: dict[str, dict[str, dict[str, bool]]], controls: list[str], told: str) -> None:
    assert verdict(board(over, controls)) == told


def test_what_is_not_counted_is_said() -> None:
    one = {"random": True}
    over = {
        "a": {"m": one, "l": one, "pxap": {"random": None}, "none": {}, "few": {"random": None}},
        "ptame": {"m": one, "l": {"random": None}, "none": {}},
        "maps": {"m": {"random": None}, "none": {}},
    }
    counts = {"m": 100, "l": 90, "pxap": 100, "none": 0, "few": 3}
    made = board(over, ["random", "all_ones"], counts, pooled=["pxap"], inputs="texts")
    made.controls[1].cells["l"] = cell(0)
    assert verdict(made) == (
        "On up to 100 texts, a beats both controls in both metrics, ptame in 1 of 1. pxap has one number for "
        "all texts, and so no test. few has too few texts for a test. none has no value. maps has nothing to "
        "test. all_ones has no value in l, and does not count there."
    )


def test_a_control_that_cannot_be_tested_is_named() -> None:
    few = {"random": True, "sobel": None}
    one = {"a": {"m": {"random": True, "sobel": True}, "l": few}}
    assert verdict(board(one, ["random", "sobel"])) == (
        "On 100 images, a beats both controls in m. l has too few images in common with Sobel's edges for a "
        "test against it."
    )
    assert verdict(board({"a": {"l": few}}, ["random", "sobel"])) == (
        f"l has too few images in common with Sobel's edges for a test against it, so {CHANCE}."
    )


def test_many_explainers_and_metrics_are_counted() -> None:
    over = {f"e{i}": {f"m{j}": ALL if j < max(1, 9 - i // 5) else NONE for j in range(20)} for i in range(25)}
    assert verdict(board(over, CONTROLS)) == (
        "On 100 images, e0, e1, e2 and 2 more beat all four controls in 9 of 20 metrics, e5, e6, e7 and 2 "
        "more in 8, 15 more in at most 7; no explainer beats all four controls in m9, m10, m11 or 8 more."
    )


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            board({"a": {"m": {}}}, []),
            f"There are no controls in this job, so {CHANCE}; take out controls = false, or add "
            '[[explainers]] name = "random".',
        ),
        (board({}, ["random"]), "This job has only controls, so there is no explainer to judge."),
        (
            board({"a": {"m": {}}}, ["random"], 0),
            "No metric has a value for any explainer, so nothing can be said of them.",
        ),
        (
            board({"a": {"m": {"random": None}}}, ["random"], 1, inputs="texts"),
            f"Only one text has values, so there are no intervals and no tests, and {CHANCE}.",
        ),
        (
            board({"a": {"m": {"random": None}}}, ["random"], 5),
            "5 images are too few for Wilcoxon's test with Holm's correction to tell an explainer from a "
            f"control, so {CHANCE}.",
        ),
        (
            board({"a": {"m": {"random": None}}}, ["random"], pooled=["m"]),
            f"The metrics have one number for all images, and so no test: {CHANCE}.",
        ),
        (
            board({"a": {"m": {}}}, ["all_ones"]),
            f"No control has a value in a metric of the explainers, so {CHANCE}.",
        ),
    ],
)
def test_what_cannot_be_judged_is_not(made: object, told: str) -> None:
    assert verdict(made) == told


@st.composite
def marks(draw: st.DrawFn) -> tuple[dict[str, dict[str, dict[str, bool | None]]], list[str]]:
    """What up to three explainers have over up to three controls in up to four metrics."""
    controls = [f"c{i}" for i in range(draw(st.integers(1, 3)))]
    known = st.sampled_from([True, True, False, None])
    cell_ = st.fixed_dictionaries(dict.fromkeys(controls, known))
    columns = st.fixed_dictionaries({f"m{i}": cell_ for i in range(draw(st.integers(1, 4)))})
    return draw(st.fixed_dictionaries({f"e{i}": columns for i in range(draw(st.integers(1, 3)))})), controls


def numbers_said(told: str) -> dict[str, tuple[int, int]]:
    """In how many metrics of how many an explainer beats the controls, read from the words."""
    forms = r"both|all \d|\d of \d|none of \d|\d|none|m\d"
    said: dict[str, tuple[int, int]] = {}
    of = 0
    for names, number in re.findall(rf"((?:e\d(?:, | and )?)+) (?:beats? .*? )?in ({forms})", told):
        digits = [int(digit) for digit in re.findall(r"\d", number)]
        count = {"b": 2, "m": 1, "n": 0}.get(number[0], digits[0] if digits else 0)
        same = number[0] in "bma" or (number == "1" and not said)  # all of its metrics
        of_own = count if same else digits[-1] if " of " in number else of
        of = of or of_own
        said |= dict.fromkeys(re.findall(r"e\d", names), (count, of_own))
    return said


@given(marks())
def test_the_sentence_says_what_the_marks_say(
    given: tuple[dict[str, dict[str, dict[str, bool | None]]], list[str]],
) -> None:
    over, controls = given
    told = verdict(board(over, controls))

    def beats(explainer: str, column: str) -> bool | None:
        values = list(over[explainer][column].values())
        return False if False in values else None if None in values else True

    columns = list(next(iter(over.values())))
    tested = [c for c in columns if any(beats(e, c) is not None for e in over)]
    if not tested:
        assert CHANCE in told
        return
    head, *exceptions = told.split(". ")[0].split("; ")
    counts = {e: [beats(e, c) for c in tested if beats(e, c) is not None] for e in over}
    won = [c for c in tested if any(beats(e, c) for e in over)]
    if not won:
        assert "beat" in head
        assert not re.search(r"e\d( and|,)? .*beats? .* in \d", head)
        assert not exceptions
        return
    assert told.startswith("On 100 images, ")
    said = numbers_said(head.removeprefix("On 100 images, "))
    assert said == {e: (sum(own), len(own)) for e, own in counts.items() if own}
    assert list(said.values()) == sorted(said.values(), key=lambda pair: (-pair[0], pair[1]))
    # Each metric in which nobody beats all controls, once, with the control if it is a single one.
    named = [c for phrase in exceptions for c in re.findall(r"m\d", phrase)]
    assert sorted(named) == sorted(c for c in tested if c not in won)
    for phrase in exceptions:
        for c in re.findall(r"m\d", phrase):
            unbeaten = [k for k in controls if not any(over[e][c][k] for e in over)]
            single = re.findall(r"c\d", phrase)
            assert single == (unbeaten if len(unbeaten) == 1 or len(controls) == 1 else [])


def test_a_row_that_lacks_a_column_of_the_others_is_no_error() -> None:
    made = board({"a": {"m": {"random": True}}, "b": {"m": {"random": False}}}, ["random"])
    made.explainers.append(Row("late", {}, None))
    assert verdict(made) == "On 100 images, a beats random noise in m, b in none. late has nothing to test."
