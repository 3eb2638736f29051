"""How well a model's confidence tells how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.places import is_there
from storage.run import Run
from storage.samples import sample_table
from tasks.results.accuracy import read_accuracy

BINS = 15  # of the calibration error, as many as in the paper


@dataclass(frozen=True)
class Calibration:
    """How well a model's confidence tells how often it is right.

    Attributes
    ----------
    images
        Number of images with a prediction and a label that is a class of the model.
    confidence
        Mean probability of the predicted class, in [0, 1].
    accuracy
        Share of the predictions that are the label, in [0, 1].
    error
        Expected calibration error, in [0, 1]: the mean over 15 equal bins of confidence of the difference
        between accuracy and confidence, weighted by the images in each (Guo et al. 2017, eq. 3).
    bins
        Per bin that has images: its upper end, its images, its mean confidence and its accuracy.
    """

    images: int
    confidence: float
    accuracy: float
    error: float
    bins: list[tuple[float, int, float, float]]


def calibration_of(run: Run) -> Calibration | None:
    """Compare the model's confidence with how often it is right; None where accuracy is not known."""
    accuracy = read_accuracy(run)
    if accuracy is None or not accuracy.exclusive or not is_there(run.samples):
        return None
    table = sample_table(run.root, ["label", "prediction", "confidence"]).drop_null()
    if not len(table):
        return None
    confidence = table["confidence"].to_numpy()
    right = table["prediction"].to_numpy() == table["label"].to_numpy()
    # A bin holds what is above its lower end, up to its upper end.
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for index in np.unique(bins):
        inside = bins == index
        rows.append(
            (
                float((index + 1) / BINS),
                int(inside.sum()),
                float(confidence[inside].mean()),
                float(right[inside].mean()),
            )
        )
    error = sum(images * abs(said - was) for _, images, said, was in rows) / len(table)
    return Calibration(len(table), float(confidence.mean()), float(right.mean()), error, rows)
