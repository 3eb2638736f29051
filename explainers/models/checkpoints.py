"""Load weights from files: find the set of weights that fits a network, however it is wrapped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from explainers.models.checkpoint_files import read_file
from explainers.models.checkpoint_sets import Checkpoint, MisfitError


@dataclass(frozen=True)
class Taken:
    """What was taken for the weights of a network.

    Attributes
    ----------
    key
        Where the weights are in the file: the keys of its tables, and what all names begin with, joined by
        dots. Empty if the file is the state dict itself; None if the job named no file.
    others
        The same for other sets of weights that fit the network too.
    cast
        Number of tensors per type that became the network's own type, or float32 where that is half
        precision.
    in_order
        Whether the file has other names, so that the order of its tensors says which is which; see
        :mod:`explainers.models.checkpoint_order`.
    """

    key: str | None
    others: list[str] = field(default_factory=list)
    cast: dict[str, int] = field(default_factory=dict)
    in_order: bool = False


logger = logging.getLogger(__name__)
# What was taken for each network that was loaded from a file, or whose weights were in half precision.
taken_for: WeakKeyDictionary[nn.Module, Taken] = WeakKeyDictionary()


def note_cast(network: nn.Module, cast: dict[str, int]) -> None:
    """Note in :data:`taken_for` how many tensors per type became float32; nothing if there are none."""
    if cast:
        before = taken_for.get(network, Taken(None))
        taken_for[network] = replace(before, cast=before.cast | cast)


def load_weights(
    network: nn.Module, path: Path, key: str | None = None, training_only: tuple[str, ...] = ()
) -> None:
    """Load the weights in a file into a network; :data:`taken_for` says which.

    The state dict may lie in tables of the file, and its names may have a common beginning: a set of weights
    is every such place under which all names of the network are found. Where none is, the tensors are taken
    in the file's order if this says which is which (:mod:`explainers.models.checkpoint_order`); a line is
    logged then.

    Parameters
    ----------
    network
        The network whose parameters and buffers are replaced.
    path
        A safetensors file, or a torch file, which is read with ``weights_only``.
    key
        Which of several sets is taken: where it is in the file, see :class:`Taken`. A beginning is enough.
    training_only
        Beginnings of names of tensors that only training needs, and that the network does without.

    Raises
    ------
    MisfitError
        In one line, if no set fits.
    ValueError
        In one line, if there is no such file, if it holds no state dict, if several sets fit and differ, or
        if values are not finite or of a type that says nothing without others.
    """
    checkpoint = Checkpoint(path, read_file(path), network, training_only)
    try:
        _take_weights(network, checkpoint, key)
    except MisfitError:
        renamed = {} if key is not None else checkpoint.in_order()
        if not renamed:
            raise
        _take_weights(network, Checkpoint(path, renamed, network, training_only), None)
        taken_for[network] = replace(taken_for[network], in_order=True)
        logger.warning(
            "%s has other names than the network: its %d tensors were taken in their order, since their "
            "kinds and shapes are the network's; see that the accuracy is the published one",
            path,
            len(renamed),
        )


def load_or_convert(
    network: nn.Module,
    path: Path,
    convert: Callable[[], None],
    key: str | None = None,
    training_only: tuple[str, ...] = (),
) -> None:
    """Load the weights in a file; where none fit, ``convert`` loads them, as a library does that of others.

    See :func:`load_weights`. A file that holds several sets, or whose set the job names, is not converted,
    because a library takes a set without asking.
    """
    content = read_file(path)
    checkpoint = Checkpoint(path, content, network, training_only)
    try:
        _take_weights(network, checkpoint, key)
    except MisfitError:
        tables = [value for value in content.values() if isinstance(value, Mapping)]
        sets = sum(any(isinstance(value, Tensor) for value in table.values()) for table in tables)
        if key is not None or sets > 1:
            raise
        convert()


def _take_weights(network: nn.Module, checkpoint: Checkpoint, key: str | None) -> None:
    place, others = checkpoint.chosen(key)
    state, cast = checkpoint.values(place)
    try:
        network.load_state_dict(state)
    except (
        Exception
    ) as error:  # networks may read old files by rules of their own, which raise what they like
        raise MisfitError(checkpoint.misfit(key, error)) from error
    taken_for[network] = Taken(checkpoint.label(place), [checkpoint.label(other) for other in others], cast)
