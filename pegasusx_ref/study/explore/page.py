"""The page: one HTML file that needs nothing else, with its data, its style and its script in it."""

import base64
import math
from typing import Any

import numpy as np

from pegasusx_ref.rendering.templates import page_template
from pegasusx_ref.study.explore.exploring import Exploration, is_special, readable
from pegasusx_ref.study.explore.sampling import MOST_KEYS, Sample
from pegasusx_ref.study.explore.stages import stages
from pegasusx_ref.tokenizer import PegasusTokenizer


def as_page(exploration: Exploration, tokenizer: PegasusTokenizer, title: str = "A text") -> str:
    """Write the page of an exploration.

    Args:
        exploration: what `explored` found.
        tokenizer: names the tokens.
        title: what the text is called.

    Returns:
        HTML that asks for nothing from the network.

    Raises:
        InputError: latex2mathml or the specification is not there.
    """
    config, num_tokens = exploration.config, len(exploration.token_ids)
    html: str = page_template("pegasusx_ref.study.explore", "explore.html").render(
        title=title,
        config=config,
        exploration=exploration,
        num_tokens=num_tokens,
        most_keys=MOST_KEYS,
        stages=stages(config, num_tokens, len(exploration.steps)),
        data=page_data(exploration, tokenizer),
    )
    return html


def page_data(exploration: Exploration, tokenizer: PegasusTokenizer) -> dict[str, Any]:
    """Gather what the script reads: names, numbers, and arrays in base64."""
    encoder, config, steps = exploration.encoder, exploration.config, exploration.steps
    layouts: list[list[int]] = []  # even and staggered layers have one each
    for blocks in encoder.blocks:
        starts = [start for start, _ in blocks]
        if starts not in layouts:
            layouts.append(starts)
    written = [step.chosen.token_id for step in steps]
    candidates = [[candidate.token_id for candidate in step.candidates] for step in steps]
    return {
        "tokens": readable(tokenizer, exploration.token_ids),
        "special": [i for i, token_id in enumerate(exploration.token_ids) if is_special(token_id)],
        "numGlobals": config.num_global_tokens,
        "staggers": config.stagger_local_blocks,
        "layouts": layouts,
        "layers": [layouts.index([start for start, _ in blocks]) for blocks in encoder.blocks],
        "inBlock": packed_sample(encoder.in_block),
        "onGlobals": packed_sample(encoder.on_globals),
        "globalsShare": packed(encoder.globals_share),
        "byGlobals": packed_sample(encoder.by_globals),
        "globalsOwnShare": packed(encoder.globals_own_share),
        "cross": packed_sample(exploration.cross),
        "written": readable(tokenizer, written),
        "writtenSpecial": [i for i, token_id in enumerate(written) if is_special(token_id)],
        "steps": [
            {
                "probability": significant(step.chosen.probability),
                "rank": step.rank,
                "candidates": list(
                    zip(readable(tokenizer, ids), [significant(c.probability) for c in step.candidates], strict=True)
                ),
            }
            for step, ids in zip(steps, candidates, strict=True)
        ],
    }


def packed_sample(sample: Sample) -> dict[str, Any]:
    """Pack the three arrays of a sample."""
    layers, rows, count = sample.keys.shape
    arrays = {"keys": packed(sample.keys), "weights": packed(sample.weights), "heads": packed(sample.heads)}
    return {"layers": layers, "rows": rows, "count": count, **arrays}


def packed(array: np.ndarray) -> dict[str, str]:
    """Write an array of unsigned integers as base64 of its little-endian bytes; JavaScript's typed arrays read it."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "data": base64.b64encode(little.tobytes()).decode("ascii")}


def significant(probability: float, digits: int = 4) -> float:
    """Round to so many digits, which a bar on a page does not exceed."""
    return round(probability, digits - 1 - math.floor(math.log10(probability))) if probability > 0 else 0.0
