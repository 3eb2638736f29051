"""The commands that list what a job can name: explainers, metrics and kinds of datasets."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.inspect_commands import refusals
from flows.terminal import console, text


def explainers() -> None:
    """List the explainers with their parameters and defaults."""
    from explainers.registry import explainers as registry

    _list(registry)


def metrics() -> None:
    """List the metrics with their parameters and defaults."""
    from tasks.metrics.registry import metrics as registry

    _list(registry)


def datasets() -> None:
    """List the kinds of datasets with their keys."""
    from storage.datasets.spec import kinds

    table = Table("kind", "description", "keys")
    with refusals():
        classes = {name: kinds.get(name) for name in kinds.names()}
    for name, cls in classes.items():
        told = []
        for key in cls.own_keys():
            field = cls.model_fields[key]
            told.append(f"{key}{', required' if field.is_required() else ''}  ({field.description})")
        shared = [key for key in cls.key_names() if key != "kind" and key not in cls.own_keys()]
        told.append(", ".join(shared))
        title = (cls.__doc__ or "").strip().partition("\n\n")[0]
        table.add_row(text(name), text(" ".join(title.split())), Text("\n").join(map(text, told)))
    console.print(table)


def _list(registry: Any) -> None:
    """Print a table of a registry's classes with their parameters and defaults."""
    table = Table(registry.kind, "description", "parameters and defaults")
    with refusals():  # a plug-in that cannot be loaded
        classes = {name: registry.get(name) for name in registry.names()}
    for name, cls in classes.items():
        told = [
            f"{key} = {json.dumps(field.default)}" + (f"  ({field.description})" if field.description else "")
            for key, field in cls.Parameters.model_fields.items()
            if key != "preset"
        ]
        fast = getattr(cls.Parameters, "FAST", {})
        if fast:
            told.append(f'preset = "fast"  ({", ".join(f"{key} {value}" for key, value in fast.items())})')
        table.add_row(text(name), text(cls.title), Text("\n").join(map(text, told)))
    console.print(table)
