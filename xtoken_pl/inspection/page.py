"""Renders an inspection as one HTML file, without scripts or external resources, from the template ``page.html``."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xtoken_pl.inspection.inspection import Inspection


def page(inspection: Inspection) -> str:
    """Returns the HTML of an inspection."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(inspection=inspection)
