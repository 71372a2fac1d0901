"""Backends of other packages, found by their real entry points: broken ones are listed, and hurt nobody else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import invalidate_caches
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasusx_ref import BackendError, available_backends, get_backend
from pegasusx_ref.backend.registry import OF_CLASSES, OF_INSTANCES
from pegasusx_ref.cli import main

GOOD = """
from pegasusx_ref.backend import GoldenBackend
class Plugin(GoldenBackend):
    name, version, dtypes = "plugin", "7.0", ("float64",)
"""
# What a module does instead of defining a backend, and what the message says.
AT_IMPORT = {
    "raise SystemExit('no licence')": "SystemExit: no licence",
    "raise SystemExit": "SystemExit",
    "def f(): f()\nf()": "RecursionError",
    "raise MemoryError": "MemoryError",
    "raise ImportError('no libodd.so')": "cannot be loaded: no libodd.so",
    "raise ValueError('one\\ntwo')": "ValueError: one",
    "raise OSError(5, 'I/O error')": "OSError: I/O error",
    "raise GeneratorExit": "GeneratorExit",
    "class Odd(BaseException):\n    __str__ = lambda self: 1 / 0\nraise Odd": "Odd: no message",
    "def": "SyntaxError",
    "Other = 1": "no attribute 'Plugin'",
    "Plugin = None": "lacks name, version, dtypes, devices",
    "class M(type):\n    def __getattr__(cls, name): raise KeyError(name)\nclass Plugin(metaclass=M): pass": "KeyError",
}
# A line of the class, and what the message says.
IN_CLASS = {
    "version = None": "version must be a str, not None",
    "version = 7.0": "version must be a str, not 7.0",
    "name = b'x'": "name must be a str, not b'x'",
    "dtypes = None": "dtypes must be a list or tuple of str, not None",
    "dtypes = 'float64'": "dtypes must be a list or tuple of str, not 'float64'",
    "dtypes = ()": "dtypes must be a list or tuple of str, not ()",
    "dtypes = (64,)": "dtypes must be a list or tuple of str, not (64,)",
}
IN_DEVICES = {
    "return None": "devices() must be a list or tuple of str, not None",
    "return 'cpu'": "devices() must be a list or tuple of str, not 'cpu'",
    "return []": "devices() must be a list or tuple of str, not []",
    "return [0]": "devices() must be a list or tuple of str, not [0]",
    "raise SystemExit(1)": "cannot list its devices: SystemExit: 1",
    "raise TypeError('driver')": "cannot list its devices: TypeError: driver",
    "return cls.devices()": "cannot list its devices: RecursionError",
    "from pegasusx_ref import BackendError; raise BackendError('no\\nGPU')": "no\\nGPU",
}
WITHOUT = [name for name in OF_CLASSES if name not in ("name", "version", "dtypes")]

modules = count()  # a module is imported once a process: each gets its own name


def install(folder: Path, package: str, backend: str, code: str) -> None:
    """Write a module and the metadata that announce its class `Plugin` as a backend, as an installer does."""
    module = f"plugin_module_{next(modules)}"
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    metadata = folder / f"{package.replace('-', '_')}-7.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 7.0\n")
    (metadata / "entry_points.txt").write_text(f"[pegasusx_ref.backends]\n{backend} = {module}:Plugin\n")


@contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*map(str, folders), *sys.path])
        invalidate_caches()
        yield


@contextmanager
def plugins(**codes: str) -> Iterator[None]:
    """Install a package for each backend."""
    with TemporaryDirectory() as folder, on_path(Path(folder)):
        for backend, code in codes.items():
            install(Path(folder), f"package-of-{backend}", backend, code)
        yield


def listed() -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(main, ["backends", "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, dict[str, object]] = json.loads(result.stdout)
    return found


def check_only_broken(broken: str, reason: str) -> None:
    """Check that one backend cannot run for a reason, everywhere, and that the good ones can."""
    problem = available_backends()[broken].problem
    assert problem is not None
    assert reason in problem
    assert problem.isprintable()
    assert listed()[broken]["problem"] == problem
    assert "cannot run" in CliRunner().invoke(main, ["backends"]).stdout
    for name, info in available_backends().items():
        if name in ("golden", "numpy", "good") and name != broken:
            assert info.problem is None
            assert get_backend(name, dtype="float64").dtype == "float64"


faulty_modules = st.one_of(
    st.sampled_from(sorted(AT_IMPORT.items())),
    st.sampled_from(sorted(IN_CLASS.items())).map(lambda fault: (f"{GOOD}    {fault[0]}\n", fault[1])),
    st.sampled_from(WITHOUT).map(
        lambda name: (
            f"{GOOD}class Without(type):\n    def __getattribute__(cls, name):\n"
            f"        if name == {name!r}: raise AttributeError(name)\n        return super().__getattribute__(name)\n"
            "class Plugin(Plugin, metaclass=Without): pass\n",
            f"lacks {name}",
        )
    ),
)


@pytest.mark.slow
@settings(max_examples=40)
@given(faulty_modules)
def test_a_broken_package_is_listed_with_its_reason_and_hurts_nobody_else(fault: tuple[str, str]) -> None:
    code, reason = fault
    with plugins(bad=code, good=GOOD):
        check_only_broken("bad", reason)
        with pytest.raises(BackendError) as error:
            get_backend("bad", dtype="float64")
        assert str(error.value) == available_backends()["bad"].problem


@pytest.mark.parametrize(("body", "reason"), IN_DEVICES.items())
def test_a_backend_whose_devices_cannot_be_listed_cannot_run(body: str, reason: str) -> None:
    with plugins(bad=f"{GOOD}    @classmethod\n    def devices(cls):\n        {body}\n", good=GOOD):
        check_only_broken("bad", reason)
        assert available_backends()["bad"][:3] == ("7.0", (), ("float64",))


@pytest.mark.parametrize(
    ("body", "reason"),
    {
        "raise SystemExit(3)": "backend 'bad' cannot be created: SystemExit: 3",
        "raise ValueError('odd device')": "backend 'bad' cannot be created: ValueError: odd device",
        "self.__init__(device, dtype)": "backend 'bad' cannot be created: RecursionError",
        "self.dtype = dtype": "backend 'bad' (Plugin) lacks device",
    }.items(),
)
def test_a_constructor_that_fails_is_an_error(body: str, reason: str) -> None:
    with plugins(bad=f"{GOOD}    def __init__(self, device, dtype):\n        {body}\n"):
        with pytest.raises(BackendError) as error:
            get_backend("bad", dtype="float64")
        assert str(error.value).startswith(reason)
        with pytest.raises(TypeError, match="colour"):
            get_backend("bad", dtype="float64", colour="red")


def test_the_attributes_of_a_backend_are_those_of_the_protocol() -> None:
    ops = get_backend("golden")
    assert all(hasattr(ops, name) for name in (*OF_CLASSES, *OF_INSTANCES))


@pytest.mark.parametrize("interrupt", ["KeyboardInterrupt", "SystemExit(143)"])
def test_an_interrupt_passes(interrupt: str) -> None:
    """The command line raises SystemExit at a signal."""
    with plugins(bad=f"raise {interrupt}"), pytest.raises((KeyboardInterrupt, SystemExit)):
        available_backends()


@pytest.mark.parametrize("name", ["good", "numpy", "torch"])
def test_two_packages_that_announce_the_same_name_are_an_error_for_that_name_only(name: str, tmp_path: Path) -> None:
    install(tmp_path, "package-one", name, GOOD)
    with on_path(tmp_path), plugins(good=GOOD):
        first = "package-of-good" if name == "good" else "pegasusx-ref"
        with pytest.raises(BackendError) as error:
            get_backend(name)
        assert str(error.value).startswith(f"backend {name!r} is announced by ")
        assert {first, "package-one"} <= set(str(error.value).replace(":", "").split())
        check_only_broken(name, "uninstall all but one")


def test_a_package_that_is_found_twice_counts_once(tmp_path: Path) -> None:
    for folder, package in (("a", "package-one"), ("b", "Package.One")):
        (tmp_path / folder).mkdir()
        install(tmp_path / folder, package, "good", GOOD)
    with on_path(tmp_path / "a", tmp_path / "b"):
        assert available_backends()["good"].problem is None


@pytest.mark.parametrize("text", [b"\xff\xfe[", b"[pegasusx_ref.backends]\nno equals sign\n"])
def test_metadata_that_cannot_be_read_announce_nothing(text: bytes, tmp_path: Path) -> None:
    install(tmp_path, "package-one", "bad", GOOD)
    (tmp_path / "package_one-7.0.dist-info" / "entry_points.txt").write_bytes(text)
    with on_path(tmp_path), plugins(good=GOOD):
        assert "bad" not in available_backends()
        assert available_backends()["good"].problem is None


@pytest.mark.slow
def test_the_help_names_broken_backends_without_loading_them(tmp_path: Path) -> None:
    install(tmp_path, "package-one", "bad", "raise SystemExit(9)")
    install(tmp_path, "package-two", "numpy", GOOD)
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "golden, numpy, bad" in " ".join(printed.stdout.split())
    assert not printed.stderr
