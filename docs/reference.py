"""Write the reference tables of the pages in this folder from the code that they describe.

    python docs/reference.py            # write them
    python docs/reference.py --check    # exit code 1 if a page is not current

A page holds a table between two marker lines, ``<!-- reference: NAME -->`` and ``<!-- end of reference -->``;
NAME is a key of ``BLOCKS``. Everything outside the markers is written by hand and left as it is. The pages
depend on the code alone: plug-ins that are installed besides are left out.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import floodlit
from explainers.base import Need, Parameters
from explainers.control_names import CONTROLS
from explainers.models.loading import load
from explainers.models.probes_at_load import PROBES
from explainers.registry import explainers
from flows.cli import app
from flows.job import FindingsChoice, Job
from flows.train_job import TrainJob
from plugins.registry import Registry
from storage.datasets.spec import DatasetSpec, ImageFilesSpec, kinds
from tasks.metrics.base import Column
from tasks.metrics.base import Need as MetricNeed
from tasks.metrics.registry import metrics
from tasks.training.optimisation import PRESETS

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- reference: {} -->", "<!-- end of reference -->"
_BLOCK = re.compile(r"<!-- reference: ([\w-]+) -->\n.*?<!-- end of reference -->", re.DOTALL)

# Every need in the words of the pages; a new one has to be put here.
EXPLAINER_NEEDS = {
    Need.PIXELS: "images",
    Need.SEQUENCE: "texts, series or rows of a table",
    Need.ACTIVATIONS: "cached activations at the target layer, and the head behind it",
    Need.GRADIENTS: "gradients through the head",
    Need.CURVATURE: "second derivatives through the head",
    Need.PATCHES: "a vision transformer that runs on a subset of its patch tokens",
    Need.ATTENTION: "a vision transformer whose attention can be read",
    Need.POOLED: "a head that is global average pooling and one linear layer",
    Need.PREDICTION: "the predicted class as the target",
    Need.TRAINED: "weights that were trained for this classifier",
    Need.GIVEN: "maps that another program made, in files",
}
METRIC_NEEDS = {
    MetricNeed.PIXELS: "images",
    MetricNeed.BOXES: "boxes of the objects, on some images at least",
    MetricNeed.MASKS: "masks of the objects, on some images at least",
    MetricNeed.EXPLAINER: "the explainer, which it runs again",
}
TABLES = {  # models that are tables of a job, and the section that lists their keys
    **{cls.__name__: "job.md#dataset" for cls in kinds.usable()},
    "ModelSpec": "job.md#model",
    "Cluster": "job.md#cluster",
    "FindingsChoice": "findings.md#findings",
    "Batching": "job.md#batch",
    "Compute": "job.md#compute",
    "AuxiliarySpec": "training.md#auxiliary",
    "Loss": "training.md#loss",
    "Watch": "training.md#watch",
}
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
LOWER = {"torchvision", "package"}  # words that begin a description and keep their small letter
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


# Tables


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def prose(text: str) -> str:
    """A docstring in reStructuredText as Markdown."""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(text).replace("``", "`"))
    parts = text.split("`")  # every second one is code
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part.replace("\\*", "*")) for part in parts[::2]]
    return "`".join(parts)


def own_doc(cls: type[Parameters]) -> str:
    """The docstring of a class of parameters, where it has one of its own that says something."""
    told = vars(cls).get("__doc__") or ""
    return "" if cls is Parameters or re.fullmatch(r"Parameters of [\w\s-]+\.", told) else prose(told)


def sentence(text: str | None) -> str:
    """A description as it stands in a table: one line, with a capital letter and a full stop.

    A name or a value at its beginning keeps its small letter.
    """
    text = " ".join((text or "").replace("``", "`").split())
    first = text.split(" ", 1)[0].rstrip(",;")
    if len(first) > 1 and first.isalpha() and first not in LOWER:
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith(".") else f"{text}."


def written(value: Any) -> str:
    """A default as a job file has it."""
    return "-" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


# Keys, from the models' JSON schemas


def kind_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type of a key in plain words, with its bounds."""
    if "anyOf" in schema:
        given = [kind_of(each, definitions) for each in schema["anyOf"] if each.get("type") != "null"]
        return ", or ".join(dict.fromkeys(given))
    if "$ref" in schema:
        return _referred(schema["$ref"].rpartition("/")[2], definitions)
    if "enum" in schema or "const" in schema:
        values = [f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")])]
        return ", ".join(values[:-1]) + " or " * (len(values) > 1) + values[-1]
    if schema.get("type") == "array":
        return _list_of(schema, definitions)
    if schema.get("type") == "object":
        return "table"
    word = "path" if schema.get("format") == "path" else WORDS[schema["type"]]
    bounds = [f"{told} {_bound(schema[key])}" for key, told in BOUNDS.items() if key in schema]
    return ", ".join([word, *bounds])


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _referred(name: str, definitions: Mapping[str, Any]) -> str:
    if name in TABLES:
        return f"table [`[{TABLES[name].partition('#')[2]}]`]({TABLES[name]})"
    definition = definitions[name]
    if "enum" in definition:
        return kind_of(definition, definitions)
    keys = (f"{key} = {kind_of(value, definitions)}" for key, value in definition["properties"].items())
    return f"table `{{{', '.join(keys)}}}`" if not definition.get("additionalProperties") else "table"


def _list_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    items = schema.get("prefixItems", [schema.get("items")])
    given = dict.fromkeys(kind_of(each, definitions) for each in items)
    word, comma, bounds = ", ".join(given).partition(",")
    count = f"{len(items)} " if "prefixItems" in schema else ""
    return f"list of {count}{word}s{comma}{bounds}"


def keys_of(model: type[BaseModel], header: str = "key", hidden: frozenset[str] = frozenset()) -> str:
    """A table of a model's keys: type, default and meaning."""
    schema = model.model_json_schema()
    definitions, required = schema.get("$defs", {}), schema.get("required", [])
    rows: list[tuple[str, ...]] = []
    for key, value in schema["properties"].items():
        if key in hidden:
            continue
        default = "required" if key in required else written(value.get("default"))
        meaning = value.get("description") or _meaning_of(value, definitions)
        rows.append((f"`{key}`", kind_of(value, definitions), default, sentence(meaning)))
    width = 4 if any(row[3] for row in rows) else 3  # parameters may be described together, below
    return table((header, "type", "default", "meaning")[:width], [row[:width] for row in rows])


def _meaning_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The first paragraph about the table that a key holds."""
    reference = schema.get("$ref", schema.get("items", {}).get("$ref", "")).rpartition("/")[2]
    told: str = definitions.get(reference, {}).get("description", "")
    return told.partition("\n\n")[0]


def table_of(job: type[BaseModel], key: str) -> Any:
    """The model of a job's table."""
    return job.model_fields[key].annotation


def loss_presets() -> str:
    """What the presets of ``[loss]`` stand for."""
    rows = []
    for name, preset in PRESETS.items():
        values = asdict(preset)
        values = values.pop("weights") | values
        rows.append((f"`{name}`", *(f"{value:g}" for value in values.values())))
    return table(("preset", *(f"`{key}`" for key in values)), rows)


# Explainers and metrics


def own(registry: Registry[Any], package: str) -> Iterator[tuple[str, Any]]:
    """The classes of this project by name, without plug-ins of others."""
    for name in registry.names():
        cls = registry.get(name)
        if cls.__module__.startswith(f"{package}."):
            yield name, cls


def section(name: str, cls: Any, needs: Mapping[Any, str], columns: str = "") -> str:
    """Everything about an explainer or a metric."""
    asked = "; ".join(told for need, told in needs.items() if need in cls.needs)
    parts = [f"### {name}", f"**{prose(cls.title)}**", prose(cls.__doc__ or "")]
    parts += [f"It needs: {asked}." if asked else "It needs nothing besides the classifier."]
    parts += [columns] if columns else []
    parameters: type[Parameters] = cls.Parameters
    if parameters.model_fields:
        parts += [keys_of(parameters, "parameter"), own_doc(parameters)]
    fast = getattr(parameters, "FAST", {})
    if fast:
        values = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in fast.items())
        parts.append(f'`preset = "fast"` stands for {values}.')
    return "\n\n".join(part for part in parts if part)


def every_explainer() -> str:
    """All explainers, the controls last."""
    found = dict(own(explainers, "explainers"))
    names = [*(name for name in found if name not in CONTROLS), *CONTROLS]
    return "\n\n".join(section(name, found[name], EXPLAINER_NEEDS) for name in names)


def every_kind() -> str:
    """All kinds of datasets with their keys, and the keys that they share."""
    parts = []
    for name, cls in own(kinds, "storage.datasets"):
        parts += [f"#### {name}", prose(cls.__doc__ or "")]
        parts += [keys_only(cls, cls.own_keys())]
    found = own(kinds, "storage.datasets")
    names = ", ".join(f"`{name}`" for name, cls in found if issubclass(cls, ImageFilesSpec))
    of_all = DatasetSpec.model_fields.keys() - {"kind"}
    of_files = ImageFilesSpec.model_fields.keys() - DatasetSpec.model_fields.keys()
    parts += [f"#### Image files: {names}", keys_only(ImageFilesSpec, of_files)]
    parts += ["#### Every kind", keys_only(ImageFilesSpec, of_all)]
    return "\n\n".join(parts)


def keys_only(model: type[BaseModel], keys: Iterable[str]) -> str:
    """A table of some of a model's keys."""
    return keys_of(model, hidden=frozenset(model.model_fields) - frozenset(keys))


def every_metric() -> str:
    """All metrics, with the columns that they give for images by default."""
    spec = table_of(Job, "model")(source="torchvision", name="resnet18", weights="none")
    sections = []
    with load(spec) as classifier:
        for name, cls in own(metrics, "tasks.metrics"):
            columns = cls(classifier, cls.Parameters()).columns()
            rows = [_column(column) for column in columns]
            told = table(("column", "better", "range", "perturbed with", "scope"), rows)
            sections.append(section(name, cls, METRIC_NEEDS, told))
    return "\n\n".join(sections)


def _column(column: Column) -> tuple[str, ...]:
    scope = ["one number per dataset" if column.pooled else "one number per image"]
    if column.within:
        same = {"classifier": "the same classifier", "size": "inputs of the same size"}[column.within]
        scope.append(f"comparable between runs with {same}")
    return (
        f"`{column.name}`",
        column.better or "reference, not ranked",
        f"{_number(column.low)} to {_number(column.high)}",
        column.fill or "-",
        "; ".join(scope),
    )


def _number(value: float) -> str:
    return {float("inf"): "infinity", float("-inf"): "-infinity"}.get(value, f"{value:g}")


# Commands


def every_command() -> str:
    """All commands with their arguments and options."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    parameters = [each for each in command.params if each.name != "help"]
    words = [f"floodlit {name}", *(_usage(each) for each in parameters)]
    parts = [f"### {name}", f"```\n{' '.join(words)}\n```", prose(command.help or "")]
    rows = [(f"`{_spelled(each)}`", _default(each), sentence(each.help or "")) for each in parameters]
    if rows:
        parts.append(table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("--")


def _spelled(parameter: Any) -> str:
    value = parameter.metavar or str(parameter.name).upper()
    if isinstance(parameter.default, Enum):
        value = "|".join(str(each.value) for each in type(parameter.default))
    if not _is_option(parameter):
        return value
    flag = getattr(parameter, "is_flag", False)
    return str(parameter.opts[0]) if flag else f"{parameter.opts[0]} {value}"


def _usage(parameter: Any) -> str:
    return _spelled(parameter) if parameter.required else f"[{_spelled(parameter)}]"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if isinstance(default, Enum):
        return f"`{default.value}`"
    return "-" if default in {None, False} else f"`{default}`"


def exit_codes() -> str:
    """What a command's exit code says, as the help has it."""
    told = str(app.info.help).partition("Exit codes: ")[2].rstrip(".")
    return table(("exit code", "meaning"), [_code(each) for each in told.split("; ")])


def _code(told: str) -> tuple[str, str]:
    code, _, meaning = told.partition(" ")
    return f"`{code}`", sentence(meaning)


# Python

SECTIONS = re.compile(r"^(Parameters|Attributes|Returns|Raises)\n-+\n", re.MULTILINE)


def everything_in_python() -> str:
    """What ``import floodlit`` offers, functions first."""
    found = {name: getattr(floodlit, name) for name in floodlit.__all__ if not name.startswith("__")}
    names = sorted(found, key=lambda name: (inspect.isclass(found[name]), name))
    return "\n\n".join(_offered(name, found[name]) for name in names)


def _offered(name: str, offered: Any) -> str:
    parts = [f"### {name}"]
    if not inspect.isclass(offered) or "Parameters\n" in offered.__doc__:  # other classes are not called
        parts.append(f"```python\n{called(f'floodlit.{name}', offered)}\n```")
    parts.append(numpy_prose(offered.__doc__))
    if offered.__module__ == "floodlit" and inspect.isclass(offered):
        methods = [each for key, each in vars(offered).items() if not key.startswith("_")]
        parts += [f"`.{called(each.__name__, each)}`\n\n{numpy_prose(each.__doc__)}" for each in methods]
    return "\n\n".join(parts)


def called(name: str, function: Callable[..., Any]) -> str:
    """How a function is called: its parameters and defaults."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    shown = [each for each in bare if each.name != "self"]
    text = f"{name}{inspect.Signature(shown)}"
    return textwrap.fill(text, 100, subsequent_indent="    ", break_long_words=False)


def numpy_prose(text: str) -> str:
    """A docstring with sections in NumPy's form as Markdown; each parameter is an item of a list."""
    told, *rest = SECTIONS.split(inspect.cleandoc(text))
    parts = [prose(told)]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        entries = re.findall(r"^(\S.*)\n((?:(?:[ ]+.*)?(?:\n|$))+)", body, re.MULTILINE)
        items = [
            f"- `{name.replace(', ', '`, `')}`: {prose(' '.join(meaning.split()))}"
            for name, meaning in entries
        ]
        parts.append(f"{title}:\n\n" + "\n".join(items))
    return "\n\n".join(parts)


# Pages


def every_probe() -> str:
    """The probes at load: what each asks and refuses."""
    rows = [
        (f"`{name}`", "image models" if each.of_layers else "all models", each.asks, sentence(each.refuses))
        for name, each in PROBES.items()
    ]
    return table(("probe", "asked of", "question", "refused"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "job": partial(keys_of, Job),
    "dataset": every_kind,
    **{key: partial(keys_of, table_of(Job, key)) for key in ("model", "batch", "compute", "cluster")},
    "findings": partial(keys_of, FindingsChoice),
    "train-job": partial(keys_of, TrainJob),
    "auxiliary": partial(
        keys_of, table_of(TrainJob, "auxiliary"), hidden=frozenset(table_of(Job, "model").model_fields)
    ),
    "loss": partial(keys_of, table_of(TrainJob, "loss")),
    "loss-presets": loss_presets,
    "watch": partial(keys_of, table_of(TrainJob, "watch")),
    "explainers": every_explainer,
    "metrics": every_metric,
    "commands": every_command,
    "exit-codes": exit_codes,
    "probes": every_probe,
    "python": everything_in_python,
}


def current(page: str) -> str:
    """A page with its tables made anew.

    Raises
    ------
    KeyError
        If it names a table that there is not.
    """

    def block(match: re.Match[str]) -> str:
        return f"{BEGIN.format(match[1])}\n\n{BLOCKS[match[1]]()}\n\n{END}"

    return _BLOCK.sub(block, page)


def stale(folder: Path) -> dict[Path, str]:
    """The pages that are not current, as they should be."""
    found = {}
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = current(text)
        if new != text:
            found[path] = new
    return found


def main(arguments: Sequence[str] | None = None, folder: Path = DOCS) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the reference tables of the pages in docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not current")
    check = parser.parse_args(arguments).check
    pages = stale(folder)
    for path, text in pages.items():
        sys.stdout.write(f"{path.name} {'is not current' if check else 'is written'}\n")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
