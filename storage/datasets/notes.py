"""What was done to an image, its boxes and its mask: words that are counted over a run.

A note is the text ``KIND`` or ``KIND: DETAIL``. The notes of an image are stored with its sample, and their
kinds are counted in the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Notes = list[str]

TURNED = "turned by EXIF"
NOT_TURNED = "EXIF orientation not followed"
COMPOSITED = "transparent, put on the background"
FIRST_FRAME = "first of several frames"
DEEP = "16 bits per value"
DARK = "16 bits per value, less than a quarter of the range used"
CUT_VALUES = "values outside dataset.range"
WINDOWED = "shown through a window"
WHOLE_RANGE = "shown over the whole range of its bits"
NARROW = "shown over the whole range of its bits, of which less than a quarter is used"
BOX_OUTSIDE = "box outside the image"
BOX_CLIPPED = "box clipped to the image"
BOX_EMPTY = "box without area"
BOX_CROPPED = "box cropped away"
MASK_FULL = "mask covers the whole image"
MASK_EMPTY = "mask without an object"
MASK_CROPPED = "mask cropped away"
MASK_ALPHA = "mask read from its alpha channel"
MASK_LOSSY = "mask is a JPEG file"
MASK_VALUES = "mask with several values besides 0, all of which count as the object"
SHARED_BOXES = "boxes that count for each of several labels"
SHARED_MASK = "mask that counts for each of several labels"
LABELS_CUT = "labels beyond target.labels, which are not explained"
MASK_FRAME = "mask is the first of several frames"

# What to do about a kind that is likely a mistake.
_ADVICE = {
    NARROW: "set dataset.window to the values that matter, e.g. [40, 400]",
    DARK: "none of the set's 16-bit files uses more; set dataset.range if the values have fewer bits",
    BOX_OUTSIDE: "these boxes do not count; check the unit of the boxes and dataset.exif",
    MASK_FULL: "set dataset.mask_values if other values than 0 are the background",
    SHARED_BOXES: "a listing says in a column boxlabel of which label each box is",
    SHARED_MASK: "it does not say which object is of which label",
    MASK_EMPTY: "check dataset.mask_values",
    MASK_VALUES: "set dataset.mask_values or mask_ignore if some are another object or a border",
    MASK_LOSSY: "compression changes values near 0, which count as object; write masks as PNG",
}


def kind_of(note: str) -> str:
    """Return the kind of a note."""
    return note.partition(": ")[0]


def lines(samples: Iterable[Mapping[str, Any]], left_out: Mapping[str, int]) -> list[str]:
    """Return one line for each kind of note of a run, with its number and an example.

    Parameters
    ----------
    samples
        Rows of the samples, of which ``uri`` and ``notes`` are read.
    left_out
        Number of files that are no images of the run, by what they are.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for sample in samples:
        for note in sample["notes"] or ():
            kind = kind_of(note)
            counts[kind] += 1
            first.setdefault(kind, f"{sample['uri']}{note[len(kind) :]}")
    if counts[DARK] < counts[DEEP]:  # a dark image among others is no sign of a mistake
        del counts[DARK]
    told = [
        f"{kind}: {count}, e.g. {first[kind]}" + (f"; {_ADVICE[kind]}" if kind in _ADVICE else "")
        for kind, count in sorted(counts.items())
    ]
    if left_out:
        told.append(f"left out: {in_words(left_out)}")
    return told


def in_words(left_out: Mapping[str, int]) -> str:
    """Return the numbers of files that were left out as text, the most frequent ones first."""
    order = sorted(left_out.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{count} {what}" for what, count in order[:10]]
    more = sum(count for _, count in order[10:])
    return ", ".join(shown + ([f"{more} others"] if more else []))


def kinds_of(samples: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count the notes of some samples by kind."""
    return Counter(kind_of(note) for sample in samples for note in sample["notes"] or ())
