"""What a report tells of the paths of the machine that made it."""

from __future__ import annotations

import pytest

from tasks.page.told_paths import common_folder, from_folder, without_home


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/anna/data/a.jpg", "~/data/a.jpg"),
        ("cannot read '/Users/anna b/x'", "cannot read '/Users/anna b/x'"),
        ("cannot read '/Users/anna/x': no file", "cannot read '~/x': no file"),
        ("/root/net.py:make", "~/net.py:make"),
        ("file:/home/anna", "file:~"),
        ("sqlite:////home/anna/x.db", "sqlite:///~/x.db"),
        ("/data/home/anna/x", "/data/home/anna/x"),
        ("s3://bucket/home/anna/x", "s3://bucket/home/anna/x"),
        ("/rooted/x", "/rooted/x"),
    ],
)
def test_a_home_folder_is_written_as_a_tilde(text: str, told: str) -> None:
    assert without_home(text) == told


def test_paths_are_told_from_the_folder_that_holds_the_run_and_what_it_read() -> None:
    job = {
        "store": "/home/anna/project/runs/a",
        "dataset": {"path": "/home/anna/project/data", "limit": 3},
        "model": {"source": "/home/anna/project/net.py:make", "weights": "/srv/weights/net.pt"},
        "explainers": [{"name": "ptame", "weights": "/home/anna/heads/h.pt"}],
    }
    assert common_folder(job) == "/home/anna/project"
    assert from_folder(job, common_folder(job)) == {
        "store": "runs/a",
        "dataset": {"path": "data", "limit": 3},
        "model": {"source": "net.py:make", "weights": "/srv/weights/net.pt"},
        "explainers": [{"name": "ptame", "weights": "~/heads/h.pt"}],
    }


@pytest.mark.parametrize(
    ("job", "folder"),
    [
        ({"store": "/srv/runs/a", "model": {"source": "timm"}}, "/srv/runs"),
        ({"store": "/srv/runs/a", "dataset": {"path": "/data/images"}}, "/srv/runs"),
        ({"store": "/tmp/a"}, None),
        ({"store": "s3://bucket/a", "dataset": {"path": "/data/images/of/anna"}}, None),
        ({}, None),
    ],
)
def test_what_lies_elsewhere_does_not_count(job: dict[str, object], folder: str | None) -> None:
    assert common_folder(job) == folder
