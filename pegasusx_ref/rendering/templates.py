"""Templates of the HTML pages that lie in the package."""

from typing import Any


def page_template(package: str, name: str, **filters: Any) -> Any:
    """Read a Jinja template; what it is given is escaped, and what it is not given is an error.

    Args:
        package: whose folder "templates" it lies in, by its dotted name.
        name: of the file.
        filters: that it uses, by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
