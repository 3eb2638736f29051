"""Objects at an address of a module or of a file."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from plugins.addresses import import_address, import_callable

CODE = """
from dataclasses import dataclass

@dataclass
class Made:
    number: int = {number}
"""


def written(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return f"{path}:Made"


def test_an_object_of_a_module_and_of_a_file_is_found(tmp_path: Path) -> None:
    assert import_address("pathlib:Path", "thing") is Path
    assert import_callable("pathlib:Path") is Path
    assert import_callable(written(tmp_path / "own.py", CODE.format(number=3)))().number == 3


def test_two_files_of_one_name_are_two_modules_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    one = written(tmp_path / "a/own.py", CODE.format(number=1))
    other = written(tmp_path / "b/own.py", CODE.format(number=2))
    first, second = import_callable(one), import_callable(other)
    assert (first().number, second().number) == (1, 2)
    assert pickle.loads(pickle.dumps(second(5))) == second(5)
    written(tmp_path / "a/own.py", CODE.format(number=77))
    assert import_callable(one)().number == 77


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit('bye')", "bye"),
        ("made = 1", "has no attribute 'Made'"),
        ("def", "invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    before = set(sys.modules)
    address = written(tmp_path / "own.py", text)
    with pytest.raises(ValueError, match=rf"^cannot load '{address}': .*{told}") as refused:
        import_callable(address)
    assert "\n" not in str(refused.value)
    left = {name for name in set(sys.modules) - before if name.startswith("floodlit_file")}
    assert bool(left) == (text == "made = 1")  # a module that failed is not left behind


@pytest.mark.parametrize("address", [".own:Made", "nowhere:Made", "pathlib:Nothing", ":Made"])
def test_an_address_that_leads_nowhere_is_told(address: str) -> None:
    with pytest.raises(ValueError, match=f"^cannot load thing '{address}': "):
        import_address(address, "thing")
