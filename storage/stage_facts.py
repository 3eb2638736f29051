"""Facts in done-records that only one stage has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Cost:
    """Cost of explaining a shard.

    Attributes
    ----------
    explained
        Number of maps that were made.
    explain_seconds
        Seconds that it took.
    peak_bytes
        Largest memory in bytes, beyond that at the start.
    """

    explained: int
    explain_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Agreement:
    """Similarity of maps in lower precision to those in float32; None if no map can be compared.

    Attributes
    ----------
    rank_correlation, worst_rank_correlation
        Mean and lowest value over the maps of Spearman's rank correlation, in [-1, 1].
    difference, worst_difference
        Mean and highest value over the maps of the relative difference: the norm of the difference, divided
        by the norm of the map in float32.
    """

    rank_correlation: float | None
    worst_rank_correlation: float | None
    difference: float | None
    worst_difference: float | None


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """Facts that only one stage writes into its records; they are None in the records of the other stages.

    Attributes
    ----------
    cached
        Stage activations: whether the shard's activations are in ``activations.zarr``.
    metrics
        Stage scores: the metrics that the shard's score file holds.
    explainers
        The records of the whole run's tables: the explainers that are in them.
    reasons
        Stage saliency: why maps that another program made failed, each reason with the number of maps.
    cost, agreement
        Stage saliency: the cost of explaining, and the effect of lower precision on the maps.
    """

    cached: bool | None = None
    metrics: tuple[str, ...] | None = None
    explainers: tuple[str, ...] | None = None
    reasons: Mapping[str, int] | None = None
    cost: Cost | None = None
    agreement: Agreement | None = None

    def flat(self) -> dict[str, Any]:
        """Return the facts that are not None in the form of the file, without nesting cost and agreement."""
        found: dict[str, Any] = {}
        for key in ("cached", "metrics", "explainers", "reasons"):
            if getattr(self, key) is not None:
                found[key] = getattr(self, key)
        for part in (self.cost, self.agreement):
            found |= {} if part is None else asdict(part)
        return found

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read the facts from a record as it is in the file."""
        metrics, explainers = (record.get(key) for key in ("metrics", "explainers"))
        return cls(
            cached=record.get("cached"),
            metrics=None if metrics is None else tuple(metrics),
            explainers=None if explainers is None else tuple(explainers),
            reasons=record.get("reasons"),
            cost=_part_of(Cost, record),
            agreement=_part_of(Agreement, record),
        )


def _part_of(kind: Any, record: Mapping[str, Any]) -> Any:
    """Make an object of a dataclass from a record that holds its fields; None if the record has none."""
    names = [each.name for each in fields(kind)]
    return kind(**{name: record[name] for name in names}) if names[0] in record else None
