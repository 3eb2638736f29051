"""The modules of a network whose calls can be watched."""

from __future__ import annotations

from torch import jit, nn


def hookable(network: nn.Module) -> dict[str, nn.Module]:
    """All modules by name but those of TorchScript, which take no hooks; an empty name is the network's."""
    return {
        name: module for name, module in network.named_modules() if not isinstance(module, jit.ScriptModule)
    }
