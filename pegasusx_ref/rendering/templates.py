"""Jinja templates of HTML pages."""

from typing import Any

from pegasusx_ref.errors import printable


def page_template(package: str, name: str, **filters: Any) -> Any:
    """Load a template that escapes its values, control characters too, and raises an error for an undefined one.

    Args:
        package: dotted name of the package whose folder "templates" holds the file.
        name: of the file.
        filters: Jinja filters, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not Markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
