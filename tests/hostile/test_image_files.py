"""Image files: known pixels in many modes, turned, transparent, in several frames, cut off or altered.

The second check computes from the known pixels what the network must see.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from attempts import attempt, hostile
from pngs import chunk
from runs import images_read

SIDE = 64  # pixels; the network takes 64x64
MODES = {
    ".png": ("1", "L", "LA", "RGB", "RGBA", "P", "P transparent", "I;16"),
    ".tiff": ("1", "L", "RGB", "RGBA", "I;16"),
    ".bmp": ("1", "L", "RGB", "P"),
    ".ppm": ("RGB",),
    ".pgm": ("L",),
    ".webp": ("RGB", "RGBA"),
    ".gif": ("P", "P transparent"),
}
TURNED = (".png", ".tiff", ".webp")  # formats in which an orientation is stored
FRAMES = (".png", ".gif", ".tiff", ".webp")
DAMAGES = (*("none",) * 5, "truncated", "flipped", "garbage", "appended", "wrong suffix", "bomb", "empty")
BACKGROUND = 255  # on which transparent images are laid


@dataclass(frozen=True)
class Draft:
    suffix: str
    mode: str
    orientation: int
    frames: int
    damage: str
    where: int
    seed: int


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    suffix = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[suffix]))
    # Pillow writes no PNG of several frames with a transparent colour of a palette.
    frames = suffix in FRAMES and (suffix, mode) != (".png", "P transparent")
    return Draft(
        suffix,
        mode,
        draw(st.integers(1, 8)) if suffix in TURNED else 1,
        draw(st.integers(1, 3)) if frames else 1,
        draw(st.sampled_from(DAMAGES)),
        draw(st.integers(0, 10**6)),
        draw(st.integers(0, 5)),
    )


def picture(mode: str, seed: int) -> tuple[Image.Image, NDArray[np.float64]]:
    """An image in a mode, and its colours on the background, (64, 64, 3)."""
    random = np.random.default_rng(seed)
    grey = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    alpha = random.choice(np.array([0, 90, 255], np.uint8), (SIDE, SIDE))
    colours = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    palette = random.integers(0, 256, (16, 3), dtype=np.uint8)
    index = random.integers(0, 16, (SIDE, SIDE), dtype=np.uint8)
    three = np.repeat(grey[..., None], 3, -1)
    deep = random.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    plain = {
        "1": (grey > 127, np.where(three > 127, 255.0, 0.0)),
        "L": (grey, three.astype(float)),
        "LA": (np.dstack([grey, alpha]), laid(three, alpha)),
        "RGB": (colours, colours.astype(float)),
        "RGBA": (np.dstack([colours, alpha]), laid(colours, alpha)),
        "I;16": (deep, np.repeat((deep / 257)[..., None], 3, -1)),
    }
    if mode in plain:
        return Image.fromarray(plain[mode][0]), plain[mode][1]
    image = Image.frombytes("P", (SIDE, SIDE), index.tobytes())
    image.putpalette(palette.tobytes())
    if mode == "P":
        return image, palette[index].astype(float)
    image.info["transparency"] = 3
    return image, laid(palette[index], np.where(index == 3, 0, 255))


def laid(colours: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return colours * share + BACKGROUND * (1 - share)


def turned(pixels: NDArray[np.float64], orientation: int) -> NDArray[np.float64]:
    """Pixels (H, W, 3) as the orientation of TIFF 6.0 says that they are to be seen."""
    flipped = pixels[:, ::-1]
    return {
        1: pixels,
        2: flipped,
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]


def write(draft: Draft, folder: Path) -> NDArray[np.float64]:
    """Write a drafted file; return the colours that are in it, (64, 64, 3), as they are to be seen."""
    image, colours = picture(draft.mode, draft.seed)
    more = [picture(draft.mode, draft.seed + 10 + n)[0] for n in range(draft.frames - 1)]
    options: dict[str, Any] = {"save_all": True, "append_images": more} if more else {}
    if draft.suffix in TURNED and draft.orientation != 1:
        exif = Image.Exif()
        exif[274] = draft.orientation
        options["exif"] = exif
    if draft.suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    buffer = io.BytesIO()
    image.save(
        buffer, {".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}.get(draft.suffix, draft.suffix[1:]), **options
    )
    raw = damaged(draft, bytearray(buffer.getvalue()))
    suffix = ".jpg" if draft.damage == "wrong suffix" else draft.suffix
    (folder / f"x{suffix}").write_bytes(raw)
    return turned(colours, draft.orientation)


def damaged(draft: Draft, raw: bytearray) -> bytes:
    at = draft.where % len(raw)
    match draft.damage:
        case "truncated":
            return bytes(raw[:at])
        case "flipped":
            raw[at] ^= 1 << draft.where % 8
        case "garbage":
            return np.random.default_rng(draft.where).bytes(draft.where % 5000)
        case "appended":
            return bytes(raw) + b"\0" * 100
        case "bomb":
            return bomb()
        case "empty":
            return b""
    return bytes(raw)


def bomb() -> bytes:
    """A PNG file of a few bytes that claims 10 thousand million pixels."""

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


@hostile
@given(draft=drafts())
def test_the_network_sees_the_pixels_that_are_in_the_file(place: Path, draft: Draft) -> None:
    folder = Path(mkdtemp(dir=place))
    images = folder / "images" / "one"
    images.mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(images / "plain.png")  # so that there is always one to read
    expected = write(draft, images)
    answer = attempt(
        "image files", lambda: images_read(folder / "run", kind="folder", path=str(images.parent))
    )
    assert answer.accepted, answer.refusal
    ((sample, seen),) = [
        found for found in zip(*answer.value, strict=True) if "plain.png" not in found[0]["uri"]
    ]
    if sample["status"] != "ok":
        assert draft.damage not in {"none", "appended", "wrong suffix"}, sample["error"]
        return
    assert draft.damage not in {"garbage", "bomb", "empty"}
    if draft.damage == "flipped" and draft.suffix != ".png":
        return  # formats without checksums cannot tell that a byte is another
    np.testing.assert_allclose(seen.transpose(1, 2, 0), expected, atol=1.01)
