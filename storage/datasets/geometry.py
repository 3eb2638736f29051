"""Resizing and cropping of an image together with its boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.datasets.notes import BOX_CROPPED, Notes

Box = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixel edges: a 5x5 image is (0, 0, 5, 5)
Side = int | Sequence[int]  # the side of a square, or (height, width), in pixels

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_FITS = ("short", "squash", "cover", "contain")


def size_of(image: Image.Image | NDArray[Any]) -> tuple[int, int]:
    """Return the (width, height) of an image, or of an array (C, H, W)."""
    return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])


def prepare_image(
    image: Image.Image | NDArray[Any],
    boxes: Iterable[Box],
    resize: Side | None,
    crop: Side | None,
    interpolation: str = "bilinear",
    fit: str = "short",
    fill: Sequence[int] = (0,),
    centre: str = "round",
    resampler: str = "pillow",
) -> tuple[NDArray[Any], list[Box]]:
    """Resize and crop an image as a model's source does, and move its boxes.

    Parameters
    ----------
    image
        Image in RGB, or an array (C, H, W) of uint8, of uint16, or of float32 in [0, 1].
    boxes
        Boxes in pixels of ``image``.
    resize
        New size in pixels, antialiased; ``fit`` says what it is the size of. None leaves the image as it is.
    crop
        Size in pixels of what is cut from the centre; where the image is smaller it is padded with ``fill``.
        None cuts nothing.
    interpolation
        Name of Pillow's filter for resizing.
    fit
        "short": the short side becomes ``resize`` pixels long, and the long one is rounded down. "squash":
        each side becomes as long as ``resize`` says. "cover" and "contain": the image becomes as small as
        possible while it covers ``resize``, or as large as possible within it, each side rounded. All but
        "squash" keep the proportions.
    fill
        Colour of what is padded, per channel in 0 to 255; one number for all channels.
    centre
        How the first pixel of the crop is rounded: "round" as in torchvision, whose padding begins with the
        smaller half; "truncate" and "floor" as in the two backends of Hugging Face's image processors.
    resampler
        The library that resizes: "pillow", or "torch", whose values may differ by one level.

    Returns
    -------
    pixels
        (C, H, W), of the type of ``image``; in RGB (3, H, W) uint8.
    boxes
        Boxes in pixels of the result, clipped to it; a box of which nothing is left is dropped.

    Raises
    ------
    ValueError
        If the interpolation is unknown, or a side of the image would be resized to nothing.
    """
    if interpolation not in _RESAMPLING:
        raise ValueError(f"unknown interpolation {interpolation!r}; choose from {', '.join(_RESAMPLING)}")
    resized, offset, window = _placed(size_of(image), resize, crop, fit, centre)
    made = _resized(image, resized, interpolation, resampler)
    within = all(0 <= first <= side - cut for first, cut, side in zip(offset, window, resized, strict=True))
    if isinstance(made, Image.Image) and within:  # cut first, so that less is made an array
        (left, top), (columns, rows) = offset, window
        pixels = _planes(made.crop((left, top, left + columns, top + rows)))
    else:
        pixels = _planes(made) if crop is None else _cropped(_planes(made), offset, window, fill)
    moved = move_boxes(boxes, size_of(image), resize, crop, fit, centre)
    return np.ascontiguousarray(pixels), [box for box in moved if has_area(box)]


def as_input(
    image: Image.Image | NDArray[Any],
    boxes: Sequence[Box],
    geometry: Mapping[str, Any],
    size: tuple[int, ...] | None,
    notes: Notes,
) -> tuple[NDArray[Any], list[Box]]:
    """Prepare an image for a network that takes inputs of one size.

    Parameters
    ----------
    image, boxes
        As for :func:`prepare_image`.
    geometry
        The keyword arguments of :func:`prepare_image`.
    size
        (H, W) of the inputs; None if any size will do.
    notes
        A list to which is appended which boxes were cropped away.

    Raises
    ------
    ValueError
        If the image becomes an input of another size.
    """
    pixels, moved = prepare_image(image, boxes, **geometry)
    if size is not None and pixels.shape[1:] != size:
        has, wants = "x".join(map(str, pixels.shape[1:])), "x".join(map(str, size))
        raise ValueError(f"is {has}, but the run's inputs are {wants}; set model.resize and model.crop")
    notes += [BOX_CROPPED] * (len(boxes) - len(moved))
    return pixels, moved


def move_boxes(
    boxes: Iterable[Box],
    old: tuple[int, int],
    resize: Side | None,
    crop: Side | None,
    fit: str = "short",
    centre: str = "round",
    **_: Any,
) -> list[Box]:
    """Move the boxes of an image of the size ``old`` (width, height) as :func:`prepare_image` does.

    No box is dropped: one of which nothing is left has no area.
    """
    resized, offset, size = _placed(old, resize, crop, fit, centre)
    scale = resized[0] / old[0], resized[1] / old[1]
    return [_move(box, scale, offset, size) for box in boxes]


def has_area(box: Box) -> bool:
    """Whether a box is wider and higher than 0."""
    return box[2] > box[0] and box[3] > box[1]


def of_masks(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the geometry of images' masks: no interpolation, which would enlarge them, and zeros around."""
    return {**geometry, "interpolation": "nearest", "fill": (0,), "resampler": "pillow"}


def _placed(
    old: tuple[int, int], resize: Side | None, crop: Side | None, fit: str, centre: str
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return the size after resizing, the first pixel of the crop, and the size of the result.

    All are (width, height), or (column, row).
    """
    width, height = old if resize is None else _fitted(old, resize, fit)
    if crop is None:
        return (width, height), (0, 0), (width, height)
    rows, columns = _pair(crop)
    return (width, height), (_offset(width, columns, centre), _offset(height, rows, centre)), (columns, rows)


def _pair(side: Side) -> tuple[int, int]:
    """Return (height, width)."""
    height, width = (side, side) if isinstance(side, int) else side
    return height, width


def _fitted(old: tuple[int, int], resize: Side, fit: str) -> tuple[int, int]:
    """Return the new (width, height) of an image."""
    if fit not in _FITS:
        raise ValueError(f"unknown fit {fit!r}; choose from {', '.join(_FITS)}")
    height, width = _pair(resize)
    if fit == "squash":
        return width, height
    if fit == "short":
        short = min(old)
        found = tuple(height if side == short else int(height * side / short) for side in old)
    else:
        ratio = (min if fit == "cover" else max)(old[0] / width, old[1] / height)
        found = tuple(round(side / ratio) for side in old)
    if min(found) < 1:
        raise ValueError(f"{old[0]}x{old[1]} pixels are too thin to be resized to {found[0]}x{found[1]}")
    return found[0], found[1]


def _resized(
    image: Image.Image | NDArray[Any], size: tuple[int, int], interpolation: str, resampler: str
) -> Image.Image | NDArray[Any]:
    """Return the image at the size (width, height); as an image if Pillow resizes one, else (C, H, W)."""
    if size == size_of(image):
        return image
    if resampler == "pillow":
        if isinstance(image, Image.Image):
            return image.resize(size, _RESAMPLING[interpolation])
        # As of a colour image, each band is resized by itself; Pillow takes 16 bits as floats.
        bands = image if image.dtype == np.uint8 else image.astype(np.float32)
        made = [np.asarray(Image.fromarray(band).resize(size, _RESAMPLING[interpolation])) for band in bands]
        return _as_type(np.stack(made), image.dtype)
    import torch  # imported late, because Pillow resizes for most sources
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    # torchvision has two kinds of nearest, and Pillow's is this one.
    mode = InterpolationMode("nearest-exact" if interpolation == "nearest" else interpolation)
    planes = np.ascontiguousarray(_planes(image))
    pixels = torch.from_numpy(planes if planes.dtype == np.uint8 else planes.astype(np.float32))
    found = resize(pixels[None], [size[1], size[0]], mode, antialias=True)[0].numpy()
    return _as_type(found, planes.dtype)


def _planes(image: Image.Image | NDArray[Any]) -> NDArray[Any]:
    """Return the pixels (C, H, W)."""
    if not isinstance(image, Image.Image):
        return image
    # Pillow takes single bands out of its pixels faster than NumPy moves them to the first axis.
    bands = (np.frombuffer(image.tobytes("raw", band), np.uint8) for band in image.getbands())
    return np.stack([band.reshape(image.height, image.width) for band in bands])


def _as_type(values: NDArray[Any], kind: np.dtype) -> NDArray[Any]:
    """Return resized values in the type that they had before; some filters go beyond its range."""
    if values.dtype == kind == np.uint8:
        return values
    return np.rint(values).clip(0, 65535).astype(kind) if kind == np.uint16 else values.clip(0, 1)


def _cropped(
    pixels: NDArray[Any], offset: tuple[int, int], size: tuple[int, int], fill: Sequence[int]
) -> NDArray[Any]:
    """Return what lies in a window of a size (width, height); its first pixel may lie outside the image."""
    (left, top), (columns, rows) = offset, size
    window = np.empty((len(pixels), rows, columns), pixels.dtype)
    largest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    window[:] = (np.array(fill) * (largest / 255)).astype(pixels.dtype)[:, None, None]
    inner = pixels[:, max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
    first = max(-top, 0), max(-left, 0)
    window[:, first[0] : first[0] + inner.shape[1], first[1] : first[1] + inner.shape[2]] = inner
    return window


def _offset(side: int, crop: int, centre: str) -> int:
    """Return the first pixel of the crop; it is negative if the image is smaller than the crop."""
    if centre == "floor":
        return (side - crop) // 2
    # torchvision rounds half to even when it cuts, and pads the smaller half first.
    return round((side - crop) / 2) if centre == "round" and side >= crop else int((side - crop) / 2)


def _move(box: Box, scale: tuple[float, float], offset: tuple[int, int], size: tuple[int, int]) -> Box:
    """Scale and shift a box, and clip it to the size (width, height) of the result."""
    x0, x1 = (min(max(x * scale[0] - offset[0], 0.0), float(size[0])) for x in (box[0], box[2]))
    y0, y1 = (min(max(y * scale[1] - offset[1], 0.0), float(size[1])) for y in (box[1], box[3]))
    return x0, y0, x1, y1
