"""The gallery: samples of a run that are worth looking at, with every explainer's map."""

from __future__ import annotations

from dataclasses import dataclass

from storage.run import Run
from tasks.page.choice import KINDS, Reason, choose, facts_of
from tasks.page.picture_data import LEVELS, inline, palette_of
from tasks.page.sample import Sample, bands_told, samples_of
from tasks.page.shown_maps import Named, averaging_told, named


@dataclass(frozen=True)
class Chosen:
    """A sample of the gallery, and why it is there."""

    sample: Sample
    reasons: list[Reason]

    @property
    def kinds(self) -> list[str]:
        """The kinds of its reasons, each once."""
        return list(dict.fromkeys(reason.kind for reason in self.reasons))


@dataclass(frozen=True)
class Kind:
    """A kind of reasons, in words, with the number of samples that have it."""

    name: str
    text: str
    count: int


@dataclass(frozen=True)
class Gallery:
    """What the template ``gallery.html`` shows.

    Attributes
    ----------
    modality
        "image", "text" or "tensor".
    explainers
        The explainers of the run, in order.
    rows, chosen
        The samples, in the order of their reasons, and before them their rows in the run.
    kinds
        The kinds of reasons that occur.
    total, known
        The number of samples in the run, and of those that have passed the model so far.
    headline
        The column that says which samples are an explainer's best and worst; empty if there is none.
    bands
        Which bands of the inputs the pictures show; empty for plain colours.
    boxes, masks
        Whether any sample has boxes, or a mask.
    averaging
        Which maps are averaged in their pictures; empty if none is.
    palette
        The colours of the maps' levels from 0 to 1, six hexadecimal digits each.
    """

    modality: str
    explainers: list[Named]
    rows: list[int]
    chosen: list[Chosen]
    kinds: list[Kind]
    total: int
    known: int
    headline: str
    bands: str
    boxes: bool
    masks: bool
    averaging: str
    palette: str


def gallery_of(run: Run) -> Gallery:
    """Choose at most 48 samples of a run and read everything about them; their pictures are in the page.

    The run need not be finished. The choice depends on its results and its seed alone.
    """
    facts = facts_of(run)
    reasons = choose(facts, run.seed)
    samples = samples_of(run, list(reasons), inline)
    chosen = [Chosen(sample, own) for sample, own in zip(samples, reasons.values(), strict=True)]
    counts = {kind: sum(kind in each.kinds for each in chosen) for kind in KINDS}
    targets = [target for sample in samples for target in sample.targets]
    return Gallery(
        modality=run.modality,
        explainers=named(run),
        rows=list(reasons),
        chosen=chosen,
        kinds=[Kind(kind, KINDS[kind], count) for kind, count in counts.items() if count],
        total=run.rows,
        known=len(facts.rows),
        headline=facts.column,
        bands=bands_told(run),
        boxes=any(target.boxes for target in targets),
        masks=any(target.mask for target in targets),
        averaging=averaging_told(run, len(samples)),
        palette=colours_of(run.modality),
    )


def colours_of(modality: str) -> str:
    """The colours of a map's levels from 0 to 1, six hexadecimal digits each."""
    return palette_of(modality)[:LEVELS].tobytes().hex()
