"""Jobs on TorchScript and exported programs give the maps of the network that they were made from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from explainers.models.loading import ModelSpec, network_of
from flows.job import JobError
from runs import explained, model, prepared, tiny_job
from storage.maps import read

FREE = [{"name": "rise", "masks": 8}, {"name": "input_x_gradient"}]


def saved(file: Path) -> dict[str, str]:
    """The keys of a job on the network of the toys, saved as a program."""
    network = network_of(ModelSpec.model_validate(model("gap")), "cpu").eval()
    if file.suffix == ".pt":
        torch.jit.save(torch.jit.script(network), file)
        return {"source": "torchscript", "weights": str(file)}
    example, batch = (torch.rand(2, 3, 64, 64),), ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(network, example, dynamic_shapes=batch), file)
    return {"source": "exported", "weights": str(file)}


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_maps_and_scores_are_those_of_the_network(name: str, tmp_path: Path) -> None:
    changes = {
        "dataset": {"kind": "digits", "limit": 8},
        "explainers": FREE,
        "metrics": [{"name": "insertion", "steps": 4}],
        "batch": {"shard": 8},
    }
    plain, program = (
        explained(prepared(tiny_job(tmp_path / store, model=table, **changes)))
        for store, table in (("plain", model("gap")), ("program", saved(tmp_path / name)))
    )
    assert plain.manifest.model_fingerprint != program.manifest.model_fingerprint
    for explainer in ("rise", "input_x_gradient"):
        maps, own = (read(run.saliency(explainer) / "maps", 0, run.rows) for run in (program, plain))
        np.testing.assert_allclose(maps, own, rtol=1e-4, atol=1e-6)
        assert np.ptp(own) > 0


def test_an_explainer_that_reads_a_layer_is_refused_in_one_line(tmp_path: Path) -> None:
    table = saved(tmp_path / "net.pt")
    told = r"^model\.layer: the network is a program .* explainers that need no layer"
    with pytest.raises(JobError, match=told) as refused:
        prepared(tiny_job(tmp_path / "run", model=table, explainers=[{"name": "gradcam"}]))
    assert "\n" not in str(refused.value)
