"""The bytes of the page's pictures: inputs as WebP, and maps as PNG files with a palette.

A map is a picture on its own grid, which the browser enlarges and lays over the input. Where its bytes lie is
the choice of a :data:`Link`: in the page itself, or at an address.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from tasks.pictures.dataset_sheet import MASK_COLOURS
from tasks.pictures.drawing import BEHIND

if TYPE_CHECKING:
    from torch import Tensor

# Turns the name of a picture, such as "map/gradcam/12.png", and the function that makes its bytes, into the
# address that the page gives the browser.
Link = Callable[[str, Callable[[], bytes]], str]

LEVELS = 255  # of a map, from 0 to 1; one more stands for what is no number
_NOTHING = LEVELS
_LOSSLESS = 64 * 64  # pixels; a smaller input is enlarged so much that one sees what WebP changes
_QUALITY = 80
_EFFORT = 2  # of WebP's 0 to 6: a lossless picture takes a tenth of the default's time, and 1 % more bytes


def _palette(colours: Any) -> NDArray[np.uint8]:
    """(LEVELS + 1, 3): the colours of all levels, and black for what is no number."""
    levels = np.rint(colours(np.linspace(0, 1, LEVELS))[:, :3] * 255)
    return np.concatenate([levels, np.zeros((1, 3))]).astype(np.uint8)


INFERNO = _palette(colormaps["inferno"])
SHADES = _palette(BEHIND)


def palette_of(modality: str) -> NDArray[np.uint8]:
    """The palette of a run's maps: one that is laid over images, or behind lines."""
    return SHADES if modality == "tensor" else INFERNO


def inline(name: str, made: Callable[[], bytes]) -> str:
    """The :data:`Link` of a page in one file: the picture as a data URI."""
    kind = name.rpartition(".")[2]
    return f"data:image/{kind};base64,{b64encode(made()).decode()}"


def webp(pixels: NDArray[np.uint8], most: int) -> bytes:
    """An input (H, W, 3) as WebP, reduced until its longer side has at most ``most`` pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    lossless = image.width * image.height <= _LOSSLESS
    image.save(encoded, "WEBP", lossless=lossless, quality=_QUALITY, method=_EFFORT)
    return encoded.getvalue()


def map_png(levels: NDArray[np.floating[Any]], palette: NDArray[np.uint8]) -> bytes:
    """A map as PNG with a palette, within half a level of its values; NaN is transparent.

    Parameters
    ----------
    levels
        (h, w) in [0, 1] or NaN.
    palette
        :data:`INFERNO` or :data:`SHADES`. The file holds the colours that occur, since the whole palette is
        larger than most maps.
    """
    there = np.isfinite(levels)
    index = np.where(there, np.rint(np.where(there, levels, 0) * (LEVELS - 1)), _NOTHING).astype(np.uint8)
    used, places = np.unique(index, return_inverse=True)
    opaque = np.where(used == _NOTHING, 0, 255).astype(np.uint8)
    return _png(places.reshape(index.shape), palette[used], opaque)


def mask_png(mask: NDArray[np.uint8]) -> bytes:
    """A mask (H, W) with the values of :mod:`storage.datasets.masks`, transparent where nothing is."""
    colours = np.zeros((max(MASK_COLOURS) + 1, 4), np.uint8)
    for value, colour in MASK_COLOURS.items():
        colours[value] = colour
    return _png(mask, colours[:, :3], colours[:, 3])


def reduced(maps: Tensor, most: int) -> Tensor:
    """Maps (B, \\*grid) whose sides have at most ``most`` cells: means of neighbouring cells where needed."""
    from torch.nn import functional as F  # imported late, because most pages do without it

    size = tuple(min(side, most) for side in maps.shape[1:])
    if size == tuple(maps.shape[1:]):
        return maps
    if len(size) == 1:
        return F.adaptive_avg_pool1d(maps[:, None], size[0])[:, 0]
    return F.adaptive_avg_pool2d(maps[:, None], (size[0], size[1]))[:, 0]


def _png(index: NDArray[Any], colours: NDArray[np.uint8], opaque: NDArray[np.uint8]) -> bytes:
    """A PNG of palette indices (h, w), with the colours (n, 3) and the opacities (n,) of the palette."""
    image = Image.fromarray(index.astype(np.uint8), "P")
    image.putpalette(colours.tobytes())
    more = {} if (opaque == 255).all() else {"transparency": opaque.tobytes()}
    encoded = BytesIO()
    image.save(encoded, "PNG", compress_level=9, **more)
    return encoded.getvalue()
