"""All cases of the suite by name, ``reader/file/damage/seed`` or ``argument/call/value/seed``, and their judgement."""

import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

from fuzz import (
    adapter_readers,
    arguments,
    conversion_readers,
    hub_readers,
    readers,
    settings_readers,
    tokenizer_readers,
)
from fuzz.oracle import Finding, judge
from fuzz.readers import Reader

MODULES = (readers, tokenizer_readers, adapter_readers, conversion_readers, settings_readers, hub_readers)
READERS: dict[str, Reader] = {name: reader for module in MODULES for name, reader in module.READERS.items()}


def all_kinds() -> list[str]:
    """List every kind of damage to every file, and every call with every value."""
    return [*kinds_of_damage(), *arguments.all_kinds()]


def kinds_of_damage() -> list[str]:
    """List every kind of damage to every file."""
    return [
        f"{name}/{file}/{damage}"
        for name, reader in READERS.items()
        for file, damages in reader.damages.items()
        for damage in damages
    ]


def draw_kind(rng: Random, names: Sequence[str] = ()) -> str:
    """Draw a reader by weight, a file, and a kind of damage, random damage more often than a fixed one.

    Args:
        rng: the generator.
        names: of the readers; all if empty.
    """
    names = names or list(READERS)
    name = rng.choices(names, [READERS[name].weight for name in names])[0]
    file, damages = rng.choice(list(READERS[name].damages.items()))
    random = [kind for kind in damages if kind in RANDOM]
    return f"{name}/{file}/{rng.choice(random if random and rng.random() < 0.9 else list(damages))}"


# Damage that is different for every seed.
RANDOM = (
    "bytes",
    "entries",
    "state",
    "lines",
    "header",
    "pickle",
    "pieces",
    "charsmap",
    "vocabulary",
    "added",
    "steps",
    "special",
    "settings",
    "tensors",
    "names",
    "tree",
    "drawn",
    "task",
    "files",
    "answers",
    "listing",
    "shards",
    "files",
    "answers",
    "listing",
    "shards",
)


def prepare(folder: Path) -> None:
    """Write the valid files of all readers."""
    folder.mkdir(exist_ok=True)
    for name, reader in READERS.items():
        reader.make(folder / name)


def judge_case(name: str, folder: Path, valid: Path | None = None) -> str:
    """Judge one case.

    Args:
        name: of the case.
        folder: for its files; holds the valid files in "valid" unless they are elsewhere.
        valid: the folder that `prepare` wrote.

    Returns:
        "result", "refused", or "FINDING" and what it is.
    """
    if name.startswith("argument/"):
        return arguments.judge_argument(name)
    key, file, damage, _ = name.split("/")
    reader, place = READERS[key], folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree((valid or folder / "valid") / key, place, symlinks=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that write unusual files
        reader.damages[file][damage](Random(name), place / file)
    read, use = partial(reader.read, place), partial(reader.use, place)
    try:
        return judge(read, use, place, place / reader.inside, reader.name)
    except Finding as finding:
        return f"FINDING {finding}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
