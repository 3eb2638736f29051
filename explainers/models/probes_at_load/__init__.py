"""Probes at load: a network is asked whether it behaves as explainers and metrics assume, before any work."""

from explainers.models.probes_at_load.table import PROBES, Probe, probe

__all__ = ["PROBES", "Probe", "probe"]
