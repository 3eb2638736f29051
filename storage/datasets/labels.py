"""Labels as files write them: class indices or names, one or several in a cell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

LARGEST = 2**31 - 1  # of a label; more classes than any model has
# Words that programs write for a cell without a value; -1.#ind and the like are NaN in C.
_MISSING = frozenset(["nan", "none", "null", "nil", "nat", "na", "n/a", "#n/a", "#na", "<na>"])
_MISSING |= {"#ref!", "#value!", "#name?", "#num!", "#null!", "#div/0!", "1.#ind", "1.#qnan", "1.#inf"}
# A list as a program prints it: [1, 2], ['cat'], (3,), {"a"}, [1 2] and []; a name in brackets is none.
_LIST = re.compile(r"""[\[({]\s*(|[^\])}]*,[^\])}]*|["'].*["']|[\s.+-]*\d[\d.\s+-]*)\s*[\])}]""", re.DOTALL)
_SEVERAL = "with semicolons between them, in place of label"


def number_labels(
    path: Path | str, labels: Sequence[str], place: Callable[[int], str]
) -> tuple[list[int], list[str]]:
    """Turn labels into numbers; return the numbers and the class names.

    Labels that are whole numbers are kept, zeros at their beginning apart, and there are no class names then.
    Names are numbered in sorted order.

    Parameters
    ----------
    path
        The file of the labels, for messages.
    labels
        The labels as they are written in the file.
    place
        Function that returns the place of a label in the file by its index, for messages.

    Raises
    ------
    ValueError
        If a label is neither a class index nor a name, see :func:`problem_with`, or if numbers and names are
        mixed. The message is one line with the file and the place.
    """
    kinds = dict.fromkeys(labels)  # each different label is checked once, in the order of the file
    for label in kinds:
        problem = problem_with(label)
        if problem is not None:
            raise ValueError(f"{path}, {place(labels.index(label))}: {problem}")
    numbers, names = [k for k in kinds if k.isdecimal()], sorted(k for k in kinds if not k.isdecimal())
    if numbers and names:
        name = next(index for index, label in enumerate(labels) if not label.isdecimal())
        number = next(index for index, label in enumerate(labels) if label.isdecimal())
        raise ValueError(
            f"{path}, {place(name)}: label {labels[name]!r} is a name, but {labels[number]} in "
            f"{place(number)} is a number; use only names or only numbers"
        )
    index = {name: position for position, name in enumerate(names)} or {kind: int(kind) for kind in kinds}
    return [index[label] for label in labels], names


def number_lists(
    path: Path | str, lists: Sequence[Sequence[str]], place: Callable[[int], str]
) -> tuple[Iterator[list[int]], list[str]]:
    """Turn the labels of items that may have any number of them into numbers, as :func:`number_labels` does.

    Parameters
    ----------
    path
        The file of the labels, for messages.
    lists
        The labels of each item.
    place
        Function that returns the place of an item in the file by its index, for messages.

    Returns
    -------
    numbers
        The numbers of each item in turn.
    classes
        The class names.
    """

    def place_of(label: int) -> str:
        items = (index for index, labels in enumerate(lists) for _ in labels)
        return place(next(islice(items, label, None)))

    numbers, classes = number_labels(path, [label for labels in lists for label in labels], place_of)
    left = iter(numbers)
    return (list(islice(left, len(labels))) for labels in lists), classes


def problem_with(label: str) -> str | None:
    """Return why a label, without blanks at its ends, is no class index and no name; None if it is one.

    A class index is a whole number from 0 to ``LARGEST`` in the digits 0 to 9. Whatever else reads as a
    number, as a truth value, or as a missing value is no name, because it is more likely a mistake of the
    program that wrote the file.
    """
    if re.fullmatch("[0-9]{1,1000}", label) and int(label) <= LARGEST:  # int() refuses thousands of digits
        return None
    if not label:
        wrong = "the label is missing"
    elif re.fullmatch("[0-9]+", label):
        wrong = f"label {label[:20]} is larger than {LARGEST}"
    elif re.fullmatch("-[0-9]+", label):
        wrong = f"label {label[:20]} is negative"
    elif label.casefold().removeprefix("-") in _MISSING:
        wrong = f"label {label} stands for a missing value"
    elif label.casefold() in {"true", "false"}:
        wrong = f"label {label} is a truth value"
    elif re.fullmatch(r"[0-9]+(\s*[;|]\s*[0-9]+)+", label):
        return f"label {label[:20]} is several class indices; write them in a column labels, {_SEVERAL}"
    elif _LIST.fullmatch(label):
        return f"label {label[:40]} is a list; write its labels in a column labels, {_SEVERAL}"
    elif label.isdigit() or _reads_as_number(label):
        wrong = f"label {label[:20]} is no class index"
    else:
        return None
    return f"{wrong}; write a whole number in the digits 0 to 9, or the name of a class, or leave the row out"


def _reads_as_number(text: str) -> bool:
    """Whether a text is a number as Python or a spreadsheet of some country writes it, or a fraction.

    These are 0.5, 1e3, inf, 1_0, 0x1f, 0,5, 1 000, 1'000, 5 % and ½, and the like in all digits of Unicode.
    """
    if re.fullmatch(r"[+-]?0(x[0-9a-f]+|o[0-7]+|b[01]+)", text, re.IGNORECASE):
        return True
    if len(text) == 1 and text.isnumeric() and not text.isalpha():  # letters of Chinese are numeric too
        return True
    try:
        float(re.sub(r"[\s'\u2019]", "", text).replace(",", ".").removesuffix("%"))
    except ValueError:
        return False
    return True


def split_labels(cell: str) -> list[str]:
    """Return the labels of a cell, between semicolons; see :func:`check_labels`."""
    labels = [label.strip() for label in cell.split(";")] if cell else []
    check_labels(labels, cell)
    return labels


def check_labels(labels: Sequence[str], cell: str) -> None:
    """Raise ValueError if one of the labels of a cell is missing or written twice."""
    for label in labels:
        if not label or labels.count(label) > 1:
            wrong = f"label {label} is written twice" if label else "a label is missing beside a semicolon"
            raise ValueError(f"{wrong} in {cell}")
