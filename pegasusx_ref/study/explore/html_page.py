"""The page of an exploration: one self-contained HTML file with its data, style and script."""

import base64
import math
from typing import Any

import numpy as np

from pegasusx_ref.rendering.templates import page_template
from pegasusx_ref.study.explore.exploration import Exploration, is_special, readable_tokens
from pegasusx_ref.study.explore.stages import stages
from pegasusx_ref.study.explore.top_keys import MOST_KEYS, TopKeys
from pegasusx_ref.tokenizer import PegasusTokenizer


def as_page(exploration: Exploration, tokenizer: PegasusTokenizer, title: str = "A text") -> str:
    """Write the page of an exploration.

    Args:
        exploration: result of `explore_text`.
        tokenizer: converts ids to text.
        title: name of the text.

    Returns:
        HTML that makes no network requests.

    Raises:
        InputError: latex2mathml or the specification is missing.
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
    """Collect the data of the script: texts, numbers, and arrays in base64."""
    encoder, config, steps = exploration.encoder, exploration.config, exploration.steps
    layouts: list[list[int]] = []  # block starts: one list for even layers, one for staggered layers
    for blocks in encoder.blocks:
        starts = [start for start, _ in blocks]
        if starts not in layouts:
            layouts.append(starts)
    written = [step.chosen.token_id for step in steps]
    return {
        "tokens": readable_tokens(tokenizer, exploration.token_ids),
        "special": [i for i, token_id in enumerate(exploration.token_ids) if is_special(token_id)],
        "numGlobals": config.num_global_tokens,
        "staggers": config.stagger_local_blocks,
        "layouts": layouts,
        "layers": [layouts.index([start for start, _ in blocks]) for blocks in encoder.blocks],
        "inBlock": encode_top_keys(encoder.in_block),
        "onGlobals": encode_top_keys(encoder.on_globals),
        "globalsShare": encode_array(encoder.globals_share),
        "byGlobals": encode_top_keys(encoder.by_globals),
        "globalsOwnShare": encode_array(encoder.globals_own_share),
        "cross": encode_top_keys(exploration.cross),
        "written": readable_tokens(tokenizer, written),
        "writtenSpecial": [i for i, token_id in enumerate(written) if is_special(token_id)],
        "steps": [
            {
                "probability": round_significant(step.chosen.probability),
                "rank": step.rank,
                "candidates": [
                    (*readable_tokens(tokenizer, [token_id]), round_significant(probability))
                    for token_id, probability in step.most_likely
                ],
            }
            for step in steps
        ],
    }


def encode_top_keys(top_keys: TopKeys) -> dict[str, Any]:
    """Encode the three arrays of the strongest keys."""
    layers, rows, count = top_keys.keys.shape
    arrays = {name: encode_array(getattr(top_keys, name)) for name in ("keys", "weights", "heads")}
    return {"layers": layers, "rows": rows, "count": count, **arrays}


def encode_array(array: np.ndarray) -> dict[str, str]:
    """Encode unsigned integers as base64 of their little-endian bytes, for JavaScript's typed arrays."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "data": base64.b64encode(little.tobytes()).decode("ascii")}


def round_significant(probability: float, digits: int = 4) -> float:
    """Round to `digits` significant digits: more are not visible on the page."""
    return round(probability, digits - 1 - math.floor(math.log10(probability))) if probability > 0 else 0.0
