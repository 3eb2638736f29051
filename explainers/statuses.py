"""What became of a map, in words and in numbers. Pages read it without PyTorch."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The outcome of one map."""

    OK = "ok"
    ALL_ZERO = "all_zero"
    CONSTANT = "constant"
    NOT_FINITE = "not_finite"
    FAILED = "failed"  # the method cannot be applied to the input, or the map was not computed
    NO_LABEL = "no_label"  # there is nothing to explain: the input has fewer labels than others


STATUSES = list(Status)  # a status is stored as its index in this list, so the order must not change
