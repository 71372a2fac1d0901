"""Progress on stderr, driven by the trace points: the model contains no progress code."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pegasusx_ref.cli.messages import message
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import listen


@contextmanager
def summary_progress(
    shown: bool, name: str, num_tokens: int, config: PegasusXConfig, max_length: int
) -> Iterator[None]:
    """Show encoder layers and generated tokens while the block runs, and a line with the speed afterwards.

    Args:
        shown: False shows nothing.
        name: of the document.
        num_tokens: source tokens.
        config: for the number of layers.
        max_length: the most target tokens.
    """
    if not shown:
        yield
        return
    from pegasusx_ref.cli.bars import progress_bars  # rich takes longer to import than a short text to summarize

    started, first_token, num_generated = time.perf_counter(), 0.0, 0

    with progress_bars() as bars:
        encoding = bars.add_task(f"{name}: encoding {num_tokens} tokens, layer", total=config.encoder_layers)
        generating = bars.add_task(f"{name}: generating, token", total=max_length - 1, visible=False)

        def advance(point: str, _: Any) -> None:
            nonlocal first_token, num_generated
            if point == "lm_head":
                num_generated += 1
                first_token = first_token or time.perf_counter()
                bars.update(generating, completed=num_generated, visible=True)
            else:
                bars.advance(encoding)

        with listen(advance, "encoder.layers.*.tokens.output", "lm_head"):
            yield
    ended = time.perf_counter()
    encoded_in, generated_in = (first_token or ended) - started, ended - (first_token or ended)
    figures = f"read {at_rate(num_tokens, encoded_in, ' tokens')}, wrote {at_rate(num_generated, generated_in)}"
    message(f"{name}: {figures}")


@contextmanager
def layer_progress(description: str, *num_layers: int, shown: bool = True, of: type = object) -> Iterator[None]:
    """Show finished layers on a terminal.

    Args:
        description: text before the bar.
        num_layers: of the encoder, and of the decoder if it runs once.
        shown: False shows nothing.
        of: type of the hidden states to count, where two models run at once.
    """
    if not shown:
        yield
        return
    from pegasusx_ref.cli.bars import progress_bars

    with progress_bars() as bars:
        layers = bars.add_task(description, total=sum(num_layers))

        def advance(_: str, tensor: Any) -> None:
            if isinstance(tensor, of):
                bars.advance(layers)

        with listen(advance, *("encoder.layers.*.tokens.output", "decoder.layers.*.output")[: len(num_layers)]):
            yield


def at_rate(count: int, seconds: float, unit: str = "") -> str:
    """Format a count with its time and its rate."""
    return f"{count}{unit} in {seconds:.1f} s ({count / max(seconds, 1e-9):.3g}/s)"
