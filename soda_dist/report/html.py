"""The pages' templates: one style sheet, one head, everything that comes from a run escaped."""

from typing import Any


def render_template(template: str, /, **values: Any) -> str:
    """Render a page of this package as one self-contained HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("soda_dist.report", ""),
        trim_blocks=True, lstrip_blocks=True, autoescape=True, undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(**values) + "\n"
