"""The package's errors; each is also the built-in exception that a caller would expect."""


class PegasusXError(Exception):
    """Base class: one line that names the value, the limit and the remedy."""


class ConfigError(PegasusXError, ValueError):
    """An invalid configuration."""


class InputError(PegasusXError, ValueError):
    """Invalid token ids, masks or other arguments."""


class CheckpointError(PegasusXError, OSError):
    """A checkpoint folder that is incomplete, corrupt, or belongs to another model."""


class BackendError(PegasusXError, RuntimeError):
    """A backend that is unknown, cannot run here, or does not support the requested dtype."""


class ExtraError(PegasusXError, ImportError):
    """A missing package that one of this package's extras installs."""
