"""The golden reference of PEGASUS-X: every layer as a page of plain NumPy, equal to transformers to 1e-10."""

TYPE_CHECKING = False  # to Python; importing typing takes 9 ms, in which the command line cannot handle signals yet

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pegasusx_ref.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        """Import a public name when it is used; the command line handles signals before that."""
        from importlib import import_module

        if not name.startswith("__") or name == "__all__":  # Python looks for others, such as __wrapped__
            public = import_module("pegasusx_ref.public")
            if name in ("__all__", *public.__all__):
                globals()[name] = getattr(public, name)
            elif name == "verification":  # the only subpackage that `public` does not import
                import_module("pegasusx_ref.verification")
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
