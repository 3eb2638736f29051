"""Maps on their own grid: the numbers of the metrics' preparation, without PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from places import ROOT
from storage.run import Run
from tasks.metrics.preparation import prepare
from tasks.page.stored_maps import own_levels

VALUES = st.sampled_from([-2.5, -0.0, 0.0, 1e-30, 0.1, 0.7, 3.0, 3e38, np.inf, -np.inf, np.nan])


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=4), elements=VALUES))
def test_levels_are_those_of_the_metrics(raw: np.ndarray) -> None:
    levels, statuses = own_levels(raw)
    wanted, told = prepare(torch.from_numpy(raw), raw.shape[1:])
    np.testing.assert_array_equal(levels, wanted.numpy())
    assert levels.dtype == np.float32
    assert statuses == told


PROGRAM = """
import sys
from starlette.testclient import TestClient
from flows.browser import browser
from storage.run import Run

with TestClient(browser({"one": Run.open(sys.argv[1])}, "t"), base_url="http://localhost/t/") as client:
    for path in ("?sort=gradcam.insertion", "sample/3", "map/gradcam/3.png", "input/3.webp"):
        assert client.get(path).status_code == 200, path
print(sorted({"torch", "scipy", "prefect", "altair"} & sys.modules.keys()))
"""


def test_pages_of_images_are_made_without_pytorch(finished: Run) -> None:
    if finished.manifest.masks:
        pytest.skip("masks need PyTorch")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(finished.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"
