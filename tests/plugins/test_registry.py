"""Finding plug-ins by name, and refusing what cannot be found or used."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributions import install
from explainers.base import Parameters
from explainers.gradcam import GradCam
from explainers.registry import MethodRegistry, explainers
from places import ROOT
from tasks.metrics.registry import metrics

GROUP = "floodlit.methods"
# A module with a class that has all that an explainer has.
MODULE = """
from explainers.base import Parameters

class Foreign:
    name = {name!r}
    title = "foreign"
    needs = frozenset()
    Parameters = Parameters

    def describe(self): ...

    def explain(self, batch): ...
"""
Distribution = Callable[..., None]


def empty(group: str = "floodlit.nothing") -> MethodRegistry[Any]:
    """A registry over a package whose modules register nothing in it."""
    return MethodRegistry("method", "explainers", group, methods=("describe", "explain"))


def named(name: str, **attributes: Any) -> Any:
    return type(f"Class{name.title()}", (), {"name": name} | attributes)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Makes an installed distribution of one module, with one entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))

    return lambda module, text, entry: install(tmp_path, module, text, GROUP, entry)


def test_the_methods_of_this_package_are_found_without_being_imported() -> None:
    names = explainers.names()
    assert {"ddcam", "gradcam", "random", "center_gaussian", "sobel", "all_ones"} <= set(names)
    assert names == sorted(names)
    assert explainers.get("gradcam") is GradCam


@pytest.mark.parametrize("registry", [explainers, metrics], ids=["explainers", "metrics"])
def test_every_name_is_found_in_the_text_of_one_module(
    registry: MethodRegistry[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is not would cost the import of every method."""
    names, imported = registry.names(), []
    wanted = {name: registry.get(name).__module__ for name in names}
    load = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.append(name) or load(name))
    for name in names:
        imported.clear()
        registry._load_module_of(name)
        assert imported == [registry.package, wanted[name]]


def test_one_explainer_is_imported_without_the_libraries_of_the_others() -> None:
    program = (
        "import sys\n"
        "from explainers.registry import explainers\n"
        "explainers.get('ddcam')\n"
        "heavy = {'captum', 'skimage', 'matplotlib', 'explainers.pami', 'explainers.rise'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT)
    assert told.strip() == "[]"


def test_a_second_class_of_the_same_name_is_refused_and_both_are_named() -> None:
    methods = empty()
    methods.register(named("one"))
    other = type("Other", (), {"name": "one"})
    with pytest.raises(ValueError, match=r"two methods are called 'one'.*ClassOne.*Other; rename one"):
        methods.register(other)
    assert methods.get("one").__name__ == "ClassOne"


def test_a_plug_in_with_the_name_of_another_class_is_refused_when_everything_is_loaded(
    distribution: Distribution,
) -> None:
    distribution("second_one", MODULE.format(name="one"), "one = second_one:Foreign")
    methods = empty(GROUP)
    methods.register(named("one"))
    assert methods.get("one").__name__ == "ClassOne"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"two methods are called 'one'.*ClassOne.*second_one.Foreign"):
            methods.names()


def test_a_plug_in_never_takes_the_place_of_a_class_of_the_package(tmp_path: Path) -> None:
    text = MODULE.format(name="gradcam")
    install(tmp_path, "taker", text, "floodlit.explainers", "other = taker:Foreign")
    program = (
        "from explainers.registry import explainers\n"
        "try:\n"
        "    explainers.get('other')\n"
        "except ValueError as error:\n"
        "    print('two explainers are called' in str(error))\n"
        "print(explainers.get('gradcam').__module__)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    told = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT, env=environment)
    assert told.split() == ["True", "explainers.gradcam"]


def test_the_same_class_may_register_again() -> None:
    methods = empty()
    cls = named("one")
    assert methods.register(cls) is cls
    assert methods.register(cls) is cls


def test_an_unknown_name_lists_the_choices() -> None:
    methods = empty()
    methods.register(named("beta"))
    methods.register(named("alpha"))
    with pytest.raises(ValueError, match=r"^unknown method 'gamma'; choose from alpha, beta$"):
        methods.get("gamma")


@pytest.mark.parametrize(
    ("wrong", "close"),
    [
        ("gradcm", "close are gradcam, .*"),
        ("Grad-CAM", "close are gradcam, .*"),
        ("shap", "close are shapley, .*kernel_shap.*"),
        ("integrated", "close are integrated_gradients"),
    ],
)
def test_an_unknown_name_lists_the_close_ones_where_there_are_some(wrong: str, close: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown explainer '{wrong}'; {close}$"):
        explainers.get(wrong)


def test_parameters_are_checked_in_one_line() -> None:
    assert metrics.parameters("insertion", {"steps": 4}).steps == 4
    with pytest.raises(ValueError, match=r"^metric insertion has no parameter 'step'; close are steps$"):
        metrics.parameters("insertion", {"step": 4})
    with pytest.raises(ValueError, match=r"^metric insertion has no parameter 'q'; it takes: steps, "):
        metrics.parameters("insertion", {"q": 4})
    with pytest.raises(ValueError, match=r"^explainer gradcam has no parameter 'q'; it takes none$"):
        explainers.parameters("gradcam", {"q": 4})
    with pytest.raises(ValueError, match=r"^metric insertion: steps: Input should be greater [^\n]*$"):
        metrics.parameters("insertion", {"steps": 0})


def test_an_address_names_a_class_that_is_not_registered() -> None:
    assert empty().get("explainers.gradcam:GradCam") is GradCam


@pytest.mark.parametrize(
    "address",
    [
        "no_such_module:Name",
        "explainers.gradcam:NoSuchName",
        "explainers.gradcam:",
        ".x:y",
        ":y",
        "..:",
        "not a module:Name",
    ],
)
def test_a_wrong_address_is_one_line_that_repeats_it(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot load method '{address}': [^\n]*$"):
        empty().get(address)


@pytest.mark.parametrize("text", ["1 / 0", "def f(:", "raise SystemError('two\\nlines')"])
def test_a_module_that_fails_in_any_way_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "failing_module.py").write_text(text)
    with pytest.raises(ValueError, match=r"^cannot load method 'failing_module:Name': [^\n]*$"):
        empty().get("failing_module:Name")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("json:dumps", "it is not a class but of type function"),
        ("os:system", "it is not a class but of type builtin_function_or_method"),
        ("os:path", "it is not a class but of type module"),
        (
            "json:JSONDecoder",
            "the class JSONDecoder has no name, title, needs, Parameters, describe, explain",
        ),
    ],
)
def test_what_is_no_explainer_is_refused_in_one_line(address: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot use the method '{address}': {reason}[^\n]*$"):
        empty().get(address)


def test_a_metric_is_no_explainer_and_parameters_are_a_class() -> None:
    with pytest.raises(ValueError, match=r"Insertion has no describe, explain, which every explainer has$"):
        explainers.get("tasks.metrics.insertion_deletion:Insertion")
    methods = {"describe": print, "explain": print}
    odd = named("odd", title="", needs=frozenset(), Parameters=dict, **methods)
    with pytest.raises(ValueError, match=r"ClassOdd\.Parameters is not a subclass of explainers\.base"):
        empty()._checked(odd, "method 'odd'")
    fit = named("fit", title="", needs=frozenset(), Parameters=Parameters, **methods)
    assert empty()._checked(fit, "method 'fit'") is fit


def test_third_parties_register_through_entry_points(distribution: Distribution) -> None:
    distribution("foreign_method", MODULE.format(name="foreign"), "foreign = foreign_method:Foreign")
    assert empty(GROUP).get("foreign").__module__ == "foreign_method"
    assert empty(GROUP).names() == ["foreign"]


def test_an_entry_point_may_have_another_name_than_its_class(distribution: Distribution) -> None:
    distribution("renamed_method", MODULE.format(name="renamed"), "other = renamed_method:Foreign")
    assert empty(GROUP).get("renamed").__module__ == "renamed_method"


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("import no_such_module", "Foreign", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "Foreign", "AttributeError: "),
        ("raise RuntimeError('two\\nlines')", "Foreign", "RuntimeError: two"),
        ("def Foreign(): ...", "Foreign", "it is not a class but of type function"),
        ("class Foreign:\n    name = 'x'", "Foreign", "the class Foreign has no title, needs, "),
    ],
)
def test_a_broken_plug_in_is_named_every_time(
    distribution: Distribution, text: str, value: str, reason: str, request: pytest.FixtureRequest
) -> None:
    module = f"broken_{request.node.callspec.indices['text']}"
    distribution(module, text, f"broken = {module}:{value}")
    methods = empty(GROUP)
    methods.register(named("sound"))
    whole = rf"^cannot [^\n]*method plug-in 'broken' \({module}:{value}, of {module} 1.2\): {reason}[^\n]*$"
    for _ in range(3):
        with pytest.raises(ValueError, match=whole):
            methods.names()
        with pytest.raises(ValueError, match=whole):
            methods.get("broken")
        with pytest.raises(ValueError, match=whole):
            methods.get("unknown")
        assert methods.get("sound").__name__ == "ClassSound"
