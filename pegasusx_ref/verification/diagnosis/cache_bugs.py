"""Known bugs in keys and values: rounded, of others, in another order, stale, as a cache returns them. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.checking.operations import LOWEST
from pegasusx_ref.verification.diagnosis.attention_inputs import Attention, shown
from pegasusx_ref.verification.diagnosis.attention_steps import Bug, Part, Streams
from pegasusx_ref.verification.diagnosis.head_bugs import Change, changed
from pegasusx_ref.verification.diagnosis.rounded_operands import to_dtype
from pegasusx_ref.verification.diagnosis.softmax_bugs import int8_by


def cache_bugs(attention: Attention) -> list[Bug]:
    """List wrong keys, wrong values, and both."""
    streams = attention.streams
    assert streams is not None
    changes: dict[str, Change] = {"rounded to int8 by token and head": partial(int8_by, 3)}
    changes |= {f"rounded to {name}": partial(to_dtype, name) for name in ("float16", "bfloat16")}
    changes["rounded to int8 by token"] = partial(int8_by, (1, 3))
    changes["rounded to int8 as one tensor"] = partial(int8_by, (0, 1, 2, 3))
    if len(streams.k) > 1:
        changes["of the previous batch row"] = partial(np.roll, shift=1, axis=0)
        changes["of the next batch row"] = partial(np.roll, shift=-1, axis=0)
        changes["in the reverse order of batch rows"] = lambda x: x[::-1]
    found = [Bug("the result is 0: a block is left out", ("context",), context=lambda p, part: 0 * (p @ part.v))]
    found += [bug for words, change in changes.items() for bug in of_keys_and_values(words, change)]
    for words, step in (("of the previous token: one step late", 1), ("of the next token: one step early", -1)):
        for fills in (True, False):  # with 0, or with those of the other end
            found += of_keys_and_values(words, partial(moved, step, fills), of_tokens)
    found += [
        *of_keys_and_values("0 for the last token", last_zero, of_tokens),
        Bug("values are 0", ("context",), partial(changed, "v", np.zeros_like)),
        Bug("keys are in the reverse order", mask=reversed_keys, sees_filling=True),
        Bug(
            "values are in the reverse order",
            ("context",),
            context=lambda p, part: p @ part.v[:, :, ::-1],
            sees_filling=True,
        ),
        Bug("keys are used as values", ("context",), lambda s: s._replace(v=s.k, global_v=s.global_k)),
        Bug("values are used as keys", ("scores",), lambda s: s._replace(k=s.v, global_k=s.global_v)),
        Bug("keys and values are exchanged", ("scores", "context"), exchanged, extends=True),
        Bug("the values of the block are one key too late", ("context",), context=rolled_values(1), sees_filling=True),
        Bug(
            "the values of the block are one key too early", ("context",), context=rolled_values(-1), sees_filling=True
        ),
    ]
    if attention.kind in ("tokens", "self"):
        found += [
            Bug("queries are used as values", ("context",), lambda s: s._replace(v=s.q)),
            Bug("queries are used as keys", ("scores",), lambda s: s._replace(k=s.q)),
            Bug("queries and keys are exchanged", ("scores",), lambda s: s._replace(k=s.q, q=s.k)),
        ]
    return [*found, *of_other_states(attention)]


def of_keys_and_values(
    words: str, change: Change, where: Callable[[str, Change, Streams], Streams] = changed
) -> list[Bug]:
    """List a bug in keys and values, in keys, and in values; of global tokens too, or not."""
    return [
        Bug(f"keys and values are {words}", ("scores", "context"), partial(where, "kv", change), extends=True),
        Bug(f"keys are {words}", ("scores",), partial(where, "k", change)),
        Bug(f"values are {words}", ("context",), partial(where, "v", change)),
    ]


def of_tokens(parts: str, change: Change, streams: Streams) -> Streams:
    """Change keys or values, except for those of global tokens."""
    return streams._replace(**{part: change(getattr(streams, part)) for part in parts})


def of_other_states(attention: Attention) -> list[Bug]:
    """List keys and values that are projected from other states, or with another layer's weights."""
    found = list[Bug]()
    if attention.is_encoder:
        return found
    module = attention.place.rpartition(".")[2]
    states = {"": "encoder.layer_norm" if attention.kind == "cross" else f"{attention.layer_name}.self_attn_layer_norm"}
    if attention.kind == "cross":
        last = f"encoder.layers.{attention.config.encoder_layers - 1}.tokens.output"
        states |= {" of the encoder's states before its last LayerNorm": last}
    else:
        states |= {" of states before the LayerNorm": f"{attention.layer_name}.input"}
    for words, name in states.items():
        for number in range(attention.config.decoder_layers):
            if (words and number != attention.number) or (not words and number == attention.number):
                continue
            place = f"decoder.layers.{number}.{module}"
            bug = f"those{words}" if words else f"projected with the weights of layer {number}"
            for parts in ("kv", "k", "v"):
                subject = {"kv": "keys and values", "k": "keys", "v": "values"}[parts]
                steps = tuple(step for part, step in (("k", "scores"), ("v", "context")) if part in parts)
                project = partial(projected, attention, name, place, parts)
                found.append(Bug(f"{subject} are {bug}", steps, project, extends=len(parts) > 1))
    return found


def projected(attention: Attention, name: str, place: str, parts: str, streams: Streams) -> Streams:
    """Compute keys, values or both from other states or with other weights."""
    x = shown(attention.layer, name)
    if x is None:
        return streams
    weights = {part: dense(attention.layer.weights[f"{place}.{part}_proj.weight"], np.float64) for part in parts}
    return streams._replace(**{p: split_heads(linear(x, weight), attention.num_heads) for p, weight in weights.items()})


def moved(step: int, fills: bool, x: np.ndarray) -> np.ndarray:
    """Move along the tokens, with zeros at the end, or in a circle."""
    found = np.roll(x, step, axis=2)
    if fills:
        found[:, :, slice(None, step) if step > 0 else slice(step, None)] = 0.0
    return found


def last_zero(x: np.ndarray) -> np.ndarray:
    """Set the last token's to 0."""
    found = x.copy()
    found[:, :, -1:] = 0.0
    return found


def exchanged(s: Streams) -> Streams:
    """Exchange keys and values."""
    return s._replace(k=s.v, v=s.k, global_k=s.global_v, global_v=s.global_k)


def reversed_keys(scores: np.ndarray, part: Part) -> np.ndarray:
    """Compute scores of keys in the reverse order; the mask is right."""
    return np.where(part.visible[:, None], scores[..., ::-1], LOWEST)


def rolled_values(step: int) -> Callable[[np.ndarray, Part], np.ndarray]:
    """Return a function that weighs the values of another key."""

    def context(probs: np.ndarray, part: Part) -> np.ndarray:
        G = part.num_globals
        values = np.concatenate([part.v[:, :, :G], np.roll(part.v[:, :, G:], step, axis=2)], axis=2)
        found: np.ndarray = probs @ values
        return found

    return context
