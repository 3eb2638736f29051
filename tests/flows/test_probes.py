"""A job asks its network the probes at load before any worker starts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.exceptions import TerminationSignal
from typer.testing import CliRunner

from explainers.models.probes_at_load import PROBES
from flows.cli import app
from flows.job import JobError
from flows.job_commands import _taken
from runs import explained, prepared, tiny_job, toml
from storage.maps import read
from storage.samples import read_samples

NETWORK = '''
import torch
from torch import nn

class Net(nn.Module):
    """Logits (mean colour, 0) of digits, changed at the end."""

    def __init__(self, last):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 4, stride=4)
        self.fc = nn.Linear(2, 2)
        nn.init.constant_(self.features.weight, 1 / 48)
        nn.init.zeros_(self.features.bias)
        self.features.weight.data[1] *= -1
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.last = last

    def forward(self, inputs):
        return self.last(self.fc(self.features(inputs).mean((2, 3))))

class Overflow(nn.Module):
    def forward(self, logits):
        return logits + torch.where(logits[:, :1] > {beyond}, float("inf"), 0.0)

def plain():
    return Net(nn.Identity())

def softmax():
    return Net(nn.Softmax(1))

def overflow():
    return Net(Overflow())

def both():
    class Answers(nn.Module):
        def forward(self, logits):
            return logits, logits
    return Net(Answers())

def half():
    return Net(nn.Identity()).half()

def halves():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(2, 2)
        def forward(self, logits):
            return self.last(logits.half()).float()
    return Net(Halves()).half()

def script():
    return torch.jit.script(Net(nn.Identity()))

def leaves():
    raise SystemExit("cannot go on")

def leaves_later():
    class Leaves(nn.Module):
        def forward(self, logits):
            raise SystemExit(3)
    return Net(Leaves())

class Stop(BaseException):
    pass

def stops_to_build():
    raise Stop("no more")

def stops(first=0):
    class Stops(nn.Module):
        seen = 0
        def forward(self, logits):
            self.seen += 1
            if self.seen > first:
                raise Stop("no more\\nof this")
            return logits
    return Net(Stops())

def stops_later():
    return stops(6)

class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, logits):
        raise self.error

def interrupts():
    return Net(Raises(KeyboardInterrupt()))

def is_ended():
    from prefect.exceptions import TerminationSignal
    return Net(Raises(TerminationSignal(15)))
'''


def job(folder: Path, network: str, beyond: float = 1e9, **changes: Any) -> dict[str, Any]:
    """A tiny job on one of the networks above."""
    file = folder / "networks.py"
    file.write_text(NETWORK.replace("{beyond}", str(beyond)))
    model = {"source": f"{file}:{network}", "layer": "features"} | changes.pop("model", {})
    return tiny_job(folder / "run", model=model, controls=False) | changes


def test_what_the_probes_saw_stands_in_run_json_and_not_in_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(job(tmp_path, "plain"))
    written = json.loads((run.root / "run.json").read_text())
    assert list(written["probes"]) == list(PROBES)
    assert written["probes"]["finite"] == "logits of 4 of 4 inputs are finite"
    assert "probes" not in written["identity"]
    monkeypatch.setattr("flows.prepare.probe", lambda _, **__: {"finite": "another machine's"})
    again = prepared(job(tmp_path, "plain"))  # the same run, and what was written stays
    assert json.loads((again.root / "run.json").read_text()) == written


def test_a_refused_network_is_one_line_and_exit_code_2_and_leaves_no_run(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["run", str(toml(job(tmp_path, "softmax"), tmp_path / "job.toml"))])
    assert refused.exit_code == 2
    assert "model.output" in refused.output
    assert 'set output = "probabilities"' in " ".join(refused.output.split())
    assert not (tmp_path / "run" / "run.json").exists()


def test_with_the_key_the_predictions_are_those_of_the_logits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    changes: dict[str, Any] = {"dataset": {"kind": "digits", "limit": 8}}
    plain = explained(prepared(job(tmp_path / "a", "plain", **changes)))
    key = {"model": {"output": "probabilities"}}
    read_back = explained(prepared(job(tmp_path / "b", "softmax", **changes, **key)))
    for one, other in zip(read_samples(plain.root), read_samples(read_back.root), strict=True):
        assert one["prediction"] == other["prediction"]
        assert other["confidence"] == pytest.approx(one["confidence"], rel=1e-6)


def test_a_network_in_half_precision_is_explained_in_float32_and_that_is_said(tmp_path: Path) -> None:
    run = explained(prepared(job(tmp_path, "half", dataset={"kind": "digits", "limit": 8})))
    taken = json.loads((run.root / "run.json").read_text())["weights"]
    assert taken == {"key": None, "others": [], "cast": {"float16": 4}, "in_order": False}
    assert _taken(taken) == "4 tensors were cast from float16"
    (tmp_path / "plain").mkdir()
    plain = explained(prepared(job(tmp_path / "plain", "plain", dataset={"kind": "digits", "limit": 8})))
    for one, other in zip(read_samples(run.root), read_samples(plain.root), strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-3)


REFUSED = {
    "both": r"model\.returns: .* a tuple of 0 \(2, 2\), 1 \(2, 2\); say which .*, such as returns = 0$",
    "halves": r"model\.source: .* does not run in float32, which its weights became, on inputs of .*: ",
    "script": r"model\.layer: the network is a program \(TorchScript or torch\.export\), which cannot be cut",
    "leaves": r"model\.source: .*leaves raised SystemExit: cannot go on",
    "leaves_later": r"model\.source: the network does not run on .*: SystemExit: 3",
    "stops_to_build": r"model\.source: .*ended the check of the job: Stop: no more$",
    "stops": r"model\.source: .*ended the check of the job: Stop: no more$",
    "stops_later": r"model\.source: .*ended the check of the job: Stop: no more$",
}


@pytest.mark.parametrize("network", REFUSED)
def test_what_is_no_classifier_is_refused_in_one_line_with_the_models_key(
    network: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=rf"^{REFUSED[network]}") as refused:
        prepared(job(tmp_path, network))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("network", "kind"), [("interrupts", KeyboardInterrupt), ("is_ended", TerminationSignal)]
)
def test_what_stops_a_flow_is_no_fault_of_the_network(
    network: str, kind: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(kind):
        prepared(job(tmp_path, network))


@pytest.mark.parametrize(
    ("key", "value"), [("mean", float("nan")), ("mean", float("inf")), ("std", 1e-300), ("std", float("nan"))]
)
def test_a_mean_or_deviation_that_gives_no_numbers_is_refused(key: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"model\.{key}"):
        prepared(job(tmp_path, "plain", model={key: [value, 0.5, 0.5]}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_whose_logits_are_infinite_fail_alone(precision: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"dataset": {"kind": "digits", "limit": 12}}
    changes["explainers"] = [{"name": "gradcam"}, {"name": "random"}]
    first = explained(prepared(job(tmp_path, "plain", **changes)))
    means = read(first.inputs, 0, 12).mean((1, 2, 3)) / 255
    ordered = np.sort(means)
    gap = int(np.argmax(np.diff(ordered)[4:9])) + 4
    beyond = float(ordered[gap : gap + 2].mean())
    (tmp_path / "other").mkdir()
    computing = {"compute": {"precision": precision}}
    run = explained(prepared(job(tmp_path / "other", "overflow", beyond, **changes, **computing)))
    samples = read_samples(run.root)
    failed = means > ordered[gap]
    assert 0 < failed.sum() < 12
    assert [sample["status"] == "failed" for sample in samples] == failed.tolist()
    assert [sample["prediction"] is None for sample in samples] == failed.tolist()
    assert {sample["error"] for sample in samples if sample["error"]} == {
        "its logits are infinite or NaN; the network gives no prediction for it"
    }
    for name in ("gradcam", "random"):
        maps = read(run.saliency(name) / "maps", 0, 12)
        assert np.isnan(maps).all((1, 2)).tolist() == failed.tolist()
