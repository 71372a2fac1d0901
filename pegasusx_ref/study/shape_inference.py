"""Shape inference: every tensor of a run with its FLOPs, without weights, also for models larger than the memory."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import groupby
from math import prod
from typing import NamedTuple

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.model.weights import EMBEDDING
from pegasusx_ref.tracing.trace_points import TRACE_POINTS

# The axis that each matrix product sums over. The few operations an element of other tensors are not counted.
SUMMED_OVER = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "lm_head"), "D"),
    "fc2": "M",
    "scores": "F",
    "context": "X",
}


class Step(NamedTuple):
    """A tensor of a run, and the FLOPs that compute it.

    Attributes:
        name: its trace point.
        letters: its dimensions, as in spec/01-notation.md.
        shape: their sizes.
        flops: of its matrix product, where a multiplication and an addition are two; 0 for all other operations.
    """

    name: str
    letters: str
    shape: tuple[int, ...]
    flops: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def steps(config: PegasusXConfig, T: int, L: int, B: int = 1, past: int = 0) -> Iterator[Step]:
    """List every step of a run, layer by layer and block by block, in the order of `TRACE_POINTS`.

    Args:
        config: the model's configuration.
        T: source tokens.
        L: new target tokens.
        B: batch size.
        past: target tokens in the decoder's caches. Above 0 this is a decode step: the encoder does not run, nor do the
            projections whose results are cached.
    """
    for side, num_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        if side == "encoder" and past:
            continue
        sizes = dimension_sizes(config, side) | {"B": B, "T": T, "L": L}
        points = [point for point in TRACE_POINTS if point.startswith(side)]
        for in_layers, group in groupby(points, lambda point: ".layers." in point):
            if in_layers:
                inside = list(group)
                for i in range(num_layers):
                    yield from layer_steps(i, inside, sizes, layer_blocks(config, T, i), past)
            else:
                yield from (step(point, point, sizes) for point in group)
    yield step("lm_head", "lm_head", sizes)


def steps_at(place: str, run: Iterable[Step]) -> list[Step]:
    """Select the steps at a place.

    Args:
        place: a scope or a tensor, such as "encoder.layers.1.self_attn".
        run: all steps.

    Raises:
        InputError: the run has no such place; the message suggests similar ones.
    """
    run = list(run)
    if found := [one for one in run if f"{one.name}.".startswith(f"{place}.")]:
        return found
    parts = [one.name.split(".") for one in run]
    known = dict.fromkeys(".".join(names[:n]) for names in parts for n in range(1, len(names) + 1))
    near = get_close_matches(place, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "pegasusx-ref explain lists all places"
    raise InputError(f"place {place!r} does not occur in a run of these shapes: {hint}")


def layer_steps(
    i: int, points: list[str], sizes: dict[str, int], blocks: list[tuple[int, int]], past: int
) -> Iterator[Step]:
    """List the steps of one layer.

    Args:
        i: index of the layer.
        points: its trace points.
        sizes: of the dimensions that do not depend on the block.
        blocks: (start, stop) of its blocks; unused in a decoder layer.
        past: see `steps`.
    """
    G, T = sizes["G"], sizes["T"]
    local = [point for point in points if ".local." in point]
    for point in points:
        if point in local[1:]:
            continue  # listed block by block, after the first
        if point in local:
            for n, (start, stop) in enumerate(blocks):
                in_block = sizes | {"S": stop - start, "X": G + stop - start}
                yield from (step(p, p.format(i=i, n=n), in_block) for p in local)
        elif ".encoder_attn." in point:
            if not (past and point.endswith(("k_proj", "v_proj"))):
                yield step(point, point.format(i=i), sizes | {"X": T})
        else:
            yield step(point, point.format(i=i), sizes | {"X": G + T if ".global." in point else past + sizes["L"]})


def step(point: str, name: str, sizes: dict[str, int]) -> Step:
    """Compute the shape and the FLOPs of one step.

    Args:
        point: the entry of `TRACE_POINTS`.
        name: with the numbers of its layer and block.
        sizes: of all dimensions, by letter.
    """
    letters, summed_over = TRACE_POINTS[point], SUMMED_OVER.get(point.rpartition(".")[2])
    shape = tuple(sizes[letter] for letter in letters)
    flops = 2 * prod(shape) * sizes[summed_over] if summed_over else 0
    return Step(name, letters, shape, flops)


def flops_formula(members: list[Step]) -> str:
    """Write the FLOPs of a matrix product as a formula in dimension letters.

    Args:
        members: one step, or those of the same trace point in several blocks or layers.
    """
    first = members[0]
    product = " ".join(["2", *first.letters, SUMMED_OVER[first.name.rpartition(".")[2]]])
    return product if len(members) == 1 else f"sum of {len(members)} times {product}"


def dimension_sizes(config: PegasusXConfig, side: str) -> dict[str, int]:
    """Return the sizes of the dimensions that the configuration sets, by letter.

    Args:
        config: the model's configuration.
        side: "encoder" or "decoder": their numbers of heads and feed-forward widths may differ.
    """
    is_encoder = side == "encoder"
    H = config.encoder_attention_heads if is_encoder else config.decoder_attention_heads
    M = config.encoder_ffn_dim if is_encoder else config.decoder_ffn_dim
    D = config.d_model
    return {"D": D, "H": H, "F": D // H, "M": M, "G": config.num_global_tokens, "V": config.vocab_size}


def weights_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """List the weights that a step reads; tokens and global tokens share most of them.

    Args:
        name: of the step.
        shapes: of the model's weights, from `parameter_shapes`.

    Returns:
        Names of weights. The embeddings of an untied model list the shared table too: checkpoints contain it although
        no operation reads it.
    """
    place = name.replace("globals.self_attn_layer_norm", "global_self_attn_layer_norm")
    place = place.replace(".tokens.", ".").replace(".globals.", ".")
    candidates = [f"{place}.weight", f"{place}.bias"]
    if name.endswith("embed_tokens") or (name == "lm_head" and "lm_head.weight" not in shapes):
        candidates.append(EMBEDDING)
    return [weight for weight in candidates if weight in shapes]
