"""The two interventions: take a region's content out of a class, and put it into other classes.

All effects are log-odds of the class in nats. A probability hides them where the network is sure of itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.findings.regions import LEAST_PIXELS, area, matched_places, without
from tasks.findings.seen import Rows, Seen
from tasks.findings.trials import Trials

Floats = NDArray[np.float64]

FILLS = 3  # other images whose content fills a removed region, per image
MATCHED = 4  # places elsewhere, per image
RECIPIENTS = 30  # images of other classes that get a region's content
DONORS = 3  # exemplars whose content each of them gets, one at a time
LEAST_EXEMPLARS = 8
LARGE = 0.25  # of the image: a larger region has no matched place elsewhere
_FITTING = 0.5  # of the area of a region: what its matched places keep beside the object, at least


@dataclass(frozen=True, eq=False)
class Removal:
    """What the exemplars lose when the region is filled with content of other classes.

    Attributes
    ----------
    rows
        (n,) the exemplars that took part.
    drops
        (n,) the log-odds that each lost, in nats.
    controls
        (n,) what it lost at matched places; or, if not ``paired``, (m,) what images of other classes lose of
        their own class when the same region is filled, at least 16 pixels of it beside their object.
    paired
        Whether the controls are of the same images.
    kept
        Share of the removals after which the class is still predicted.
    """

    rows: Rows
    drops: Floats
    controls: Floats
    paired: bool
    kept: float


@dataclass(frozen=True, eq=False)
class Transplant:
    """What images of other classes gain when they get the region's content of exemplars.

    Attributes
    ----------
    rows
        (n,) the recipients.
    donors
        (n, 3) the exemplar of each transplant; -1 where fewer fitted.
    rises, controls
        (n,) the log-odds of the class that each gained, in nats, with content of exemplars, and with content
        of the same places from random images.
    flips, control_flips
        (n,) shares of its transplants after which the class is predicted.
    """

    rows: Rows
    donors: Rows
    rises: Floats
    controls: Floats
    flips: Floats
    control_flips: Floats


def remove(
    trials: Trials, target: int, exemplars: Rows, regions: Tensor, rng: np.random.Generator
) -> Removal:
    """Fill the regions of the exemplars with content of the same place from images of other classes.

    Parameters
    ----------
    trials
        Runs the network.
    target
        The class.
    exemplars
        (E,) rows.
    regions
        (E, H, W) bool, without the objects, each of at least 16 pixels.
    rng
        Draws the images and the matched places.
    """
    others = trials.seen.others(target)
    count = len(exemplars)
    before = trials.whole(exemplars, target)[:, 0]
    fills = _drawn(rng, others, (count, FILLS))
    after = trials.swapped(
        exemplars.repeat(FILLS), fills.ravel(), lambda at: regions[at // FILLS], target
    ).view(count, FILLS, 2)
    drops = (before - after[..., 0].mean(1)).numpy()
    kept = float(after[..., 1].mean())
    places = _elsewhere(trials, exemplars, regions, rng)
    if places is None:
        controls = _in_others(trials, target, regions, rng)
    else:
        controls = _at(trials, target, exemplars, places, before, rng)
    return Removal(exemplars, drops, controls, places is not None, kept)


def _elsewhere(trials: Trials, exemplars: Rows, regions: Tensor, rng: np.random.Generator) -> Tensor | None:
    """(E * 4, H, W) bool: places of the same shape in each exemplar; None where the regions are too large.

    They are too large if they cover more than a quarter of the image, or if less than half of a region fits
    elsewhere beside the object.
    """
    if float(area(regions).float().mean()) > LARGE * regions[0].numel():
        return None
    objects = trials.seen.grown_objects(exemplars)
    blocked = regions if objects is None else regions | objects
    places = matched_places(regions, blocked, MATCHED, rng).flatten(0, 1)
    fits = int(area(places).sum()) >= _FITTING * MATCHED * int(area(regions).sum())
    return places if fits else None


def _at(
    trials: Trials, target: int, exemplars: Rows, places: Tensor, before: Tensor, rng: np.random.Generator
) -> Floats:
    """(E,) what each exemplar loses, on average, when these places of :func:`_elsewhere` are filled."""
    fills = _drawn(rng, trials.seen.others(target), (len(exemplars) * MATCHED,))
    after = trials.swapped(exemplars.repeat(MATCHED), fills, lambda at: places[at], target)[:, 0]
    return (before - after.view(-1, MATCHED).mean(1)).numpy()


def _in_others(trials: Trials, target: int, regions: Tensor, rng: np.random.Generator) -> Floats:
    """(m,) what images of other classes lose of their own class when the same regions are filled in them."""
    seen = trials.seen
    others = seen.others(target)
    rows = rng.permutation(others)[: len(regions)]
    fills = _foreign(seen, rows, others, rng.integers(len(others), size=(len(rows), FILLS)))
    places = without(regions[: len(rows)], seen.grown_objects(rows))
    fit = (area(places) >= LEAST_PIXELS).numpy()
    rows, fills, places = rows[fit], fills[fit], places[fit]
    own = torch.from_numpy(seen.classes[rows])
    whole = trials.whole(rows, own)[:, 0]
    after = trials.swapped(
        rows.repeat(FILLS), fills.ravel(), lambda at: places[at // FILLS], own.repeat_interleave(FILLS)
    )[:, 0]
    return (whole - after.view(-1, FILLS).mean(1)).numpy()


def _foreign(seen: Seen, rows: Rows, others: Rows, drawn: Rows) -> Rows:
    """Images (n, 3) to fill images ``rows`` (n,) with, by numbers ``drawn`` in [0, m), of ``others`` (m,).

    They are of other classes than the image that they fill, as those for the exemplars are: content of its
    own class, or of itself, would cost it nothing. Where all are of its class, the image itself is left out.
    """
    own = seen.classes[rows][:, None]
    foreign = (seen.classes[others] != own) & (seen.labels[others] != own)
    allowed = np.where(foreign.any(1, keepdims=True), foreign, others != rows[:, None])
    place = drawn * allowed.sum(1, keepdims=True) // len(others)
    return others[(allowed.cumsum(1)[:, None] > place[..., None]).argmax(2)]


def transplant(
    trials: Trials, target: int, exemplars: Rows, regions: Tensor, rng: np.random.Generator
) -> Transplant:
    """Copy the content of the exemplars' regions into images of other classes.

    Parameters
    ----------
    trials, target, exemplars, regions, rng
        As for :func:`remove`. The objects of the recipients are taken out of the regions here.
    """
    others = trials.seen.others(target)
    rows = np.sort(rng.permutation(others)[:RECIPIENTS])
    objects = trials.seen.grown_objects(rows)
    recipient, exemplar = _pairs(regions, objects, len(rows), rng)
    under, over = rows[recipient], exemplars[exemplar]

    def places(at: Rows) -> Tensor:
        return without(regions[exemplar[at]], None if objects is None else objects[recipient[at]])

    before = trials.whole(rows, target)[recipient, 0]
    given = trials.swapped(under, over, places, target)
    # Content of an image that is neither of the class nor the recipient itself.
    random = _drawn(rng, others, (len(under),))
    again = random == under
    random[again] = others[(np.searchsorted(others, random[again]) + 1) % len(others)]
    control = trials.swapped(under, random, places, target)
    there = np.unique(recipient)
    donors = np.full((len(there), DONORS), -1)
    for number, each in enumerate(there):
        its = over[recipient == each]
        donors[number, : len(its)] = its
    means = [
        _means((scores - shift).numpy(), recipient, there)
        for scores, shift in (
            (given[:, 0], before),
            (control[:, 0], before),
            (given[:, 1], torch.zeros(1)),
            (control[:, 1], torch.zeros(1)),
        )
    ]
    return Transplant(rows[there], donors, *means)


def _pairs(
    regions: Tensor, objects: Tensor | None, recipients: int, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Draw up to three exemplars for each recipient, of those whose region fits beside its object.

    Returns
    -------
    recipient, exemplar
        Numbers (k,) of both, ordered by recipient.
    """
    left = area(regions)[None].expand(recipients, -1).float()
    if objects is not None:
        left = left - objects.flatten(1).float() @ regions.flatten(1).float().T
    order = torch.from_numpy(rng.random(left.shape))
    chosen = torch.where(left >= LEAST_PIXELS, order, 2).sort(1)
    fits = chosen.values[:, :DONORS] < 2
    recipient = torch.arange(recipients)[:, None].expand_as(fits)
    return recipient[fits].numpy(), chosen.indices[:, :DONORS][fits].numpy()


def _means(values: Floats, groups: Rows, wanted: Rows) -> Floats:
    counts = np.bincount(groups, minlength=wanted.max(initial=-1) + 1)
    sums = np.bincount(groups, values, minlength=len(counts))
    return np.asarray(sums[wanted] / counts[wanted], dtype=np.float64)


def _drawn(rng: np.random.Generator, rows: Rows, shape: tuple[int, ...]) -> Rows:
    return rows[rng.integers(len(rows), size=shape)]
