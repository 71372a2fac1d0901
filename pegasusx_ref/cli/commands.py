"""Commands that never overwrite what they read: the types of files on the command line, and the check before a run."""

import os
import stat
from collections import UserDict
from collections.abc import Hashable, Iterator
from itertools import combinations
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import click

from pegasusx_ref.checkpoint.hub import is_hub_name
from pegasusx_ref.cli.messages import UsageError, one_line_messages
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import OutputError
from pegasusx_ref.files.writing import check_replaceable

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1


class Use(NamedTuple):
    """A file that a command reads or writes.

    Attributes:
        option: that names it, such as "--out".
        file: its path, or the number of a standard stream.
        is_output: whether the command replaces it.
    """

    option: str
    file: Path | int
    is_output: bool = False

    def __str__(self) -> str:
        """Name it for a message."""
        return f"{self.option} {self.file}" if isinstance(self.file, Path) else self.option

    def identity(self) -> Hashable:
        """Return device and inode, which all names of a file share, or the resolved path where no file exists."""
        try:
            status = os.stat(self.file)  # noqa: PTH116 - it may be a number
        except OSError:
            return os.path.realpath(self.file) if isinstance(self.file, Path) else self
        return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else self


class FileType(click.Path):
    """The type of an option or argument that names files; each one has a subclass of this type."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)  # the reader's own message says more

    def uses(self, name: str, path: Path | None, settings: dict[str, Any]) -> Iterator[Use]:
        """List the files.

        Args:
            name: of the option.
            path: its value.
            settings: values of all options by name.
        """
        raise NotImplementedError


class InputFile(FileType):
    """A file that is read; "-" may mean standard input."""

    def uses(self, name: str, path: Path | None, settings: dict[str, Any]) -> Iterator[Use]:
        """List the file."""
        if path is not None:
            yield Use("standard input", STANDARD_INPUT) if path == Path("-") else Use(name, path)


class InputFolder(FileType):
    """A folder whose files are read, or a name of the Hub, whose files no command writes.

    Args:
        default: the folder without a value.
    """

    def __init__(self, default: Path | None = None) -> None:
        super().__init__()
        self.default = default

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Keep a path a path: "./owner/name" would become a name of the Hub without its dot."""
        path = Path(value)
        return path.absolute() if is_hub_name(path) and not is_hub_name(value) else path

    def uses(self, name: str, path: Path | None, settings: dict[str, Any]) -> Iterator[Use]:
        """List the files in the folder."""
        folder = path or self.default
        if folder is not None and folder.is_dir():
            yield from (Use(f"{name}'s", file) for file in folder.iterdir())


class OutputFile(FileType):
    """A file that is replaced when its content is complete, behind a symbolic link the link's target.

    Args:
        read_if: name of a flag with which the file is only read.
    """

    def __init__(self, read_if: str | None = None) -> None:
        super().__init__()
        self.read_if = read_if

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Follow a symbolic link."""
        path = Path(value)
        return Path(os.path.realpath(path)) if path.is_symlink() else path

    def uses(self, name: str, path: Path | None, settings: dict[str, Any]) -> Iterator[Use]:
        """List the file."""
        if path is not None:
            yield Use(name, path, is_output=not settings.get(self.read_if or ""))


class OutputFolder(FileType):
    """A folder that files are written into; what writes them checks the folder's content."""

    def uses(self, name: str, path: Path | None, settings: dict[str, Any]) -> Iterator[Use]:
        """List nothing: a command may write into the folder that it reads, once all is read."""
        return iter(())


INPUT_FILE: Any = InputFile()
MODEL_FOLDER: Any = InputFolder(DEMO_CHECKPOINT)
OUTPUT_FILE: Any = OutputFile()


class Command(click.Command):
    """A command that checks its files before it runs."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the files, then run.

        Raises:
            UsageError: see `check_files`.
        """
        check_files([use for param in self.params for use in uses_of(param, ctx.params)])
        return super().invoke(ctx)


def uses_of(param: click.Parameter, settings: dict[str, Any]) -> Iterator[Use]:
    """List the files of an option or argument.

    Args:
        param: the option or argument.
        settings: values of all options by name.
    """
    if isinstance(param.type, FileType) and param.name is not None:
        name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name.strip("[].")
        value = settings.get(param.name)
        for path in value if isinstance(value, tuple) else (value,):
            yield from param.type.uses(name, path, settings)


def check_files(uses: list[Use]) -> None:
    """Check that outputs can be written, and that no output is an input or another output.

    Raises:
        UsageError: two files are the same, or an output cannot be written.
    """
    inputs, outputs = ([use for use in uses if use.is_output == is_output] for is_output in (False, True))
    printed = Use("standard output", STANDARD_OUTPUT, is_output=True)
    identities = [(use, use.identity()) for use in (*outputs, printed, *inputs)]
    for (first, identity), (second, other) in combinations(identities, 2):
        if first.is_output and identity == other:
            raise UsageError(f"{first} and {second} are the same file: name another file to write")
    for use in outputs:
        assert isinstance(use.file, Path)
        if not use.file.parent.is_dir():
            raise UsageError(f"{use}: the folder {use.file.parent} does not exist: create it first")
        try:
            check_replaceable(use.file)
        except OutputError as error:
            raise UsageError(f"{use.option} {error}") from None


class Group(click.Group):
    """A group of commands that check their files before they run."""

    command_class = Command
    group_class = type


class Importable(UserDict[str, Any]):
    """Commands by name, each "module:function" until it is looked up: only the command that runs is imported.

    All of them together would take as long as the summary of a short text.
    """

    def __getitem__(self, name: str) -> Any:
        return resolve_name(super().__getitem__(name))


class MainGroup(Group):
    """The group of all commands: it prints errors, warnings and Ctrl-C in one line each."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options that stand before a command; see `one_line_messages`."""
        with one_line_messages():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `one_line_messages`."""
        with one_line_messages():
            return super().invoke(ctx)
