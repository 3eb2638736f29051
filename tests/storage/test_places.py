"""Places as text: the same as pathlib's, for any name."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from storage.datasets.folders import suffix_of
from storage.places import addresses

NAMES = st.text(st.sampled_from("a.Z/-_ é~#?\\:\n"), max_size=9)
ROOTS = st.sampled_from([".", "/", "/data/a b", "here", "../x"])


@given(ROOTS, st.lists(NAMES, max_size=4))
def test_addresses_are_the_paths_as_text(root: str, names: list[str]) -> None:
    assert addresses(Path(root), names) == [str(Path(root) / name) for name in names]


@given(NAMES.filter(lambda name: name and "//" not in name and "/./" not in name and name[-1] != "/"))
def test_suffixes_are_those_of_paths(name: str) -> None:
    if not name.endswith("/.") and name != ".":
        assert suffix_of(name) == Path(name).suffix.lower()
