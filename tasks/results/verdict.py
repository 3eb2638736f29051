"""The sentence at the head of a run's results: which explainers beat every control, and in what.

It is made by rule from the leaderboard of all ranked columns. It only says what a test shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.results.leaderboard import Leaderboard, Row

# What a control is, in the middle of a sentence.
WORDS = {
    "random": "random noise",
    "center_gaussian": "the centred Gaussian",
    "sobel": "Sobel's edges",
    "all_ones": "the map of ones",
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NAMED = 3  # names in one list; the others are counted
_GROUPS = 3  # groups of explainers that win equally often
_CHANCE = "nothing says whether any explainer beats chance"


def verdict(board: Leaderboard) -> str:
    """Say in one sentence which explainers beat every control; what is not counted follows in short ones.

    Parameters
    ----------
    board
        The leaderboard of all ranked columns of a run.
    """
    unjudged, tested = _unjudged(board), tested_columns(board)
    if unjudged or not tested:
        return unjudged or _untested(board)
    told = f"On {_images(board, tested)}, {_won(board, tested)}."
    return " ".join([told, *_not_counted(board, tested)])


def _unjudged(board: Leaderboard) -> str | None:
    """Say what a run lacks so that nothing can be judged; None if it has all."""
    if not board.explainers:
        return "This job has only controls, so there is no explainer to judge."
    if not board.controls:
        return (
            f"There are no controls in this job, so {_CHANCE}; take out controls = false, or add "
            '[[explainers]] name = "random".'
        )
    if not any(cell.n for row in board.explainers for cell in row.cells.values()):
        return "No metric has a value for any explainer, so nothing can be said of them."
    return None


def _untested(board: Leaderboard) -> str:
    """Say why no explainer is tested against the controls."""
    if board.images == 1:
        one = board.inputs.removesuffix("s")
        return f"Only one {one} has values, so there are no intervals and no tests, and {_CHANCE}."
    beside = {c for row in board.explainers for c, cell in row.cells.items() if cell.n and cell.over}
    if not beside:
        return f"No control has a value in a metric of the explainers, so {_CHANCE}."
    if all(board.columns[name].pooled for name in beside):
        return f"The metrics have one number for all {board.inputs}, and so no test: {_CHANCE}."
    few = _too_few(
        board, [name for name in board.columns if name in beside and not board.columns[name].pooled]
    )
    if any("in common" in what for _, what in few):
        told = [f"{listed(names)} {'has' if len(names) == 1 else 'have'} {what}" for names, what in few]
        return f"{'; '.join(told)}, so {_CHANCE}."
    return (
        f"{board.images:,} {board.inputs} are too few for Wilcoxon's test with Holm's correction to tell an "
        f"explainer from a control, so {_CHANCE}."
    )


def _images(board: Leaderboard, tested: Sequence[str]) -> str:
    """How many images count, "up to" if it depends on the metric."""
    counts = [board.columns[name].n for name in tested]
    return f"{'up to ' if min(counts) < max(counts) else ''}{max(counts):,} {board.inputs}"


def tested_columns(board: Leaderboard) -> list[str]:
    """Return the columns in which at least one explainer is tested against the controls."""
    return [c for c in board.columns if any(_beats(row, c) is not None for row in board.explainers)]


def _beats(row: Row, column: str) -> bool | None:
    return row.cells[column].beats if column in row.cells else None


def _won(board: Leaderboard, tested: Sequence[str]) -> str:
    """Who beats the controls in how many metrics, and in which metrics nobody does."""
    groups: dict[tuple[int, int], list[str]] = {}
    for row in board.explainers:
        known = [beats for c in tested if (beats := _beats(row, c)) is not None]
        if known:
            groups.setdefault((sum(known), len(known)), []).append(row.name)
    ordered = sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    controls = _controls(board)
    (most, of), first = ordered[0]
    if not most:
        where = listed(tested, " or ") if len(tested) <= _NAMED else f"any of {len(tested)} metrics"
        who = "no explainer beats" if len(board.explainers) > 1 else f"{first[0]} does not beat"
        return f"{who} {controls} in {where}"
    told = f"{listed(first)} beat{'s' * (len(first) == 1)} {controls} in {_share(most, of, tested)}"
    parts = [f"{listed(names)} in {_times(count, out_of, of)}" for (count, out_of), names in ordered[1:]]
    if len(ordered) > _GROUPS:
        rest = ordered[_GROUPS - 1 :]
        how_many = sum(len(names) for _, names in rest)
        parts = [*parts[: _GROUPS - 2], f"{how_many} more in at most {rest[0][0][0]}"]
    return "; ".join([", ".join([told, *parts]), *_nobody(board, tested)])


def _share(count: int, of: int, tested: Sequence[str]) -> str:
    if of == 1:
        return tested[0] if len(tested) == 1 else "1 metric"
    if count == of:
        return "both metrics" if of == 2 else f"all {of} metrics"
    return f"{count} of {of} metrics"


def _times(count: int, of: int, of_first: int) -> str:
    return f"{count or 'none'}{'' if of == of_first else f' of {of}'}"


def _nobody(board: Leaderboard, tested: Iterable[str]) -> list[str]:
    """One phrase per control that no explainer beats, with the metrics, or for all controls together."""
    found: dict[str, list[str]] = {}
    for column in tested:
        cells = [row.cells[column] for row in board.explainers if column in row.cells]
        if any(cell.beats for cell in cells):
            continue
        controls = {name for cell in cells for name in cell.over}
        unbeaten = [name for name in controls if not any(cell.over.get(name) for cell in cells)]
        what = _word(unbeaten[0]) if len(unbeaten) == 1 else _controls(board)
        found.setdefault(what, []).append(column)
    who = "no explainer beats" if len(board.explainers) > 1 else "it does not beat"
    return [f"{who} {what} in {listed(columns, ' or ')}" for what, columns in found.items()]


def _controls(board: Leaderboard) -> str:
    count = len(board.controls)
    if count == 1:
        return _word(board.controls[0].name)
    if count == 2:
        return "both controls"
    return f"all {_NUMBERS[count] if count < len(_NUMBERS) else count} controls"


def _word(control: str) -> str:
    return WORDS.get(control, control)


def _not_counted(board: Leaderboard, tested: Sequence[str]) -> list[str]:
    """Sentences on the metrics and explainers that are not counted, and on controls without a value."""
    scored = {c for row in board.explainers for c, cell in row.cells.items() if cell.n}
    rest = [column for name, column in board.columns.items() if name not in tested]
    told = [
        (
            [c.name for c in rest if c.name in scored and c.pooled],
            f"one number for all {board.inputs}, and so no test",
        ),
        *_too_few(board, [c.name for c in rest if c.name in scored and not c.pooled]),
        ([c.name for c in rest if c.name not in scored], "no value"),
        (
            [row.name for row in board.explainers if all(_beats(row, c) is None for c in tested)],
            "nothing to test",
        ),
    ]
    for row in board.controls:
        lacking = [c for c in tested if c not in row.cells or not row.cells[c].n]
        if lacking:
            told.append(([row.name], f"no value in {listed(lacking)}, and does not count there"))
    return [
        f"{listed(names)} {'has' if len(names) == 1 else 'have'} {what}." for names, what in told if names
    ]


def _too_few(board: Leaderboard, columns: Sequence[str]) -> list[tuple[list[str], str]]:
    """Columns without a test, by the reason: too few images, or too few that a control has as well."""
    found: dict[str, list[str]] = {}
    for column in columns:
        over = [row.cells[column].over for row in board.explainers if column in row.cells]
        there = list(dict.fromkeys(control for own in over for control in own))
        without = [control for control in there if all(own.get(control) is None for own in over)]
        told = f"too few {board.inputs} for a test"
        if len(without) < len(there):
            which = (
                f"{listed([*map(_word, without)])} for a test against {'it' if len(without) == 1 else 'them'}"
            )
            told = f"too few {board.inputs} in common with {which}"
        found.setdefault(told, []).append(column)
    return [(names, told) for told, names in found.items()]


def listed(names: Sequence[str], last: str = " and ") -> str:
    """Return names as a list in words; beyond a few they are counted."""
    shown = [*names[:_NAMED], f"{len(names) - _NAMED} more"] if len(names) > _NAMED + 1 else list(names)
    return last.join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
