"""Orders of cells are recognised by where changes lie, and noise is taken for none."""

import pytest
import torch

from explainers.models.cell_orders import other_order

H, W, PLACES = 4, 8, (2, 4)  # each place of the patch covers 2x2 cells
ROWS = torch.arange(H * W).view(H, W)
SNAKE = torch.stack([row.flip(0) if number % 2 else row for number, row in enumerate(ROWS)])
# The cell that is stored at each position, written down by hand for the first of the windows.
WINDOWS = torch.cat(
    [ROWS[down : down + 2, across : across + 2].flatten() for down in (0, 2) for across in (0, 2, 4, 6)]
)
APART = torch.cat([ROWS[down::2, across::2].flatten() for down in (0, 1) for across in (0, 1)])


def changed(stored: torch.Tensor, blur: float = 0.0) -> torch.Tensor:
    """(places, H, W): one under the patch and ``blur`` elsewhere, with cell ``stored[i]`` at position i."""
    found = torch.full((8, H, W), blur)
    for place in range(8):
        down, across = 2 * (place // 4), 2 * (place % 4)
        found[place, down : down + 2, across : across + 2] = 1
    return found.flatten(1)[:, stored.flatten()].view(8, H, W)


@pytest.mark.parametrize("blur", [0.0, 0.3])
@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (ROWS, None),
        (ROWS.T, "column by column"),
        (SNAKE, "every other one of the rows is reversed"),
        (WINDOWS, "window by window of 2x2"),
        (APART, "those that are 2 rows or 4 columns apart together"),
    ],
)
def test_the_order_is_told(stored, told, blur):
    assert other_order(changed(stored, blur), PLACES) == told


def test_noise_is_no_order():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        strength = 1 + 0.1 * torch.rand(16, 7, 7, generator=generator)
        assert other_order(strength, (4, 4)) is None
    assert other_order(torch.ones(4, 2, 2), (2, 2)) is None
    assert other_order(torch.zeros(4, 2, 2), (2, 2)) is None
