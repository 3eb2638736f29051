"""Explainers on activations share one decoding and one backbone pass an image, whatever their number."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from explainers.base import Need
from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load
from explainers.registry import explainers
from explainers.requirements import unmet
from runs import explained, model, prepared, tiny_job
from storage.datasets.dataset import Dataset
from storage.maps import read
from tasks.run_parts import classifier_of

IMAGES, SHARD, STEP, FORWARDS = 10, 4, 3, 5


def on_activations(kind: str) -> list[str]:
    """The registered explainers that read activations, and no inputs, and that the network can serve."""
    with load(ModelSpec(**model(kind)), input_size=(64, 64)) as classifier:
        needs = {name: explainers.get(name).needs for name in explainers.names()}
        return [
            name
            for name, needed in needs.items()
            if Need.ACTIVATIONS in needed and Need.PIXELS not in needed and unmet(needed, classifier) is None
        ]


def job(store: Path, kind: str) -> dict[str, Any]:
    return tiny_job(
        store,
        dataset={"kind": "digits", "limit": IMAGES},
        model=model(kind),
        explainers=[{"name": name} for name in on_activations(kind)],
        controls=False,
        batch={"images": STEP, "forwards": FORWARDS, "shard": SHARD},
    )


def counting(method: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
    """The method, with its first argument noted on the way."""

    def noted(self: Any, argument: Any, *others: Any) -> Any:
        note(argument)
        return method(self, argument, *others)

    return noted


@pytest.mark.parametrize("kind", ["gap", "mlp", "vit"])
def test_all_of_them_together_decode_each_image_once_and_pass_the_backbone_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once before, so that what workers do once a process, such as probing the classifier, is not counted.
    explained(prepared(job(tmp_path / "before", kind)))
    run = prepared(job(tmp_path / "run", kind))
    assert len(run.explainers) >= (10 if kind == "gap" else 9)  # CAM needs a pooled head
    decoded: Counter[int] = Counter()
    passes: list[Tensor] = []
    monkeypatch.setattr(Dataset, "load", counting(Dataset.load, lambda index: decoded.update([index])))
    for method in ("activations", "logits"):  # whole passes, too, go through the backbone
        monkeypatch.setattr(Classifier, method, counting(getattr(Classifier, method), passes.append))
    batches: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        batches.append(len(args[0]))

    leaves = [module for module in classifier_of(run).network.modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(note) for leaf in leaves]
    try:
        explained(run)
    finally:
        for handle in handles:
            handle.remove()
    assert decoded == dict.fromkeys(range(IMAGES), 1)
    seen = np.concatenate([(255 * pixels).round().byte().numpy() for pixels in passes])
    np.testing.assert_array_equal(seen, read(run.inputs, 0, IMAGES))
    assert max(map(len, passes)) == STEP
    assert max(batches) <= FORWARDS
    for name in run.explainers:
        assert np.isfinite(read(run.saliency(name) / "maps", 0, IMAGES)).all(), name
