"""Levels: the percentages of sites at which a metric is measured."""

from __future__ import annotations

from pydantic import AfterValidator, Field


def _distinct(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("levels must differ from each other")
    return levels


LISTED = Field(min_length=1, max_length=100, strict=False)  # TOML and JSON have lists, not tuples
DISTINCT = AfterValidator(_distinct)  # each level gives its own columns, or its own points of a curve
