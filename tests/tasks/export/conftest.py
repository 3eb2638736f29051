"""One finished run of images that all exports are tested on; one image cannot be read."""

from __future__ import annotations

import pytest
from PIL import Image

from runs import completed, tiny_job
from storage.datasets import digits
from storage.run import Run

COUNT = 7


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Seven digits in shards of three, two maps each, by an explainer whose label is no plain word."""
    folder = tmp_path_factory.mktemp("exports")
    lines = ["file,label,xmin,ymin,xmax,ymax"]
    for index in range(COUNT):
        sample = digits.sample("test", index)
        Image.fromarray(sample.image).save(folder / f"{index} <b>&_$.png")
        lines.append(",".join(map(str, [f"{index} <b>&_$.png", sample.label, *sample.box])))
    (folder / "4 <b>&_$.png").write_bytes(b"no image")
    (folder / "listing.csv").write_text("\n".join(lines))
    occlusion = {"name": "occlusion", "label": "occ.1", "window": 32, "stride": 16}
    return completed(
        tiny_job(
            folder / "run",
            name="100% <digits> & 漢字_$x",
            dataset={"kind": "csv", "path": str(folder / "listing.csv")},
            target={"top": 2},
            explainers=[{"name": "gradcam"}, occlusion],
            metrics=[{"name": "sparseness"}, {"name": "pointing_game"}, {"name": "max_box_accuracy"}],
            batch={"shard": 3},
        )
    )
