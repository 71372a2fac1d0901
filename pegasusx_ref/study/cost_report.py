"""Tables of a model's costs: its parts, block-local and dense attention, decoding."""

from typing import Any

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import Table, count, size
from pegasusx_ref.study.costs import Cost, block_local_attention, cache_size, dense_attention, part_costs, token_flops


def total(parts: list[Cost]) -> Cost:
    """Add up the parts; the largest tensor is the largest of all parts."""
    sums = sum(part.parameters for part in parts), sum(part.flops for part in parts)
    return Cost("all", *sums, max(part.largest for part in parts))


def part_table(config: PegasusXConfig, T: int, L: int, dtype: str) -> Table:
    """Tabulate the cost of each part, and the total.

    Args:
        config: the model's configuration.
        T: source tokens.
        L: target tokens.
        dtype: of weights and tensors.
    """
    itemsize, parts = numpy_dtype(dtype).itemsize, part_costs(config, T, L)
    whole = total(parts)
    rows = [
        (
            part.name,
            count(part.parameters),
            size(itemsize * part.parameters),
            count(part.flops),
            f"{100 * part.flops / whole.flops:.1f} %" if part.flops else "-",
            size(itemsize * part.largest),
        )
        for part in [*parts, whole]
    ]
    header = ("part", "parameters", "weights", "FLOPs", "share", "largest tensor")
    return Table(header, rows, headings=frozenset({len(parts)}))


def attention_table(config: PegasusXConfig, T: int, dtype: str) -> Table:
    """Compare the encoder's attention with dense attention.

    Args:
        config: the model's configuration.
        T: source tokens.
        dtype: of the scores.
    """
    itemsize = numpy_dtype(dtype).itemsize
    ours, dense = block_local_attention(config, T), dense_attention(config, T)
    rows: list[tuple[str, ...]] = [
        (kind.name, count(kind.scores), count(kind.flops), size(itemsize * kind.largest)) for kind in (ours, dense)
    ]
    pairs = zip(dense[1:], ours[1:], strict=True)
    rows.append(("dense / block-local", *(f"{theirs / mine:.1f}" if mine else "-" for theirs, mine in pairs)))
    return Table(("encoder's attention", "scores a layer", "FLOPs", "scores at a time"), rows)


def decoding_lines(config: PegasusXConfig, T: int, L: int, dtype: str) -> list[str]:
    """Describe the cost of decoding after the source is encoded.

    Args:
        config: the model's configuration.
        T: source tokens.
        L: target tokens in the caches.
        dtype: of the caches.
    """
    caches = size(numpy_dtype(dtype).itemsize * cache_size(config, T, L))
    return [
        f"caches of {L} target and {T} source tokens: {caches}",
        f"decode step with these caches: {count(token_flops(config, T, past=L))} FLOPs",
    ]


def as_dict(config: PegasusXConfig, T: int, L: int, dtype: str) -> dict[str, Any]:
    """Convert the costs to JSON values: sizes in elements, and the bytes of an element.

    Args:
        config: the model's configuration.
        T: source tokens.
        L: target tokens.
        dtype: of weights and tensors.
    """
    itemsize, parts = numpy_dtype(dtype).itemsize, part_costs(config, T, L)
    return {
        "num_source_tokens": T,
        "num_target_tokens": L,
        "dtype": dtype,
        "itemsize": itemsize,
        "parts": [part._asdict() for part in parts],
        "total": total(parts)._asdict(),
        "attention": [kind(config, T)._asdict() for kind in (block_local_attention, dense_attention)],
        "cache_size": cache_size(config, T, L),
        "flops_of_a_token_more": token_flops(config, T, past=L),
    }
