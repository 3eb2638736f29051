"""An explainer whose maps go wrong in every way, for the tests of pages."""

from typing import Any, ClassVar

import torch

from explainers.base import Batch, Description, Explanation, Need, Parameters, Status, statuses_of


class Odd:
    """Maps by an image's first pixel: 0 fine, 1 zero, 2 constant, 3 NaN, 4 failed, 5 negative."""

    name: ClassVar[str] = "page_toys:Odd"
    title: ClassVar[str] = "odd"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = Parameters

    def __init__(self, classifier: Any, parameters: Parameters) -> None:
        pass

    def describe(self) -> Description:
        return Description((2, 2))

    def explain(self, batch: Batch) -> Explanation:
        kind = (batch.inputs[:, 0, 0, 0] * 255).round().int()
        fine = torch.tensor([[0.0, 1.0], [2.0, -4.0]])
        known = torch.stack(
            [fine, 0 * fine, 0 * fine + 3, 0 * fine + torch.nan, 0 * fine + torch.nan, -1 - fine.abs()]
        )
        maps = known[kind]
        statuses = [
            Status.FAILED if each == 4 else status
            for each, status in zip(kind.tolist(), statuses_of(maps), strict=True)
        ]
        return Explanation(maps, statuses)
