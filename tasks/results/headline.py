"""The few columns of a run that a table or a page shows first."""

from __future__ import annotations

from storage.manifest import Manifest

# By kind, Floodlit's metrics in the order of preference: the first one that a run has stands for the kind.
KINDS = {
    "faithfulness": (
        "insertion",
        "deletion",
        "road",
        "pixel_flipping",
        "adcc",
        "average_drop",
        "average_drop_in_deletion",
        "minimal_sufficient_fraction",
        "cell_curves",
        "infidelity",
    ),
    "localisation": (
        "pointing_game",
        "energy_pointing_game",
        "relevance_mass_accuracy",
        "relevance_rank_accuracy",
        "pixel_precision",
        "max_box_accuracy",
    ),
    "sanity": ("randomisation", "random_logit"),
    "sparseness": ("sparseness", "entropy", "effective_complexity", "mask_area"),
}
# The column that stands for a metric where it is not the first ranked one. Columns that have a value per
# image go before those that cannot be tested.
COLUMNS = {
    "adcc": "adcc",
    "max_box_accuracy": "max_box_acc_v2",
    "pixel_precision": "pixel_precision",
    "road": "road_combined",
}


def ranked(manifest: Manifest) -> list[str]:
    """The ranked columns of a run's metrics, in the order of the job."""
    return [
        name
        for entry in manifest.metrics.values()
        for name, column in entry.columns.items()
        if column.better is not None
    ]


def headline(manifest: Manifest) -> list[str]:
    """The columns that are shown first: those of the job's key ``headline``, or else a choice.

    The choice is one ranked column of each of :data:`KINDS`, as far as the run has them. Metrics of no such
    kind, for example plug-ins, follow with their first ranked column each, up to as many columns as there are
    kinds.
    """
    there = ranked(manifest)
    asked = manifest.job.get("headline")  # runs of earlier versions have no such key
    chosen = [name for name in asked if name in there] if isinstance(asked, list | tuple) else []
    return chosen or _default(manifest)


def _default(manifest: Manifest) -> list[str]:
    """One column of each kind, and then of metrics of no kind."""
    there, stands_for = ranked(manifest), {}
    for name, entry in manifest.metrics.items():
        own = [column for column in entry.columns if column in there]
        if own:
            stands_for[name] = COLUMNS[name] if COLUMNS.get(name) in own else own[0]
    known = [next((name for name in kind if name in stands_for), None) for kind in KINDS.values()]
    chosen = [stands_for[name] for name in known if name is not None]
    of_a_kind = {name for kind in KINDS.values() for name in kind}
    others = [column for name, column in stands_for.items() if name not in of_a_kind]
    return [*chosen, *others[: len(KINDS) - len(chosen)]]
