"""Jobs whose explainers need no layer: the network is not cut, and any network that gives logits serves."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from explainers.base import Batch, Description, Explanation, Need, Parameters, statuses_of
from explainers.models import classifier
from explainers.models.classifier import Classifier
from explainers.models.finding import TargetLayer
from flows.job import JobError
from runs import completed, explained, model, prepared, tiny_job
from storage.maps import read
from storage.run import Run
from tasks.in_memory import explain, load
from tasks.run_parts import classifier_of

NETWORK = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4, 3)

    def forward(self, inputs):
        if float(inputs.detach().sum()) > 1e9:
            raise ValueError("too bright")
        return self.fc(self.features(inputs).relu().mean((2, 3)))

def branching():
    torch.manual_seed(0)
    return Branching()

def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
"""
FREE = [{"name": "rise", "masks": 8}]
CAM = {"name": "gradcam"}


def job(store: Path, explainers: list[dict[str, Any]], table: dict[str, str]) -> dict[str, Any]:
    return tiny_job(
        store,
        dataset={"kind": "digits", "limit": 8},
        model=table,
        explainers=explainers,
        metrics=[{"name": "insertion", "steps": 4}],
        batch={"shard": 8},
    )


def maps_of(run: Run, name: str) -> np.ndarray:
    return read(run.saliency(name) / "maps", 0, run.rows)


def test_a_network_without_any_grid_is_explained_where_nothing_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(NETWORK)
    table = {"source": f"{tmp_path}/flat.py:flat"}
    run = explained(prepared(job(tmp_path / "run", FREE, table)))
    assert run.layer is None
    assert {entry.layer for entry in run.explainers.values()} == {None}
    assert "head" not in run.manifest.probes
    assert "batch" in run.manifest.probes
    maps = maps_of(run, "rise")
    assert np.isfinite(maps).all()
    assert np.ptp(maps) > 0
    with pytest.raises(JobError, match=r"^model\.layer: ") as refused:
        prepared(job(tmp_path / "run", [*FREE, CAM], table))
    assert "\n" not in str(refused.value)


def test_a_network_that_branches_on_values_is_extended_by_an_explainer_that_cuts_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    table = {"source": f"{tmp_path}/nets.py:branching", "layer": "features"}
    assert prepared(job(tmp_path / "run", FREE, table)).layer is None
    run = explained(prepared(job(tmp_path / "run", [*FREE, CAM], table)))
    assert run.layer == "features"
    once = prepared(job(tmp_path / "once", [CAM], table))
    assert once.manifest.probes["head"].endswith("cut with replay")
    classifier = classifier_of(run)
    with torch.no_grad():
        inputs = classifier.inputs_of(torch.from_numpy(read(run.inputs, 0, run.rows)))
        maps = classifier.activations(inputs)
        weights = classifier.network.fc.weight[classifier.logits(inputs).argmax(1)]
    # A logit has the gradient weight / cells where an activation is positive, and none elsewhere.
    gradient = weights[..., None, None] * (maps > 0) / maps[0, 0].numel()
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1)
    np.testing.assert_allclose(maps_of(run, "gradcam"), cam.numpy(), rtol=1e-4, atol=1e-7)


def test_in_memory_as_well_the_layer_is_looked_up_only_for_those_that_read_it(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(NETWORK)
    classifier = load(f"{tmp_path}/flat.py:flat", input_size=(64, 64))
    inputs = torch.rand(2, 3, 64, 64)
    assert explain(classifier, inputs, "rise", masks=8).maps.std() > 0
    with pytest.raises(ValueError, match=r"^model\.layer: "):
        explain(classifier, inputs, "gradcam")


def test_a_layer_of_a_wrong_name_is_refused_though_nothing_needs_it(tmp_path: Path) -> None:
    told = r"^model\.layer: the network has no layer 'feature'; close are features"
    with pytest.raises(JobError, match=told):
        prepared(job(tmp_path / "run", FREE, model("gap") | {"layer": "feature"}))


def test_a_run_without_a_layer_is_extended_by_an_explainer_that_reads_one(tmp_path: Path) -> None:
    alone = completed(job(tmp_path / "run", FREE, model("gap")))
    assert alone.layer is None
    before = maps_of(alone, "rise")
    both = completed(job(tmp_path / "run", [*FREE, CAM], model("gap")))
    assert (both.layer, both.hash) == ("features", alone.hash)
    assert "head" not in both.manifest.probes  # those of the job that created the run
    assert np.array_equal(maps_of(both, "rise"), before)
    whole = explained(prepared(job(tmp_path / "whole", [*FREE, CAM], model("gap"))))
    assert np.array_equal(maps_of(both, "gradcam"), maps_of(whole, "gradcam"))
    assert whole.manifest.probes["head"].endswith("cut with fx")


def test_workers_take_the_layer_that_the_run_recorded(tmp_path: Path) -> None:
    run = prepared(job(tmp_path / "run", [CAM], model("vit")))
    found = run.layer
    assert found is not None
    assert found.endswith(":input")
    assert classifier_of(run).layer == found
    other = found.removesuffix(":input")
    recorded = run.manifest.model_copy(update={"identity": run.manifest.identity | {"layer": other}})
    assert classifier_of(Run(run.root, recorded)).layer == other


def test_a_run_is_extended_at_its_layer_even_if_another_one_would_be_found_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(job(tmp_path / "run", [CAM], model("vit"))).layer
    assert found is not None
    earlier = "blocks.1:input"
    assert earlier != found
    monkeypatch.setattr(classifier, "resolve_layer", lambda _, layer: TargetLayer(layer or earlier))
    assert prepared(job(tmp_path / "other", [CAM], model("vit"))).layer == earlier
    extended = prepared(job(tmp_path / "run", [CAM, {"name": "eigencam"}], model("vit")))
    assert extended.layer == extended.manifest.explainers["eigencam"].layer == found


class GradientAlone:
    """A plug-in that takes gradients at the layer, and reads no cached activations."""

    name: ClassVar[str] = f"{__name__}:GradientAlone"
    title: ClassVar[str] = "gradient at the layer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    Parameters: ClassVar[type[Parameters]] = Parameters

    def __init__(self, classifier: Classifier, parameters: Parameters) -> None:  # noqa: ARG002
        self.classifier = classifier

    def describe(self) -> Description:
        return Description(self.classifier.grid)

    def explain(self, batch: Batch) -> Explanation:
        activations = self.classifier.activations(batch.inputs).detach().requires_grad_()
        logits = self.classifier.head(activations).gather(1, batch.targets[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), activations)
        maps = self.classifier.spatial(gradient * activations).sum(1).detach()
        return Explanation(maps, statuses_of(maps))


PLUG_IN = {"name": GradientAlone.name}


def test_the_layer_of_an_explainer_that_reads_no_activations_is_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "resolve_layer", lambda _, layer: TargetLayer(layer or "blocks.1:input"))
    first = prepared(job(tmp_path / "first", [PLUG_IN], model("vit")))
    assert prepared(job(tmp_path / "later", FREE, model("vit"))).layer is None
    later = prepared(job(tmp_path / "later", [*FREE, PLUG_IN], model("vit")))
    monkeypatch.undo()  # another layer is found from now on
    for run in (first, later):
        assert run.layer == "blocks.1:input"
        assert run.manifest.explainers[GradientAlone.name].layer is None  # it reads no cached activations
        assert run.manifest.activation_shape is None
        found = classifier_of(run)
        assert found.layer == "blocks.1:input"
    assert prepared(job(tmp_path / "later", [*FREE, PLUG_IN], model("vit"))).manifest == later.manifest
    extended = prepared(job(tmp_path / "later", [*FREE, PLUG_IN, CAM], model("vit")))
    assert extended.manifest.explainers["gradcam"].layer == "blocks.1:input"
    other = model("vit") | {"layer": "blocks.0:input"}
    with pytest.raises(JobError, match="layer was"):
        prepared(job(tmp_path / "later", [*FREE, PLUG_IN], other))
