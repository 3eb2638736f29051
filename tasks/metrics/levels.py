"""Levels: the percentages of sites at which a metric is measured."""

from __future__ import annotations

from pydantic import AfterValidator


def _distinct(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("levels must differ from each other")
    return levels


DISTINCT = AfterValidator(_distinct)  # each level gives its own columns, or its own points of a curve
