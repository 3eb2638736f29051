"""The kinds of datasets: their keys, what a run records of them, and a kind of another distribution."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from prefect.utilities.schema_tools.validation import is_valid
from pydantic import ValidationError

from distributions import install
from flows.job import Job
from places import ROOT
from runs import tiny_job
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec, kinds
from storage.files import sha256_of_json
from storage.places import Place

# A table, and the hash of what runs recorded of it when all kinds shared one table.
RECORDED = [
    (
        {"kind": "folder", "path": "/data/photos", "exif": "ignore", "background": "black"}
        | {"range": [0, 4095], "depth": 16, "limit": 10, "numbering": "model"},
        "c73e02755316af37b9bcdefd6f0043260df775d2aa0b220ca834701d9c97b279",
    ),
    (
        {"kind": "csv", "path": "/data/list.csv", "images": "/data/images", "boxes": "relative"}
        | {"mask_values": [1, 2], "mask_ignore": [255]},
        "5be718bad09252106aa983acc65a6171b8d6f5b1de8b70deb0509a466743a2f5",
    ),
    (
        {"kind": "torchvision", "path": "/data/sets", "name": "CIFAR10", "split": "test"},
        "824965445776f73a9a9f96802349509e33e92332afdd31d403edda6418aae592",
    ),
    ({"kind": "digits"}, "88df78afb98199df8677305b21fbea4557078d8cf9deff68c51fa4b923e3292a"),
    (
        {"kind": "digits", "split": "train", "seed": 3, "limit": 64},
        "9516fb6896012b1d33d14ce54abe38073d268a749335532dc5936876bb4ecb46",
    ),
    (
        {"kind": "text", "path": "/data/reviews.csv", "column": "review"},
        "3b74a246bfd52bebf69cd0e6d08ab687871c2b3c25293e5770bdfc71ad9638c9",
    ),
    (
        {"kind": "tensors", "path": "/data/rows.npz", "limit": 5},
        "177961fc38199a0580a516251ae8795e6e5018e625ff1c0fdee6d12c060b9868",
    ),
]


@pytest.mark.parametrize(("table", "recorded"), RECORDED, ids=[str(table) for table, _ in RECORDED])
def test_what_a_run_is_has_the_hash_that_it_had(table: dict[str, Any], recorded: str) -> None:
    told = DatasetSpec.model_validate(table).model_dump(mode="json")
    assert sha256_of_json(told) == recorded
    assert DatasetSpec.model_validate(told) == DatasetSpec.model_validate(table)


# A kind, a path, and the fingerprint that runs recorded of this dataset then.
FINGERPRINTS = [
    ("folder", "images", "afe7a3dee2f92878acc0d32db005583067f8fff1abd602f57762bceaf69c17c4"),
    ("csv", "boxes.csv", "4d2dc9937fbf6b2ca2ce92f38559ae8ae2d79aa24cdba0689fb6a69f12442e8e"),
    ("csv", "masks.csv", "a7cb658b19273a722c9b8543146562d0aaa2733ea601ed8c3dfd3749c74b8300"),
    ("csv", "labels.csv", "68722af875e2e3ab1ca34227098521d735992ca9e4bbb4facf7e0c57fc827ae9"),
    ("text", "texts.csv", "515a5b7d2e4be40343d557a9da2f10ffa1455dc6d2e5f1914f221f5b11070ff4"),
    ("tensors", "rows.csv", "19e7bf067e5674fc5a04579a6726b56f0d5f3cdc6af1d63afade89457f486d89"),
]


@pytest.mark.parametrize(("kind", "path", "recorded"), FINGERPRINTS)
def test_a_dataset_has_the_fingerprint_that_it_had(
    kind: str, path: str, recorded: str, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for size, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png"), 1):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"x" * size)
    (tmp_path / "a-mask.png").write_bytes(b"xxxx")
    for name, text in {
        "boxes": "file,label,xmin,ymin,xmax,ymax\ncat/a.png,3,1,2,30,40\ndog/c.png,4,0,0,9,9\n",
        "masks": "file,label,mask\ncat/a.png,cat,../a-mask.png\ndog/c.png,dog,\n",
        "labels": "file,labels\ncat/a.png,1;2\ndog/c.png,\n",
        "texts": "text,label\ngood,1\nbad,0\n",
        "rows": "a,b,label\n1,2.5,0\n3,-1,1\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    given = {"images": images} if kind == "csv" else {}
    spec = DatasetSpec.model_validate({"kind": kind, "path": tmp_path / path, **given})
    assert open_dataset(spec).fingerprint == recorded


@pytest.mark.parametrize("key", ["boxes", "a" * 1000])
def test_a_key_of_another_kind_is_refused_and_the_own_ones_are_told(key: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DatasetSpec.model_validate({"kind": "text", "path": "a.csv", key: "pixels"})
    (told,) = refused.value.errors()
    takes = "path, column, limit, numbering"
    assert told["msg"] == f'Value error, kind = "text" does not take the key {key[:100]}; it takes {takes}'


@pytest.mark.parametrize("kind", ["csv", "folder", "parquet"])
def test_a_path_with_a_nul_is_refused_under_its_key(kind: str) -> None:
    with pytest.raises(ValidationError, match="holds a NUL character") as refused:
        DatasetSpec.model_validate({"kind": kind, "path": "a\0b"})
    assert refused.value.errors()[0]["loc"] == ("path",)


@pytest.mark.parametrize("table", [None, 3, "csv", ["csv"], {}, {"kind": None}, {"kind": ["csv"]}])
def test_a_table_without_a_kind_is_refused(table: Any) -> None:
    with pytest.raises(
        ValidationError, match=r"must be a table with the key kind|choose from coco, csv, dicom"
    ):
        DatasetSpec.model_validate(table)


def test_the_form_has_the_keys_of_each_kind_alone() -> None:
    schema = Job.model_json_schema()
    choices = (each["$ref"].rpartition("/")[2] for each in schema["properties"]["dataset"]["anyOf"])
    known = {table["title"]: table for table in (schema["$defs"][name] for name in choices)}
    assert list(known) == kinds.names()
    shared = ["limit", "numbering"]
    assert list(known["text"]["properties"]) == ["kind", "path", "column", *shared]
    assert list(known["digits"]["properties"]) == ["kind", "split", "seed", *shared]
    of_files = ["exif", "background", "range", "depth", *shared]
    assert list(known["folder"]["properties"]) == ["kind", "path", *of_files]
    assert known["folder"]["required"] == ["kind", "path"]
    for table, right in (
        ({"kind": "text", "path": "a.csv", "column": "review"}, True),
        ({"kind": "tensors", "path": "a.csv", "column": "review"}, False),
        ({"path": "a.csv"}, False),
    ):
        assert is_valid({"dataset": table}, {**schema, "required": ["dataset"]}) is right


def test_every_path_of_a_kind_starts_at_the_folder_of_the_job(tmp_path: Path) -> None:
    class Several(DatasetSpec):
        kind: Literal["several"] = "several"
        one: Place
        many: tuple[Place, ...]
        none: Place | None = None

    found = Several(one=Path("a"), many=(Path("b"), Path("/c"))).with_paths(lambda path: tmp_path / path)
    assert (found.one, found.many, found.none) == (tmp_path / "a", (tmp_path / "b", Path("/c")), None)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an installed distribution of one module with a kind of dataset."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(kinds, "_classes", dict(kinds._classes))
    monkeypatch.setattr(kinds, "_complete", False)

    def installed(module: str, text: str, entry: str) -> Path:
        install(folder, module, text, "floodlit.datasets", entry)
        return folder

    return installed


def test_the_kind_of_the_documentation_is_one_file_and_no_edit_elsewhere(
    distribution: Any, tmp_path: Path
) -> None:
    page = (ROOT / "docs/development.md").read_text()
    (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    site = distribution("prefixed_kind", text, "prefixed = prefixed_kind:Prefixed")
    (tmp_path / "pets").mkdir()
    for place, name in enumerate(("dog.1.png", "cat.1.png", "cat.2.png", "notes.txt")):
        Image.new("RGB", (4, 3), (place, 0, 0)).save(tmp_path / "pets" / name, format="png")
    table = {"kind": "prefixed", "path": "pets", "limit": 2, "background": "black"}
    job = Job.model_validate(tiny_job(tmp_path / "run", dataset=table), context={"folder": tmp_path})
    recorded = job.identity()["dataset"]
    assert recorded == {**table, "path": str(tmp_path / "pets")}
    # A worker gets the recorded table, and has imported nothing of the kind.
    program = (
        "import json, sys\n"
        "from storage.datasets.opening import open_dataset\n"
        "from storage.datasets.spec import DatasetSpec\n"
        "opened = open_dataset(DatasetSpec.model_validate(json.loads(sys.argv[1])))\n"
        "rows = [[s.sample_id, s.label] for s in opened.samples]\n"
        "print(json.dumps([*rows, opened.classes, dict(opened.left_out)]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    command = [sys.executable, "-P", "-c", program, json.dumps(recorded)]
    told = subprocess.check_output(command, env=environment)
    assert json.loads(told) == [["cat.1.png", 0], ["cat.2.png", 0], ["cat", "dog"], {"*.txt": 1}]
    assert "Prefixed" in Job.model_json_schema()["$defs"]
    opened = open_dataset(job.dataset)
    assert opened.load(1).getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module", r"cannot load the dataset kind plug-in 'own'.*no_such_module"),
        ("class Own: pass", r"cannot use the .*: Own is not a subclass of storage.datasets.spec.DatasetSpec"),
        (
            "from storage.datasets.spec import DatasetSpec\nclass Own(DatasetSpec): pass",
            r'Own has no name; write its key as kind: Literal\["NAME"\]',
        ),
        (
            "from typing import Literal\nfrom storage.datasets.spec import DatasetSpec\n"
            "class Own(DatasetSpec):\n    kind: Literal['own']",
            "Own has no method open",
        ),
        (
            "from typing import Literal\nfrom storage.datasets.spec import DatasetSpec\n"
            "class Own(DatasetSpec):\n    kind: Literal['csv']\n    def open(self, bands): ...",
            "two dataset kinds are called 'csv'",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_told_and_the_form_goes_without(
    distribution: Any, text: str, told: str
) -> None:
    distribution("own_kind", text, "own = own_kind:Own")
    sys.modules.pop("own_kind", None)
    with pytest.raises(ValueError, match=told):
        kinds.names()
    with pytest.raises(ValidationError, match=told):
        DatasetSpec.model_validate({"kind": "own"})
    assert DatasetSpec.model_validate({"kind": "digits"}).kind == "digits"
    assert "CsvListing" in Job.model_json_schema()["$defs"]


def test_a_job_imports_its_own_kind_and_none_of_the_libraries_of_others() -> None:
    program = (
        "import sys\n"
        "from storage.datasets.spec import DatasetSpec\n"
        "DatasetSpec.model_validate({'kind': 'csv', 'path': 'a.csv'})\n"
        "ours = {name for name in sys.modules if name.startswith('storage.datasets.kinds.')}\n"
        "print(sorted(ours | {'torch', 'torchvision', 'sklearn', 'prefect'} & sys.modules.keys()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.check_output([sys.executable, "-P", "-c", program], text=True, env=environment)
    assert told.strip() == "['storage.datasets.kinds.csv_listing']"
