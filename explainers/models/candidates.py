"""The tensors of a network through which everything passes that its logits know of the input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from explainers.models.hookable import hookable
from explainers.models.own_thread import own_thread

_Edge = tuple[Node, int]  # an operation, and which of its results


@dataclass(frozen=True)
class Candidate:
    """A tensor that a module returns or takes, and that no other path goes around.

    Attributes
    ----------
    layer
        Its name: the module that returns it, or the module that takes it with ``:input`` behind. Where
        several modules do, it is the outermost one.
    values
        (B, \\*shape), without gradients.
    edge
        Where the tensor stands in the graph of the recorded run, for gradients.
    inside
        Modules inside of the named one that return the tensor as well, the outermost first.
    """

    layer: str
    values: Tensor
    edge: GradientEdge
    inside: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """The last call of a module, from one side."""

    name: str
    side: str  # "", or ":input"
    module: nn.Module
    values: Tensor
    edge: GradientEdge
    plain: bool  # whether the tensor stands alone, rather than in a tuple or a mapping


def candidates(
    network: nn.Module, run: Callable[[], Tensor], inputs: Tensor
) -> tuple[Tensor, list[Candidate]]:
    """Run a network once, and list the tensors through which everything passes, in order of execution.

    Those that no weight has touched, such as the pixels themselves, are left out.

    Parameters
    ----------
    network
        The network whose modules are watched. Its parameters require no gradient.
    run
        Runs it on ``inputs``; returns the logits (B, K).
    inputs
        (B, C, H, W), which require a gradient.

    Returns
    -------
    logits
        (B, K), with their graph, so that gradients at the candidates can be asked for.
    candidates
        One for each tensor; its name is chosen from all modules that return or take it.
    """
    seen: dict[tuple[str, str], _Seen] = {}
    with_weights: set[str] = set()  # modules that returned; before the first of them there are only pixels

    def note(name: str, side: str, module: nn.Module, values: Any) -> None:
        if not side and next(module.parameters(recurse=False), None) is not None:
            with_weights.add(name)
        if not with_weights:
            return
        tensor, plain = first_tensor(values)
        if tensor is not None and tensor.requires_grad and tensor.is_floating_point():
            seen.pop((name, side), None)  # the last call counts, and moves behind those in between
            edge = get_gradient_edge(tensor)
            seen[name, side] = _Seen(name, side, module, tensor.detach(), edge, plain)

    with watched(network, note):
        logits = run()
    if not logits.requires_grad:
        return logits, []
    order = {edge: place for place, edge in enumerate(reversed(_separators(logits, inputs)))}
    calls: dict[_Edge, list[_Seen]] = {}
    for each in seen.values():
        at = (each.edge.node, each.edge.output_nr)
        if at in order:
            calls.setdefault(at, []).append(each)
    return logits, [_named(calls[edge]) for edge in order if edge in calls]


def _named(calls: list[_Seen]) -> Candidate:
    """The candidate that several calls return or take, by its best name.

    Between two blocks of one class it is named as the input of the second one, which is how the last place
    that patches leave for a class token is known.
    """
    plain = [each for each in calls if each.plain] or calls
    outputs = [each for each in plain if not each.side]
    # The first module that returned it, or the outermost of those around that one.
    around = [each for each in outputs if f"{outputs[0].name}.".startswith(f"{each.name}.")]
    best, *inside = sorted(around or plain, key=lambda each: each.name.count("."))
    block = next((each for each in plain if each.side and _are_blocks(best, each)), None)
    if block is not None:
        return Candidate(block.name + block.side, block.values, block.edge)
    within = tuple(each.name for each in inside if around)
    return Candidate(best.name + best.side, best.values, best.edge, within)


def _are_blocks(one: _Seen, other: _Seen) -> bool:
    """Whether two modules lie side by side, are of one class and have weights of the same shapes."""
    if one.module is other.module or type(one.module) is not type(other.module):
        return False
    if one.name.rpartition(".")[0] != other.name.rpartition(".")[0]:
        return False
    shapes = [[(name, each.shape) for name, each in at.module.named_parameters()] for at in (one, other)]
    inner = next(one.module.children(), None) is not None
    return inner and bool(shapes[0]) and shapes[0] == shapes[1]


def first_tensor(values: Any) -> tuple[Tensor | None, bool]:
    """The first tensor of a module's output or arguments, and whether it is all there is of them."""
    if isinstance(values, Tensor):
        return values, True
    if isinstance(values, dict):  # a ModelOutput as well
        values = tuple(values.values())
    if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
        return values[0], False
    return None, False


@contextmanager
def noted(network: nn.Module, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, keep the first tensor of the last call of each layer, by its name."""
    kept: dict[str, Tensor] = {}

    def note(name: str, side: str, module: nn.Module, values: Any) -> None:  # noqa: ARG001
        tensor, _ = first_tensor(values)
        if name + side in layers and tensor is not None:
            kept[name + side] = tensor

    with watched(network, note, {layer.removesuffix(":input") for layer in layers}):
        yield kept


def constant_tokens(network: nn.Module, run: Callable[[], Any]) -> dict[int, Tensor]:
    """Find the tokens that are the same for all images, such as class tokens before any attention.

    Parameters
    ----------
    network
        The network whose modules are watched.
    run
        Runs it on two different inputs.

    Returns
    -------
    dict
        By the number T of tokens of a sequence (2, T, D) for which there are some: (T,) bool. The last
        sequence of that length that has some counts; behind it, attention mixes the tokens.
    """
    found: dict[int, Tensor] = {}

    def note(name: str, side: str, module: nn.Module, values: Any) -> None:  # noqa: ARG001
        tensor, _ = first_tensor(values)
        if tensor is not None and tensor.ndim == 3 and len(tensor) == 2:
            same = (tensor[0] == tensor[1]).all(-1)
            if bool(same.any()) and not bool(same.all()):  # positions alone are all the same
                found[tensor.shape[1]] = same

    with watched(network, note):
        run()
    return found


@contextmanager
def watched(
    network: nn.Module,
    note: Callable[[str, str, nn.Module, Any], None],
    names: Collection[str] | None = None,
) -> Iterator[None]:
    """Within the block, call ``note`` for what modules take and return: those of ``names``, or else all."""
    mine = own_thread()
    with ExitStack() as hooks:
        for name, module in hookable(network).items():
            if not name or (names is not None and name not in names):
                continue

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                given = [*args, *kwargs.values()]
                if mine():
                    note(name, ":input", module, given[0] if given else None)

            def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:  # noqa: ARG001
                if mine():
                    note(name, "", module, output)

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        yield


def _separators(logits: Tensor, inputs: Tensor) -> list[_Edge]:
    """The tensors of a graph through which every path from the inputs to the logits goes, last ones first.

    Operations are visited so that all that read a result come before the one that made it. When just one
    result is waiting to be visited, every path goes through it.
    """
    users = _users(logits, inputs)
    first = get_gradient_edge(logits)
    waiting: set[_Edge] = {(first.node, first.output_nr)}
    left = {node: len(by) for node, by in users.items()}
    found = []
    ready = [first.node]
    while ready:
        if len(waiting) == 1:
            found += list(waiting)
        node = ready.pop()
        waiting = {edge for edge in waiting if edge[0] is not node}
        for source in {source: None for source, _ in node.next_functions}:
            if source in left:
                left[source] -= 1
                if left[source] == 0:
                    ready.append(source)
        waiting |= {(source, number) for source, number in node.next_functions if source in left}
    return found


def _users(logits: Tensor, inputs: Tensor) -> dict[Node, set[Node]]:
    """For each operation between the inputs and the logits, the operations that read its results."""
    start = get_gradient_edge(logits).node
    users: dict[Node, set[Node]] = {start: set()}
    listed = [start]
    for node in listed:  # grows while it is read
        for source, _ in node.next_functions:
            if source is None:
                continue
            if source not in users:
                users[source] = set()
                listed.append(source)
            users[source].add(node)
    leaf = next((node for node in listed if getattr(node, "variable", None) is inputs), None)
    kept: set[Node] = set() if leaf is None else {leaf}
    reaching = list(kept)
    for node in reaching:
        new = users[node] - kept
        kept |= new
        reaching += new
    return {node: users[node] & kept for node in kept}
