"""The registry of the metrics, by name."""

from typing import Any

from explainers.registry import MethodRegistry

metrics: MethodRegistry[Any] = MethodRegistry(
    "metric", "tasks.metrics", "floodlit.metrics", methods=("columns", "score")
)
register = metrics.register
