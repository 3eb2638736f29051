"""Cut a network with :mod:`torch.fx`: the cheapest way, where the code around the layer can be traced.

The network is traced with :mod:`torch.fx`, but only through the modules that contain the layer: every
other module is called as it is, so that its inner code does not have to be traceable. Both parts share the
modules and parameters of the network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from explainers.models.cutting.refusals import bypassed, never_called, of_no_consequence, untraceable
from plugins.reasons import first_line

# Elementwise activations that a forward may call as functions. No module has their output, so that no name
# of a layer could stand for it.
_ACTIVATIONS = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardtanh",
        "hardsigmoid",
        "softplus",
        "sigmoid",
        "tanh",
    ]
)


class _Entry(nn.Module):
    """Calls the network with its input alone, so that tracing leaves further arguments at their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits


class _Tracer(fx.Tracer):
    """Traces the forwards of the modules that contain ``target``, and records the calls of ``target``."""

    def __init__(self, target: nn.Module, containing: Iterable[nn.Module]) -> None:
        super().__init__()
        self.target = target
        self.containing = {id(module) for module in containing}
        self.calls: list[fx.Node] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return id(m) not in self.containing

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m is self.target:
            self.calls.append(output.node)
        return output


def split(network: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Cut ``network`` at the output of the module ``layer``.

    If a module is called several times, the last call counts. If the only use of the output is an elementwise
    activation that is called as a function, as in ``F.relu(self.conv3(x))``, the cut is after the activation.

    Parameters
    ----------
    network
        Any module that takes one tensor.
    layer
        Name of a module, as in ``network.named_modules()``. If it ends in ``:input``, the cut is at the
        module's (first) input instead.

    Returns
    -------
    backbone, head
        From inputs to the layer's output, and from there to the logits.

    Raises
    ------
    CutError
        In one line: the layer cannot be traced, is never called, or is bypassed by another connection.
    """
    name, _, side = layer.partition(":")
    target = network.get_submodule(name)
    parts = name.split(".")
    containing = [network.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    tracer = _Tracer(target, containing)
    try:
        entry = _Entry(network).eval()  # modules of torch.export refuse this
        graph = tracer.trace(entry)
    except Exception as error:
        raise untraceable(name, first_line(error)) from error
    if not tracer.calls:
        raise never_called(name)
    _functionalise(graph)
    node = _cut_node(tracer.calls[-1], side)
    _share_batch_size(graph, node)
    return _backbone(entry, graph, node), _head(entry, graph, node, layer)


def _cut_node(call: fx.Node, side: str) -> fx.Node:
    if side:
        return call.all_input_nodes[0]
    users = list(call.users)
    if len(users) == 1 and _function_name(users[0]) in _ACTIVATIONS and users[0].all_input_nodes == [call]:
        return users[0]
    return call


def _function_name(node: fx.Node) -> str:
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", ""))
    return str(node.target) if node.op == "call_method" else ""


def _functionalise(graph: fx.Graph) -> None:
    """Replace in-place operations, so that neither part of a cut network writes to its input."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        name = _function_name(node)
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        elif name.endswith("_") and callable(getattr(torch.Tensor, name[:-1], None)):
            node.op, node.target = "call_method", name[:-1]
        else:
            continue
        # Later operations read the changed tensor by its old name, and have to read the new result instead.
        changed = node.all_input_nodes[0]
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)


def _share_batch_size(graph: fx.Graph, node: fx.Node) -> None:
    """Let the head read the batch size from its own input, where the forward read it before the cut.

    Otherwise the head would depend on the network's input as well.
    """
    behind = _reachable(node)
    for read in list(graph.nodes):
        later = [user for user in read.users if user in behind]
        if later and read not in behind and _is_batch_size(read):
            with graph.inserting_after(node):
                size = graph.call_method("size", (node, 0))
            for user in later:
                user.replace_input_with(read, size)


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        return bool(node.args[1:] == (0,))
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    shape = node.args[0]
    if not isinstance(shape, fx.Node):
        return False
    if shape.op == "call_method":
        return shape.target == "size" and len(shape.args) == 1
    return shape.target is getattr and bool(shape.args[1] == "shape")


def _reachable(node: fx.Node) -> set[fx.Node]:
    """The nodes computed from ``node``."""
    found: set[fx.Node] = set()
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user not in found:
            found.add(user)
            waiting.extend(user.users)
    return found


def _needed(node: fx.Node, stop: fx.Node | None = None) -> set[fx.Node]:
    """The nodes that ``node`` is computed from, with ``node`` itself, but not those before ``stop``."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(() if current is stop else current.all_input_nodes)
    return found


def _backbone(entry: nn.Module, graph: fx.Graph, node: fx.Node) -> nn.Module:
    needed = _needed(node)
    backbone = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for each in graph.nodes:
        if each in needed:
            copies[each] = backbone.node_copy(each, copies.__getitem__)
    backbone.output(copies[node])
    return fx.GraphModule(entry, backbone)


def _head(entry: nn.Module, graph: fx.Graph, node: fx.Node, layer: str) -> nn.Module:
    output = graph.output_node()
    needed = _needed(output, stop=node)
    if node not in needed:
        raise of_no_consequence(layer)
    if any(each.op == "placeholder" for each in needed):
        raise bypassed(layer)
    head = fx.Graph()
    copies = {node: head.placeholder("activations")}
    for each in graph.nodes:
        if each in needed and each is not node:
            copies[each] = head.node_copy(each, copies.__getitem__)
    return fx.GraphModule(entry, head)
