"""The masks of ImageNet-S: PNG files whose colours number the classes of ImageNet-S's own list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from storage.datasets.dataset import Sample
from storage.datasets.image_files import MaskFiles
from storage.datasets.imagenet_labels import SYNSET, stem, synsets
from storage.datasets.masks import mask_values
from storage.datasets.notes import Notes
from storage.files import UnreadableError
from storage.places import files_under, folders_in

_IGNORED = 1000  # the number of pixels that do not count
_VERSIONS = (50, 300, 919)  # the numbers of classes of the versions of ImageNet-S
# ImageNet-S with 919 classes has one class for each of these pairs, under the name on the right.
_MERGED = {
    "n04356056": "n04355933",
    "n04493381": "n02808440",
    "n03642806": "n03832673",
    "n04008634": "n03773504",
    "n03887697": "n15075141",
}


def masks_of(root: Path, names: Sequence[str]) -> MaskFiles:
    """Find the masks of images, whose files have the images' names and lie in class folders.

    Parameters
    ----------
    root
        A folder of ImageNet-S such as ``validation-segmentation``: all its class folders must be there,
        because their order numbers the classes.
    names
        The images' files, which are the sample ids.

    Raises
    ------
    ValueError
        If it is no such folder, or has no mask of any image. The message is one line that names the key.
    """
    folders = [name for name in folders_in(root) if SYNSET.fullmatch(name)]
    if len(folders) not in _VERSIONS:
        raise ValueError(
            f"dataset.masks: {root} has {len(folders)} class folders, and ImageNet-S 50, 300 or 919, whose "
            "order numbers the classes in its masks; give the whole folder, e.g. validation-segmentation"
        )
    ids = {synset: number for number, synset in enumerate(folders, start=1)}
    files = {stem(name): name for name in files_under(root) if name.lower().endswith(".png")}
    found = {name: files[stem(name)] for name in names if stem(name) in files}
    if not found:
        raise ValueError(f"dataset.masks: {root} has no mask of any of the images, e.g. of {names[0]}")
    return MaskFiles(found, root, lambda image, sample, _, notes: _mask(image, sample, ids, notes))


def _mask(image: Image.Image, sample: Sample, ids: Mapping[str, int], notes: Notes) -> Image.Image:  # noqa: ARG001
    """Return the mask of the sample's class; other classes count as background."""
    assert sample.label is not None
    synset = synsets()[sample.label]
    own = ids.get(synset if synset in ids else _MERGED.get(synset, synset))
    if own is None:
        raise UnreadableError(f"this version of ImageNet-S does not have the class {synset}")
    if image.mode != "RGB":
        raise UnreadableError(f"has the mode {image.mode}; masks of ImageNet-S are in RGB")
    pixels = np.asarray(image).astype(np.int32)
    values = pixels[..., 0] + 256 * pixels[..., 1]
    strange = ~np.isin(values, [0, _IGNORED, *ids.values()]) | (pixels[..., 2] != 0)
    if strange.any():
        red, green, blue = pixels[strange][0]
        raise UnreadableError(f"has the colour {red},{green},{blue}, which is no class of ImageNet-S")
    return Image.fromarray(mask_values(values == own, values == _IGNORED))
