"""Maps that another program made, handed on as they are: they are scored and compared like all others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from explainers import base
from explainers.base import Batch, Description, Explanation, Need, statuses_of
from explainers.models.black_box import BlackBox
from explainers.registry import register

Side = Annotated[int, Field(ge=1, le=100_000)]


class MapsParameters(base.Parameters):
    """Parameters of given maps."""

    path: Path | None = Field(
        None,
        strict=False,  # a path is a text in TOML and JSON
        description="the maps: an `.npy` or `.npz` file, a Zarr array or group, or a folder with one image "
        "or `.npy` file per sample; required",
    )
    grid: tuple[Side, ...] | None = Field(
        None,
        strict=False,  # a list in TOML and JSON
        min_length=1,
        max_length=2,
        description="shape of one map, such as [7, 7]; needed only where the proportions of the maps are not "
        "those of the input, or an axis of one cell may be a channel; by default that of the maps",
    )
    covers: Literal["input", "image"] = Field(
        "input",
        description="what a map covers: input, what the network sees; image, the whole image before it is "
        "resized and cropped; has to be said where the maps are as large as the images, and the input is not",
    )


@register
class Maps:
    """Maps that another program made: an author's own code, another library, or an archive of maps.

    They are stored and scored as they are, signed and on their own grid. The costs of making them are not
    known, and metrics that explain again do not apply. Which class a map explains can be checked only where
    the file states it (``targets``). The page about jobs says how the files look.
    """

    name: ClassVar[str] = "maps"
    title: ClassVar[str] = "Maps that another program made, from files"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GIVEN})
    Parameters: ClassVar[type[base.Parameters]] = MapsParameters

    def __init__(self, classifier: BlackBox, parameters: MapsParameters) -> None:
        if parameters.grid is None:
            raise ValueError("grid: is known only to a job, which reads the maps")
        self.classifier, self.grid = classifier, parameters.grid

    def describe(self) -> Description:
        return Description(self.grid)

    def explain(self, batch: Batch) -> Explanation:
        assert batch.given is not None  # the caller meets the need
        whole = self.grid == tuple(self.classifier.input_shape[1:])
        sites = self.classifier.sites(batch.inputs) if whole else None
        return Explanation(batch.given, statuses_of(batch.given, sites))
