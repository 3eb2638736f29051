"""The registry of the metrics, by name."""

from typing import Any

from explainers.registry import Registry

metrics: Registry[Any] = Registry("metric", "tasks.metrics", "floodlit.metrics", methods=("columns", "score"))
register = metrics.register
