"""Names of classes against the model's: by synset, by name, by number, or a reason."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.models.class_matching import close_names, match, normal
from explainers.models.class_names import ClassName, class_names
from explainers.models.model_spec import ModelSpec

IMAGENET = class_names(ModelSpec(source="torchvision", name="mobilenet_v2", weights="none"), 1000)
PETS = (ClassName("dog"), ClassName("cat"), ClassName("guinea pig", ("cavy",)), ClassName("a cat, asleep"))


@pytest.mark.parametrize(
    ("names", "indices", "how"),
    [
        (["n01440764", "n02099601", "n02123045", "n03445777"], [0, 207, 281, 574], "synset"),
        (["n01440764_tench", "N02123045-tabby", "n03445777 golf ball"], [0, 281, 574], "synset"),
        (["tench", "Golf_Ball", "golden-retriever", "tabby  cat"], [0, 574, 207, 281], "name"),
        (["Tinca tinca", "tench, Tinca tinca"], [0, 0], "name"),
        (["tabby", "n01440764"], [281, 0], "synset and name"),
        # Two cranes and two maillots are told apart by their other names only.
        (["crane bird", "maillot, tank suit", "n03126707"], [134, 639, 517], "synset and name"),
        (["10", "2", "007"], [10, 2, 7], "number"),
    ],
)
def test_names_of_imagenet(names: list[str], indices: list[int], how: str) -> None:
    found = match(names, IMAGENET, 1000)
    assert (found.indices, found.reasons, found.how) == (dict(enumerate(indices)), {}, how)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("crane", "'crane' may be several of the model's classes: 134 (n02012849), 517 (n03126707)"),
        ("Maillot", "'Maillot' may be several of the model's classes: 638 (n03710637), 639 (n03710721)"),
        ("cardigan", "'cardigan' may be several of the model's classes: 264 (n02113186), 474 (n02963159)"),
        ("n00000001", "'n00000001' is none of the model's classes"),
        ("tench, tabby", "'tench, tabby' may be several of the model's classes: 0 (n01440764), 281"),
        ("0001_cat", "'0001_cat' is none of the model's classes"),
        ("½", "'½' is none of the model's classes"),
        ("", "'' is none of the model's classes"),
    ],
)
def test_a_name_of_no_class_or_of_several_has_a_reason(name: str, told: str) -> None:
    found = match(["tench", name], IMAGENET, 1000)
    assert found.indices == {0: 0}
    assert list(found.reasons) == [1]
    assert found.reasons[1].startswith(told)


def test_the_prompts_of_a_clip_model_are_whole_names() -> None:
    found = match(["cat", "dog", "Cavy", "a cat, asleep"], PETS, 4)
    assert (found.indices, found.reasons) == ({0: 1, 1: 0, 2: 2, 3: 3}, {})


def test_without_the_models_synsets_the_name_behind_a_synset_counts() -> None:
    assert match(["n02084071-dog", "n02084071"], PETS, 4).indices == {0: 0}


def test_numbers_are_numbers_only_where_no_class_is_named_by_one() -> None:
    digits = [ClassName(str(number)) for number in (3, 1, 2)]
    assert match(["1", "2", "3"], digits, 3).indices == {0: 1, 1: 2, 2: 0}
    partly = match(["0", "1"], digits, 3)
    assert (partly.indices, partly.reasons) == ({1: 1}, {0: "'0' is none of the model's classes"})
    assert match(["0", "2", "1"], PETS, 4).indices == {0: 0, 1: 2, 2: 1}
    assert match(["0", "2"], None, 3).indices == {0: 0, 1: 2}
    assert match(["0", "x"], None, 3).indices == {}
    assert match(["٣", "1"], None, 9).indices == {}


def test_a_number_beyond_the_classes_and_a_number_twice_have_reasons() -> None:
    found = match(["1", "01", "3"], None, 3)
    assert found.indices == {0: 1}
    assert found.reasons == {
        1: "'01' and '1' are the same number",
        2: "'3' is no number of the model's classes, 0 to 2",
    }


def test_close_names_are_spelled_alike() -> None:
    assert IMAGENET is not None
    assert close_names("golden retreiver", IMAGENET)[0] == "golden retriever"
    assert close_names("xyzzy", IMAGENET) == []


words = st.sampled_from(["red", "Fox", "grey wolf", "Grey-Wolf", "n01440764", "n01443537", "7", "crane", "ß"])
classes = st.builds(
    ClassName,
    words,
    st.lists(words, max_size=2).map(tuple),
    st.none() | st.sampled_from(["n01440764", "n01443537"]),
)


@given(st.lists(words, min_size=1, max_size=4), st.lists(classes, min_size=1, max_size=4))
def test_every_name_stands_for_its_only_class_or_has_a_reason(
    names: list[str], known: list[ClassName]
) -> None:
    """Against a search through all pairs, which knows nothing of how names are looked up."""
    found = match(names, known, len(known))
    assert found.indices.keys() | found.reasons.keys() == set(range(len(names)))
    assert not found.indices.keys() & found.reasons.keys()
    with_synsets = any(one.synset for one in known)
    holders = {}
    for (position, name), (number, one) in product(enumerate(names), enumerate(known)):
        same = normal(name) in {normal(each) for each in (one.name, *one.synonyms)}
        if name.startswith("n0") and with_synsets:
            same = one.synset == name
        holders.setdefault(position, set()).update({number} if same else ())
    if found.how == "number":
        assert not any(holders.values())
        assert found.indices == ({0: 7} if len(known) > 7 else {})
    else:
        only = {position: next(iter(held)) for position, held in holders.items() if len(held) == 1}
        assert found.indices == only


LATIN = st.text(st.characters(max_codepoint=0xFF), max_size=20)  # a dotless i has no case of its own


@given(LATIN, LATIN)
def test_case_blanks_underscores_and_hyphens_do_not_matter(one: str, other: str) -> None:
    assert normal(f"{one} {other}") == normal(f" {one}_-{other}\t".swapcase())


@given(st.text(max_size=20))
def test_a_normal_name_stays_as_it_is(name: str) -> None:
    assert normal(normal(name)) == normal(name)
