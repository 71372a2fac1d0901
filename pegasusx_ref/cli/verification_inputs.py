"""The inputs of a verification: from a text, drawn at random, read from a file, or suggested."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.files.writing import replacing
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.verification import from_dump
from pegasusx_ref.verification.candidates.inputs import INPUTS, MASKS, random_ids

RANDOM = ("--tokens", "--target-tokens", "--seed")  # options of random inputs
OF_SUGGESTIONS = {
    "--suggest-inputs",
    "--model",
    "--revision",
    "--seed",
    "--gradients",
    "--progress",
}  # what they depend on
ROWS = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


def check_sources(
    file: Path | None, dump: Path | None, batch: Path | None, suggestion: Path | None, given: Collection[str]
) -> None:
    """Check that the inputs of a run come from one source.

    Args:
        file: the text.
        dump: the implementation's tensors.
        batch: the file of ids and masks.
        suggestion: the file that suggested ids are written to.
        given: the options that are on the command line.

    Raises:
        UsageError: there are two sources, or options that suggested inputs do not depend on.
    """
    for option, path, what, excluded in (
        ("--suggest-inputs", suggestion, "checks nothing", set(given) - OF_SUGGESTIONS),
        ("--dump", dump, "holds the tensors of a run", {"--against", *RANDOM}),
        ("--inputs", batch, "holds the ids of a run", {*RANDOM}),
    ):
        others = [str(file)] * (file is not None) + [other for other in given if other in excluded]
        if path is not None and others:
            raise UsageError(f"{option} {path} {what} and cannot be combined with {', '.join(others)}")
    if file is not None and "--tokens" in given:
        raise UsageError(f"--tokens is for random input and cannot be combined with {file}")


def numbers(rows: str | None) -> list[int] | None:
    """Parse numbers and ranges separated by commas.

    Raises:
        UsageError: a part is neither.
    """
    if rows is None:
        return None
    found: set[int] = set()
    for part in rows.split(","):
        match = ROWS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(f"--rows {rows}: expected numbers of batch rows, such as 0,2-4")
        found.update(range(first, last + 1))
    return sorted(found)


def build_inputs(
    file: Path | None,
    name: Path,
    hub: HubOptions,
    config: PegasusXConfig,
    counts: tuple[int, int],
    seed: int,
    labels: bool = False,
) -> dict[str, np.ndarray]:
    """Tokenize a text or draw random source ids, and draw random target ids and labels.

    Args:
        file: the text, or None.
        name: of the checkpoint, for its tokenizer.
        hub: how the name is looked up.
        config: of the model.
        counts: the number of random source and target tokens.
        seed: of the random ids.
        labels: whether the run needs labels.
    """
    rng, (tokens, target_tokens) = np.random.default_rng(seed), counts
    if file is None:
        source = random_ids(rng, config.vocab_size, (1, tokens))
    else:
        _, text = read_document(file)
        source = np.array(PegasusTokenizer.from_pretrained(name, **hub)([text])["input_ids"])
    target = random_ids(rng, config.vocab_size, (1, target_tokens))
    target[:, 0] = config.decoder_start_token_id
    drawn = {"labels": random_ids(rng, config.vocab_size, target.shape)} if labels else {}
    return {"input_ids": source, "decoder_input_ids": target} | drawn


def read_inputs(path: Path, names: Collection[str] = INPUTS) -> dict[str, np.ndarray]:
    """Read ids and masks, and labels where a run needs them, from a safetensors or npz file.

    Raises:
        InputError: another format, or tensors that are no ids.
        UsageError: the ids are missing.
    """
    tensors = from_dump(path)
    return check_ids({name: tensors[name] for name in tensors if name in names}, path, "add it")


def inputs_of_dump(
    dump: Path,
    candidate: Mapping[str, np.ndarray],
    batch: Path | None,
    given: Mapping[str, np.ndarray],
    names: Collection[str] = INPUTS,
) -> dict[str, np.ndarray]:
    """Return the ids and masks of a run whose tensors are in a file: from it, or from a file of their own.

    Args:
        dump: the file.
        candidate: its tensors.
        batch: the file of ids and masks, or None.
        given: its content.
        names: of the arrays that a run takes.

    Raises:
        UsageError: the files hold different arrays of a name, or none holds the ids.
    """
    inputs = {name: candidate[name] for name in names if name in candidate}
    if twice := [name for name in inputs if name in given and not np.array_equal(inputs[name], given[name])]:
        raise UsageError(f"--dump {dump} and --inputs {batch} hold different {', '.join(twice)}: keep one")
    return check_ids(inputs | dict(given), dump, "add it to the dump, or pass a file of ids and masks as --inputs FILE")


def check_ids(inputs: dict[str, np.ndarray], path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Check that a file holds the ids of a run.

    Args:
        inputs: its content.
        path: the file.
        remedy: what to do; ends the message.

    Raises:
        UsageError: it does not.
    """
    if missing := [name for name in MASKS if name not in inputs]:
        raise UsageError(f"{path}: {missing[0]} is missing: {remedy}")
    return inputs


def write_inputs(path: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Write ids and masks to a safetensors or npz file.

    Raises:
        UsageError: the name ends in neither.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"--suggest-inputs {path}: the name must end in .safetensors or .npz")
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:  # to the name itself, savez would add a suffix
                np.savez(file, **inputs)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save

            temporary.write_bytes(save(dict(inputs)))
