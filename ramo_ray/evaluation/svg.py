"""A drawing as SVG that lives inside a page: the page's fonts and colours, ids of its own, the same bytes each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from ramo_ray.evaluation.texts import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE, BLUE, ORANGE, GREY = "#1b1f24", "#5b6470", "#d5d9e0", "#0072b2", "#d55e00", "#8a94a3"
"""Colours to draw with. Blue and orange are Okabe and Ito's, which colour-blind readers tell apart."""
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", BLUE: "--blue", ORANGE: "--orange", GREY: "--grey"}
"""The CSS variable that stands for each colour on the page, so that dark mode reaches the drawings too."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def inline_svg(name: str, description: str, size: tuple[float, float], draw: Callable[[Figure], object]) -> Markup:
    """Draw a figure of `size` (width, height; CSS pixels at full scale) and return its `<svg>` element.

    `name` is unique on the page and prefixes the element's ids; `description` is read to those who cannot see it.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # "default" first: a matplotlibrc of the machine must not change the report.
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        # Texts are drawn by the browser with its fonts; that matplotlib's own lacks a script does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # An SVG point is drawn as one CSS pixel: 72 a matplotlib inch.
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True)
    return Markup(_at_home(buffer.getvalue(), name, description))


def _at_home(document: str, name: str, description: str) -> str:
    """Turn matplotlib's SVG document into an element of the page."""
    root = ElementTree.fromstring(document)
    # matplotlib's style would reach the whole page, and its metadata hold the date.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', document))
    for element in root.iter():
        _rename(element, name, used)
    view_box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": view_box, "role": "img", "aria-label": clean(description)})
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode").replace("\n", " ")


def _rename(element: ElementTree.Element, name: str, used: set[str]) -> None:
    identifier = element.attrib.pop("id", None)
    if identifier in used:
        element.set("id", f"{name}-{identifier}")
    if reference := element.attrib.pop(_XLINK_HREF, None):
        element.set("href", f"#{name}-{reference.removeprefix('#')}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("#", f"#{name}-"))
    if style := element.get("style"):
        element.set("style", _page_style(style))


def _page_style(style: str) -> str:
    style = re.sub(r"font-family: [^;]*", "font-family: inherit", style)
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: f"var({VARIABLES[match[0]]})", style)
