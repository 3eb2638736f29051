"""Masks of objects: which pixels of an image are the object, and which do not count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.decoding import contents, decoded, is_animated, loaded, turned, with_alpha
from storage.datasets.depth import grey_factor, has_deep_colours
from storage.datasets.geometry import of_masks, prepare_image
from storage.datasets.notes import (
    MASK_ALPHA,
    MASK_CROPPED,
    MASK_EMPTY,
    MASK_FRAME,
    MASK_FULL,
    MASK_LOSSY,
    MASK_VALUES,
    Notes,
)
from storage.datasets.reading import DEFAULT, Reading
from storage.files import UnreadableError

BACKGROUND, OBJECT, IGNORED = 0, 1, 2  # the values of a mask that was read


def decode_mask(path: Path, how: Reading = DEFAULT, notes: Notes | None = None) -> Image.Image:
    """Read the mask in a file; see :func:`mask_of`.

    Raises
    ------
    UnreadableError
        If the file cannot be decoded, or if it is unclear which values are the object. The message is the
        reason in one line.
    """
    return decoded(contents(path), lambda image: mask_of(image, how, notes))


def mask_of(image: Image.Image, how: Reading = DEFAULT, notes: Notes | None = None) -> Image.Image:
    """Return a grey image of BACKGROUND, OBJECT and IGNORED, in the frame of the image that it belongs to.

    If the job names values (``how.mask_values``, ``how.mask_ignore``), they are compared with the grey
    values, or with the indices of an image with a palette. Otherwise the object is where the alpha channel is
    not 0, if that channel varies, and else where a value is not 0.

    Parameters
    ----------
    image
        The mask's file as Pillow opened it.
    how
        How it is read.
    notes
        A list to which is appended how the mask was read, if that may be a mistake.

    Raises
    ------
    UnreadableError
        If it is unclear which values are the object, or if Pillow does not give the values of the file.
    """
    notes = [] if notes is None else notes
    named = how.mask_values is not None or bool(how.mask_ignore)
    _check_values(image, named)
    declared, left = loaded(image)
    if image.format in {"JPEG", "MPO"}:
        notes.append(MASK_LOSSY)
    if is_animated(image):
        notes.append(MASK_FRAME)
    made = Image.fromarray(_by_values(image, how) if named else _not_zero(image, notes).astype(np.uint8))
    return turned(made, declared, left, how, [])


def prepare_mask(mask: Image.Image | NDArray[np.uint8], geometry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Resize and crop a mask as its image; return its values (H, W), or (labels, H, W) of several.

    Parameters
    ----------
    mask
        A mask that :func:`mask_of` made, or an array (labels, H, W) of masks.
    geometry
        The keyword arguments of :func:`storage.datasets.geometry.prepare_image`. The pixels are not
        interpolated.
    """
    single = isinstance(mask, Image.Image)
    planes = np.asarray(mask)[None] if single else mask
    pixels: NDArray[np.uint8] = prepare_image(planes, [], **of_masks(geometry))[0]
    return pixels[0] if single else pixels


def united(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one mask (H, W) of the objects of all labels, from (labels, H, W) or from a single mask."""
    if masks.ndim == 2:
        return masks
    return mask_values((masks == OBJECT).any(0), (masks == IGNORED).any(0))


def mask_values(objects: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return OBJECT where an object is, IGNORED where pixels do not count otherwise, and else BACKGROUND."""
    return np.where(objects, OBJECT, np.where(ignored, IGNORED, BACKGROUND)).astype(np.uint8)


def notes_on(mask: NDArray[np.uint8], prepared: NDArray[np.uint8]) -> Notes:
    """Return the notes on a mask that is of little use, from its values before and after its preparation."""
    if not (mask == OBJECT).any():
        return [MASK_EMPTY]
    notes = [] if (mask == BACKGROUND).any() else [MASK_FULL]
    return notes if (prepared == OBJECT).any() else [*notes, MASK_CROPPED]


def _check_values(image: Image.Image, named: bool) -> None:
    """Raise UnreadableError if Pillow does not give the values of a file, whose pixels are not loaded yet."""
    if has_deep_colours(image):
        raise UnreadableError("has 16 bits per colour, of which 8 are read; write it as a grey image")
    if named and grey_factor(image) != 1:
        raise UnreadableError(
            f"has grey values that are multiplied by {grey_factor(image):g} when they are read, and the job "
            "names values of masks; write it with 8 bits per value"
        )


def _by_values(image: Image.Image, how: Reading) -> NDArray[np.uint8]:
    """Compare the values of a mask with those that the job names."""
    values = _values(image)
    ignored = np.isin(values, how.mask_ignore)
    there = values != 0 if how.mask_values is None else np.isin(values, how.mask_values)
    return mask_values(there & ~ignored, ignored)


def _values(image: Image.Image) -> NDArray:
    """Return the values of a grey mask, or the indices of one with a palette, (H, W)."""
    if image.mode in {"P", "1", "L", "I", "F"} or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint8 if image.mode == "1" else None)
    if image.mode in {"LA", "PA"}:
        return np.asarray(image.getchannel(0))
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise UnreadableError("is in colours, and dataset.mask_values names values of grey or indexed masks")
    return colours[..., 0]


def _not_zero(image: Image.Image, notes: Notes) -> NDArray[np.bool_]:
    """Return where a mask is not 0, or not transparent if its alpha channel varies."""
    if image.has_transparency_data:
        alpha = np.asarray(with_alpha(image))[..., 3]
        if (alpha != alpha.flat[0]).any():
            found = _by_alpha(image, alpha != 0)
            notes.append(MASK_ALPHA)
            return found
    if image.mode == "P":
        _note_values(np.asarray(image), notes)
        return _by_palette(image)
    # Converting grey images with more than 8 bits to RGB would clip their values.
    plain = image.mode in {"1", "L", "I", "F"} or image.mode.startswith("I;16")
    values = np.asarray(image if plain else image.convert("RGB"))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableError("has values that are not finite")
    if values.ndim == 3:
        return np.asarray(values.any(-1))
    _note_values(values, notes)
    return np.asarray(values != 0)


def _note_values(values: NDArray, notes: Notes) -> None:
    """Note that a mask has several values that count as the object; lossy ones always have, and say so."""
    kinds = np.unique(values)
    kinds = kinds[kinds != 0]
    if len(kinds) > 1 and MASK_LOSSY not in notes:
        more = f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""
        notes.append(f"{MASK_VALUES}: {', '.join(f'{kind:g}' for kind in kinds[:4])}{more}")


def _by_alpha(image: Image.Image, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the visible pixels, unless some of them are black and others are not."""
    black = ~np.asarray(image.convert("RGB"))[seen].any(-1)
    if black.any() and not black.all():
        raise UnreadableError(
            "its alpha channel varies, and of its visible pixels only some are black; write the object as a "
            "grey image, 0 elsewhere"
        )
    return seen


def _by_palette(image: Image.Image) -> NDArray[np.bool_]:
    """Return where the index is not 0, if the colours agree that these pixels alone are not black."""
    indices, colours = np.asarray(image) != 0, np.asarray(image.convert("RGB")).any(-1)
    if (indices != colours).any():
        raise UnreadableError(
            "has a palette in which index 0 and black are not the same; name the object's indices in "
            "dataset.mask_values"
        )
    return indices
