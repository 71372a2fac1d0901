"""Progress on stderr, read off the trace points: the model itself knows nothing of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.estimate import Estimate


@contextmanager
def progress(shown: bool, name: str, num_tokens: int, config: PegasusXConfig, max_length: int) -> Iterator[None]:
    """Show encoder layers and decoded tokens while the block runs, and one line of figures when it is done.

    Args:
        shown: False shows nothing at all.
        name: of the document.
        num_tokens: source tokens.
        config: for the number of layers.
        max_length: target tokens at the most.
    """
    if not shown:
        yield
        return
    started, first_token, num_decoded = time.perf_counter(), 0.0, 0

    with moving_bars() as bars:
        reading = bars.add_task(f"{name}: reading {num_tokens} tokens, layer", total=config.encoder_layers)
        writing = bars.add_task(f"{name}: writing, token", total=max_length - 1, visible=False)

        def see(point: str, _: Any) -> None:
            nonlocal first_token, num_decoded
            if point == "lm_head":
                num_decoded += 1
                first_token = first_token or time.perf_counter()
                bars.update(writing, completed=num_decoded, visible=True)
            else:
                bars.advance(reading)

        with listen(see, "encoder.layers.*.tokens.output", "lm_head"):
            yield
    ended = time.perf_counter()
    read_in, written_in = (first_token or ended) - started, ended - (first_token or ended)
    figures = f"read {at_rate(num_tokens, read_in, ' tokens')}, wrote {at_rate(num_decoded, written_in)}"
    bars.console.print(f"{name}: {figures}", markup=False, soft_wrap=True)


@contextmanager
def layer_progress(description: str, *num_layers: int) -> Iterator[None]:
    """Show layers as they are done, on a terminal.

    Args:
        description: what is going on.
        num_layers: of the encoder, and of the decoder where it runs once.
    """
    with moving_bars() as bars:
        layers = bars.add_task(description, total=sum(num_layers))
        outputs = ("encoder.layers.*.tokens.output", "decoder.layers.*.output")[: len(num_layers)]
        with listen(lambda *_: bars.advance(layers), *outputs):
            yield


@contextmanager
def verification_progress(shown: bool, description: str, config: PegasusXConfig) -> Iterator[None]:
    """Show layers of a verification as they are done, on a terminal.

    Args:
        shown: False shows nothing at all.
        description: what is going on.
        config: for the number of layers.
    """
    with moving_bars(shown) as bars:
        layers = bars.add_task(description, total=config.encoder_layers + config.decoder_layers)

        def see(_: str, tensor: Any) -> None:
            if isinstance(tensor, Estimate):  # the check's own run, not that of a candidate of ours
                bars.advance(layers)

        with listen(see, "encoder.layers.*.tokens.output", "decoder.layers.*.output"):
            yield


def moving_bars(shown: bool = True) -> Progress:
    """Make bars that move and vanish on a terminal; elsewhere nothing of them is printed."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    hidden = not (shown and console.is_terminal)
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=hidden)


def at_rate(count: int, seconds: float, unit: str = "") -> str:
    """Say how many in which time, and how many that is a second."""
    return f"{count}{unit} in {seconds:.1f} s ({count / max(seconds, 1e-9):.3g}/s)"
