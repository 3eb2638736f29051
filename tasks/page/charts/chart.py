"""A chart of the report: its specification in Vega-Lite, and the picture that vl-convert draws of it.

Specifications are written as Vega-Lite's own JSON, since importing a library that writes it and having that
library copy it took longer than drawing the charts of a small run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import vl_convert

PRINT_SCALE = 2.0  # pixels of a PNG per pixel of the chart
_SVG = "http://www.w3.org/2000/svg"
# Pixels around a chart, since the letters of a page may be wider than those that it is drawn with.
_MARGIN = {"left": 28, "right": 28, "top": 14, "bottom": 10}
_LEAST = 0.55  # smaller than this share of its size, a chart cannot be read and is scrolled instead
_PAGE_INK = "currentColor"  # of texts and axes: what the page gives them
_INK, _PAPER, _FONT = "#1b1b1b", "white", "sans-serif"  # of a picture by itself
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
# Attributes of the elements that draw nothing, or say what the label of the whole picture says.
_IDLE = (
    "class",
    "aria-hidden",
    "aria-label",
    "aria-roledescription",
    "role",
    "pointer-events",
    "font-family",
)


@dataclass(frozen=True)
class Chart:
    """One chart of the report.

    Attributes
    ----------
    title
        What it shows, in a few words.
    caption
        How to read it, or why there is no picture.
    svg
        The picture for a page, which gives it its font and the colour of its text; empty if there is none.
    spec
        The specification in Vega-Lite that the picture was drawn of; empty if there is no picture.
    """

    title: str
    caption: str
    svg: str = ""
    spec: dict[str, Any] = field(default_factory=dict)

    def png(self) -> bytes:
        """Turn the picture into a PNG in black on white."""
        root = ElementTree.fromstring(self.svg.replace(_PAGE_INK, _INK))
        _, _, width, height = str(root.get("viewBox")).split()
        paper = ElementTree.Element(f"{{{_SVG}}}rect", {"width": width, "height": height, "fill": _PAPER})
        root.insert(0, paper)
        del root.attrib["style"]
        root.attrib.update({"width": width, "height": height, "font-family": _FONT})
        picture: bytes = vl_convert.svg_to_png(
            ElementTree.tostring(root, encoding="unicode"), scale=PRINT_SCALE
        )
        return picture


Rows = list[dict[str, Any]]
Spec = dict[str, Any]


def quantitative(field: str, **more: Any) -> Spec:
    """Return the encoding of a field that holds numbers."""
    return {"field": field, "type": "quantitative", **more}


def nominal(field: str, **more: Any) -> Spec:
    """Return the encoding of a field that holds names."""
    return {"field": field, "type": "nominal", **more}


def drawn(title: str, caption: str, chart: Spec, rows: dict[str, Rows]) -> Chart:
    """Draw a chart.

    Parameters
    ----------
    chart
        A chart in Vega-Lite whose data are names. Its texts and lines get the colour of the page's text,
        unless they have a colour of their own.
    rows
        The data by name.
    """
    spec = {**chart, "datasets": rows, "config": _config(), "background": None}
    return Chart(title, caption, _for_page(vl_convert.vegalite_to_svg(spec), title), spec)


def _config() -> Spec:
    """Return the settings of all charts."""
    ink = _PAGE_INK
    axis = {f"{part}Color": ink for part in ("domain", "grid", "label", "tick", "title")}
    texts = {"titleFontWeight": "normal", "titleFontSize": 11, "labelFontSize": 10}
    return {
        "font": _FONT,
        "padding": _MARGIN,
        "aria": False,
        "view": {"stroke": None},
        "axis": {**axis, **texts, "gridOpacity": 0.13, "domainOpacity": 0.5, "tickOpacity": 0.5},
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "symbolStrokeWidth": 2},
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "labelFontWeight": "bold"},
        "title": {
            "color": ink,
            "subtitleColor": ink,
            "fontSize": 12,
            "subtitleFontSize": 10,
            "anchor": "start",
        },
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": ink},
    }


def _for_page(svg: str, label: str) -> str:
    """Return a picture as an element of a page: as wide as its box, labelled, and without what is idle."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for name in [name for name in element.attrib if name in _IDLE]:
            del element.attrib[name]
        for name in ("d", "transform", "x", "x1", "x2", "y", "y1", "y2"):
            if name in element.attrib:
                element.set(name, _NUMBER.sub(_rounded, element.attrib[name]))
    _prune(root)
    width = root.attrib.pop("width")
    del root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", label)
    least = round(_LEAST * float(width))
    sizes = f"width:100%;min-width:{least}px;max-width:{width}px;height:auto"
    root.set("style", f"{sizes};overflow:visible")
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(number: re.Match[str]) -> str:
    """Return a coordinate to a tenth of a pixel."""
    return f"{round(float(number[0]), 1) + 0:g}"  # adding 0 turns -0 into 0


def _prune(element: ElementTree.Element) -> None:
    """Remove paths that draw nothing, and groups without content."""
    for child in list(element):
        _prune(child)
        tag = child.tag.removeprefix(f"{{{_SVG}}}")
        idle = tag == "path" and not {"fill", "stroke"} & set(child.attrib)
        if idle or child.attrib.get("display") == "none" or (tag == "g" and not len(child)):
            element.remove(child)
