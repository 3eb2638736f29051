"""An input that float16 cannot hold fails alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import explained, prepared, tiny_job
from storage.maps import read
from storage.records import Step, read_record
from storage.samples import read_samples
from tasks.pictures.contact_sheet import draw_contact_sheet

NETWORK = """
from torch import nn

def dark(scale={scale}):
    '''Logits of the mean colour, by way of numbers beyond float16 where an image is dark.'''
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 3, 1), *pool, nn.Linear(3, 3), nn.Linear(3, 2))
    for layer in network[0], network[3], network[4]:
        nn.init.zeros_(layer.bias)
    nn.init.dirac_(network[0].weight)
    nn.init.constant_(network[3].weight, scale)
    nn.init.constant_(network[4].weight, 1e-4)
    return network
"""


def scaled(raw: dict[str, Any], store: Path, scale: float) -> dict[str, Any]:
    """The job with a network of its own in another store."""
    network = store.with_suffix(".py")
    network.write_text(NETWORK.format(scale=scale))
    return raw | {"store": str(store), "model": raw["model"] | {"source": f"{network}:dark"}}


def test_its_row_fails_by_name_and_the_shards_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_job(
        tmp_path / "run",
        dataset={"kind": "digits", "limit": 12},
        model={"layer": "0", "mean": [1, 1, 1], "std": [1, 1, 1]},
        explainers=[{"name": "gradcam"}, {"name": "random"}],
        controls=False,
        batch={"shard": 12, "images": 5},
    )
    first = explained(prepared(scaled(raw, tmp_path / "first", 1.0)))
    sums = 3 - read(first.inputs, 0, 12).mean((2, 3)).sum(1) / 255  # what is taken off white
    ordered = np.sort(sums)
    gap = int(np.argmax(np.diff(ordered)[4:9])) + 4
    beyond = sums > ordered[gap]
    told: list[str] = []
    monkeypatch.setattr("tasks.activations.logger.warning", lambda line, *of: told.append(line % of))
    scale = float(65504 / ordered[gap : gap + 2].mean())
    run = explained(prepared(scaled(raw, tmp_path / "run", scale) | {"compute": {"precision": "float16"}}))
    samples = read_samples(run.root)
    assert [sample["prediction"] is None for sample in samples] == beyond.tolist()
    assert [sample["targets"] == [] for sample in samples] == beyond.tolist()
    assert [sample["status"] for sample in samples] == ["failed" if lost else "ok" for lost in beyond]
    assert all((sample["error"] is not None) == lost for sample, lost in zip(samples, beyond, strict=True))
    names = [sample["sample_id"] for sample, lost in zip(samples, beyond, strict=True) if lost]
    assert told == [f"{name}: its logits exceed the range of float16; use bfloat16" for name in names]
    record = read_record(run.root, Step("activations", 0))
    assert record is not None
    assert record.statuses == {"ok": int((~beyond).sum()), "failed": int(beyond.sum())}
    maps = read(run.saliency("random") / "maps", 0, 12)
    assert np.array_equal(np.isnan(maps).any((1, 2)), beyond)
    draw_contact_sheet(run)  # of the others
    assert (run.report / "contact_sheet.png").exists()
