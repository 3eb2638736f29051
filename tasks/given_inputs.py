"""Inputs that a user hands over in Python, read in steps as a classifier takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.models.classifier import LARGEST_VALUES
from explainers.models.model_spec import Preprocessing
from explainers.models.text import TextClassifier
from explainers.numerics.batching import chunks
from storage.datasets.bands import as_image, read_image
from storage.datasets.boxes import is_share, placed
from storage.datasets.geometry import prepare_image, size_of
from storage.datasets.masks import OBJECT, decode_mask, mask_of, prepare_mask
from storage.datasets.reading import Bands, Reading
from storage.files import UnreadableError

# How image files become inputs of the classifiers that were loaded from a model table.
preprocessing_of: WeakKeyDictionary[Any, Preprocessing] = WeakKeyDictionary()

_File = str | Path | Image.Image


class GivenInputs:
    """Some inputs of a classifier.

    Parameters
    ----------
    model
        The classifier that takes them.
    given
        Images: (B, C, H, W) in [0, 1], uint8 or uint16, or files or PIL images, which go through the
        preprocessing of the classifier. Texts: strings. Plain tensors: (B, T) or (B, C, T). A single one may
        stand alone.

    Raises
    ------
    ValueError
        In one line: there are none, or they are of another kind or shape than the classifier's.
    """

    def __init__(self, model: BlackBox, given: Any) -> None:
        self._model = model
        if hasattr(given, "shape"):
            self._items: Any = self._batch(_tensor(given))
        else:
            self._items = self._listed(given)
        if len(self._items) == 0:
            raise ValueError("no inputs were given; give one at least")

    def _listed(self, given: Any) -> Any:
        """Files, PIL images or texts as a list; tensors of one shape as a batch."""
        kinds = "files, PIL images, texts, or tensors of one shape, all of one kind"
        if isinstance(given, _File):
            return [given]
        if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
            raise ValueError(f"inputs are {kinds}; this is a {type(given).__name__}")
        items = list(given)
        if items and all(hasattr(item, "shape") for item in items):
            tensors = [_tensor(item) for item in items]
            if any(tensor.shape != tensors[0].shape for tensor in tensors):
                raise ValueError(f"inputs are {kinds}; these tensors have several shapes")
            return self._batch(torch.stack(tensors))
        wrong = [type(item).__name__ for item in items if not isinstance(item, _File)]
        if wrong:
            raise ValueError(f"inputs are {kinds}; among these is a {wrong[0]}")
        return items

    def __len__(self) -> int:
        return len(self._items)

    def steps(self, size: int) -> Iterator[slice]:
        """Consecutive slices of at most ``size`` inputs."""
        return iter(chunks(len(self), size))

    def read(self, rows: slice, boxes: Sequence[Any] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The inputs at ``rows``, and their boxes.

        Parameters
        ----------
        boxes
            Per input of ``rows`` the boxes of its object, in pixels of what was given.

        Returns
        -------
        inputs
            (b, C, \\*sites) on the classifier's device.
        boxes
            (K, 4) per input, in pixels of the classifier's input.
        """
        part = self._items[rows]
        kept = [_boxes(its) for its in ([[]] * len(part) if boxes is None else boxes)]
        if isinstance(part, Tensor):
            if any(is_share((x0, y0, x1, y1)) for its in kept for x0, y0, x1, y1 in its.tolist()):
                raise ValueError("boxes: one lies within 0..1; give boxes in pixels of the model's input")
            # A copy takes gradients also if it was made in inference mode; another layout rounds otherwise.
            stored = part.detach().clone(memory_format=torch.contiguous_format)
        elif isinstance(self._model, TextClassifier):
            stored = torch.from_numpy(np.stack([self._encoded(text) for text in part]))
        elif self._model.modality == "image":
            read = [self._pixels(image, its) for image, its in zip(part, kept, strict=True)]
            stored, kept = self._together([one for one, _ in read]), [its for _, its in read]
        else:
            raise ValueError("plain tensors are given as one array, (B, T) or (B, C, T)")
        stored = stored.to(self._model.device)
        if self._model.modality == "image" and stored.is_floating_point():
            return _in_range(stored.float()), kept
        if self._model.modality == "image" and stored.dtype not in LARGEST_VALUES:
            raise ValueError(f"images are floats in [0, 1], uint8 or uint16, and these are {stored.dtype}")
        return self._model.inputs_of(stored), kept

    def masks(self, given: Sequence[Any], first: int) -> Tensor:
        """(b, H, W) bool masks of objects, from files, PIL images, or arrays as large as the input."""
        masks = [
            self._mask(mask, first + place) if isinstance(mask, _File) else _tensor(mask) != 0
            for place, mask in enumerate(given)
        ]
        for mask in masks:
            if tuple(mask.shape) != self._model.input_shape[1:]:
                raise ValueError(
                    f"masks: {_size(mask.shape)} does not fit {_size(self._model.input_shape[1:])}"
                )
        return torch.stack(masks).to(self._model.device)

    def _batch(self, values: Tensor) -> Tensor:
        """(B, C, \\*sites), a channel added to flat rows and a batch axis to a single input."""
        wanted = tuple(self._model.input_shape)
        if self._model.modality == "tensor" and values.ndim < 3 and tuple(values.shape[-1:]) == wanted[1:]:
            values = values.reshape(-1, *wanted) if wanted[0] == 1 else values  # flat rows
        values = values[None] if tuple(values.shape) == wanted else values
        if tuple(values.shape[1:]) != wanted:
            takes = f"the model takes inputs (B, {', '.join(map(str, wanted))})"
            advice = (
                "; channels come first, and only files and PIL images are resized and cropped"
                if self._model.modality == "image"
                else ""
            )
            raise ValueError(f"{takes}, and these are {tuple(values.shape)}{advice}")
        return values

    def _encoded(self, text: str) -> NDArray[np.int32]:
        assert isinstance(self._model, TextClassifier)
        try:
            return self._model.encode(text)[0]
        except ValueError as error:
            raise ValueError(f"the text {text!r} {error}") from error

    def _together(self, images: list[NDArray[Any]]) -> Tensor:
        """(b, C, H, W) images as they were read, or as inputs where files have several depths."""
        if len({image.dtype for image in images}) == 1:
            return torch.from_numpy(np.stack(images))
        return torch.cat([self._model.inputs_of(torch.from_numpy(image)[None]) for image in images])

    def _pixels(self, given: _File, boxes: Tensor) -> tuple[NDArray[Any], Tensor]:
        """(C, H, W) pixels of an image, and its boxes (K, 4) in them."""
        named = "the image" if isinstance(given, Image.Image) else str(given)
        try:
            image = self._read(given)
        except UnreadableError as error:
            raise ValueError(f"{named} cannot be read: {error}") from error
        given_boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()]
        if any(map(is_share, given_boxes)):
            raise ValueError(f"boxes: one of {named} lies within 0..1; give boxes in pixels of the image")
        inside = placed(given_boxes, size_of(image), False, [])
        pixels, moved = prepare_image(image, inside, **self._geometry())
        if pixels.shape != self._model.input_shape:
            raise ValueError(
                f"{named} has {_size(pixels.shape[1:])} pixels, height first, and the model takes "
                f"{_size(self._model.input_shape[1:])}; resize it, or load the model through floodlit.load, "
                "with resize and crop where its source has none"
            )
        return pixels, _boxes(moved)

    def _mask(self, given: _File, row: int) -> Tensor:
        try:
            mask = mask_of(given) if isinstance(given, Image.Image) else decode_mask(Path(given))
        except UnreadableError as error:
            raise ValueError(f"masks: {given} cannot be read: {error}") from error
        if isinstance(self._items, Tensor):  # which were not resized either
            return torch.from_numpy(np.asarray(mask) == OBJECT)
        size = size_of(self._read(self._items[row]))
        if mask.size != size:
            raise ValueError(f"masks: one is {_size(mask.size)} where its image is {_size(size)}")
        return torch.from_numpy(prepare_mask(mask, self._geometry()) == OBJECT)

    def _read(self, given: _File) -> Image.Image | NDArray[Any]:
        """An image that was given, in the bands of the model and as it is to be seen."""
        how = Reading(bands=Bands.of(self._model.input_shape[0]))
        return as_image(given, how, []) if isinstance(given, Image.Image) else read_image(Path(given), how)

    def _geometry(self) -> dict[str, Any]:
        plain = Preprocessing(fill=(0,) * self._model.input_shape[0])
        return preprocessing_of.get(self._model, plain).geometry


def _tensor(values: Any) -> Tensor:
    """A tensor, or what NumPy makes an array of, as a tensor."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))


def _boxes(given: Any) -> Tensor:
    """(K, 4) from the boxes of one image, None where it has none."""
    wanted = "boxes: give per input a list of xmin, ymin, xmax, ymax in pixels, xmin < xmax and ymin < ymax"
    try:
        boxes = torch.as_tensor([] if given is None else given, dtype=torch.float32).reshape(-1, 4)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}; these are {given!r}") from error
    if not bool((boxes[:, :2] <= boxes[:, 2:]).all()):
        raise ValueError(f"{wanted}; these are {given!r}")
    return boxes


def _in_range(images: Tensor) -> Tensor:
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images are numbers in [0, 1], and these reach from {low:.3g} to {high:.3g}; the model "
            "normalises them itself"
        )
    return images


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
