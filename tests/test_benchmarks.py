"""Benchmarks begin as their documentation says; that of the GPU path runs where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT, program


@pytest.mark.parametrize("name", ["soak", "scaling"])
def test_those_of_whole_jobs_find_the_project_and_each_other(name: str) -> None:
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert f"python benchmarks/{name}.py" in told.stdout


def test_the_benchmark_of_the_gpu_path_runs_on_two_small_images(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--count 2 --size 64 --batch 1 --rounds 1 --explainers gradcam occlusion"
    program("benchmarks/gpu.py").main(f"--networks torchvision/resnet18 {sizes} --ways bfloat16".split())
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    told = {
        (name.strip(), way.strip()): [float(rate), float(gain), rank.strip()]
        for name, way, rate, gain, _, rank in rows
    }
    assert set(told) == {
        (name, way) for name in ("(network alone)", "gradcam", "occlusion") for way in ("float32", "bfloat16")
    }
    for (_, way), (rate, gain, rank) in told.items():
        assert rate > 0
        assert gain == 1 if way == "float32" else gain > 0
        assert rank == "1.0000" if way == "float32" else 0.5 < float(rank) <= 1


def test_the_benchmark_of_reading_compares_equal_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    program("benchmarks/reading.py").main(["--rounds", "1", "--least", "1", "--threads", "2"])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("32 images, 2 threads, 1 rounds")
    assert [line.split()[0] for line in told if line.split()[1:]][2:5] == ["plain", "stage", "ratio"]
    assert min(float(number) for number in told[4].split()[1:]) > 0
    assert [line.split()[0] for line in told[-3:]] == ["Pillow", "torchvision.io", "OpenCV"]
    assert told[-3].endswith("0.0000      0       0.0000      0")


def test_the_benchmark_of_the_browser_runs_on_a_few_images(capsys: pytest.CaptureFixture[str]) -> None:
    program("benchmarks/browser.py").main(["--rows", "20", "--explainers", "2", "--requests", "8"])
    told = capsys.readouterr().out.splitlines()
    kinds = {line.split()[0]: [float(number) for number in line.split()[1:]] for line in told[-4:]}
    assert {kind: numbers[0] for kind, numbers in kinds.items()} == {
        "search": 4,
        "sample": 2,
        "picture": 2,
        "all": 8,
    }
    assert all(0 < median <= high < 60_000 for _, median, high in kinds.values())


def test_the_benchmark_of_findings_looks_at_all_classes(capsys: pytest.CaptureFixture[str]) -> None:
    program("benchmarks/findings_scale.py").main(["--images", "200", "--classes", "5", "--grid", "7"])
    told = capsys.readouterr().out.splitlines()
    assert int(told[0].split()[0]) >= 1  # the bright place of class 0
    assert told[1].startswith("200 maps in 5 classes: ")


def test_the_benchmark_of_the_report_says_how_large_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    program("benchmarks/page.py").main(["--rows", "20", "--explainers", "2"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "20 inputs, 2 explainers"
    rows = {line.split()[0]: [float(number) for number in line.split()[1:]] for line in told[2:]}
    assert rows["limit"] == [5.0, 10.0]
    for seconds, busy, size in (rows["first"], rows["again"]):
        assert 0 < busy < 60
        assert 0 < seconds < 60
        assert 0.1 < size < 2


def test_the_benchmark_of_a_million_images_runs_on_a_few(capsys: pytest.CaptureFixture[str]) -> None:
    million = program("benchmarks/million.py")
    million.main(["--rows", "50", "--shard", "16"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "50 images in shards of 16"
    assert [line[:28].strip() for line in told[2:]] == list(million.steps(Path(), 50, 16))
    for line in told[2:]:
        seconds, busy, peak = map(float, line[28:].split())
        assert 0 <= seconds < 60
        assert 0 <= busy < 60
        assert 50 < peak < 1000


def test_the_benchmark_of_a_gpus_agreement_says_that_there_is_none() -> None:
    command = [sys.executable, "benchmarks/gpu_agreement.py"]
    unseen = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(command, cwd=ROOT, env=unseen, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (1, "PyTorch sees no GPU here\n")
