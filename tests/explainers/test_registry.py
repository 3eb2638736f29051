"""Finding plug-ins by name, and refusing what cannot be found."""

from __future__ import annotations

from typing import Any

import pytest

from explainers import registry
from explainers.gradcam import GradCam
from explainers.registry import Registry, explainers


def empty(group: str = "floodlit.nothing") -> Registry[Any]:
    """A registry over a package that registers nothing in it."""
    return Registry("method", "explainers", group)


def named(name: str) -> Any:
    return type(f"Class{name.title()}", (), {"name": name})


def test_the_methods_of_this_package_are_found_without_being_imported() -> None:
    names = explainers.names()
    assert {"ddcam", "gradcam", "random", "center_gaussian", "sobel", "all_ones"} <= set(names)
    assert names == sorted(names)
    assert explainers.get("gradcam") is GradCam


def test_a_second_class_of_the_same_name_is_refused_and_both_are_named() -> None:
    methods = empty()
    methods.register(named("one"))
    other = type("Other", (), {"name": "one"})
    with pytest.raises(ValueError, match=r"two methods are called 'one'.*ClassOne.*Other; rename one"):
        methods.register(other)
    assert methods.get("one").__name__ == "ClassOne"


def test_the_same_class_may_register_again() -> None:
    methods = empty()
    cls = named("one")
    assert methods.register(cls) is cls
    assert methods.register(cls) is cls


def test_an_unknown_name_lists_the_choices() -> None:
    methods = empty()
    methods.register(named("beta"))
    methods.register(named("alpha"))
    with pytest.raises(ValueError, match="unknown method 'gamma'; choose from alpha, beta"):
        methods.get("gamma")


def test_an_address_names_a_class_that_is_not_registered() -> None:
    assert empty().get("explainers.gradcam:GradCam") is GradCam


@pytest.mark.parametrize(
    "address", ["no_such_module:Name", "explainers.gradcam:NoSuchName", "explainers.gradcam:"]
)
def test_a_wrong_address_is_one_line_that_repeats_it(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot load method '{address}': [^\n]*$"):
        empty().get(address)


def test_third_parties_register_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> Any:
            return named("foreign")

    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda *, group: asked.append(group) or [Point()])
    methods = empty("floodlit.methods")
    assert methods.names() == ["foreign"]
    assert methods.get("foreign").__name__ == "ClassForeign"
    assert asked == ["floodlit.methods"]
