"""Capture of the values of a Flax module, with defaults for the paper's own code. [spec 16]

Flax's own `capture_intermediates` collects the outputs of all methods, and an interceptor adds their inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import Inputs, real_tokens
from pegasusx_ref.verification.candidates.mapping import map_names
from pegasusx_ref.verification.candidates.name_maps import NameMap
from pegasusx_ref.verification.candidates.sources import Candidate

COLLECTION = "intermediates"
CALL = "__call__"  # the method whose values have the name of the module alone
INPUT, OUTPUT = ":input", ":output"


def paper_arguments(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the source and the targets that the paper's model is called with.

    It takes masks from ids above 0, and shifts the targets right by itself: its decoder reads 0 and all targets but
    the last, which therefore may be any id.

    Args:
        inputs: of the run.

    Raises:
        InputError: the inputs cannot be written so: a real token has the id 0, or the decoder does not start with 0.
    """
    source, decoder = np.array(inputs["input_ids"]), np.array(inputs["decoder_input_ids"])
    source_mask, decoder_mask = real_tokens(inputs)
    if (source[source_mask] == 0).any():
        raise InputError(
            "input_ids have the id 0, which the paper's code takes for padding: mask it, or use another id"
        )
    targets = np.concatenate([decoder[:, 1:], np.ones_like(decoder[:, :1])], axis=1)
    targets = np.where(decoder_mask, np.maximum(targets, 1), 0)
    read = np.concatenate([np.zeros_like(decoder[:, :1]), targets[:, :-1]], axis=1)
    if (read != decoder)[decoder_mask].any():
        raise InputError("decoder_input_ids must be 0 and then ids above 0: the paper's code shifts its targets itself")
    return np.where(source_mask, source, 0), targets


def from_flax(
    module: Any,
    variables: Mapping[str, Any],
    mapping: NameMap = "flax",
    config: PegasusXConfig | None = None,
    arguments: Callable[[Inputs], tuple[Any, ...]] = paper_arguments,
) -> Candidate:
    """Return a candidate that runs a Flax module and captures inputs and outputs of its submodules. [spec 16.24]

    Args:
        module: a `flax.linen.Module`, deterministic.
        variables: of the module: {"params": …}.
        mapping: as in `from_dump`, from trace points to module paths, such as ``encoder/layer_0/mlp``. ``PATH#2`` is
            the second call of the module in a run, ``PATH:input`` its first input, ``PATH:output.1`` its second output,
            ``PATH/method`` another method; ``__call__`` is the whole module. "flax" maps the paper's own code.
        config: the model's configuration, as in `from_dump`.
        arguments: makes the arguments of the module from the inputs of a run.
    """

    def run(inputs: Inputs) -> Mapping[str, np.ndarray]:
        from flax.linen import intercept_methods  # type: ignore[import-not-found,unused-ignore]

        def keep_inputs(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            context.module.sow(COLLECTION, context.method_name + INPUT, [*args, *kwargs.values()])
            return method(*args, **kwargs)

        with intercept_methods(keep_inputs):
            _, state = module.apply(
                variables, *arguments(inputs), capture_intermediates=lambda *_: True, mutable=[COLLECTION]
            )
        return map_names(dict(named_values(state[COLLECTION])), mapping, config, inputs, others=False)

    return run


def named_values(intermediates: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Name the inputs and outputs of all calls; the first of several has the name of all of them, too.

    Args:
        intermediates: by module; those of a method are a tuple, one for each call.
        path: of the modules above, with a slash at its end.
    """
    for name, calls in intermediates.items():
        if isinstance(calls, Mapping):
            yield from named_values(calls, f"{path}{name}/")
            continue
        method, kind = name.removesuffix(INPUT), INPUT if name.endswith(INPUT) else OUTPUT
        place = (path.removesuffix("/") or CALL) if method == CALL else path + method
        for number, value in enumerate(calls, start=1):
            call = f"#{number}" if number > 1 else ""
            arrays = list(flattened(value))
            yield from ((f"{place}{kind}{part}{call}", array) for part, array in arrays)
            if arrays:
                yield place + kind.removesuffix(OUTPUT) + call, arrays[0][1]


def flattened(value: Any, part: str = "") -> Iterator[tuple[str, Any]]:
    """Name the arrays in nested values: ".1" is the second of a list, ".probs" that of a name."""
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from flattened(inner, f"{part}.{key}")
    elif hasattr(value, "shape"):
        yield part, value


def flax_variables(model: PegasusXForConditionalGeneration) -> dict[str, Any]:
    """Return a model's weights as variables of the paper's Flax module.

    Args:
        model: with a tied head, in float32 or float64.
    """
    from pegasusx_ref.checkpoint.flax.names import flax_name, flax_shape

    config, tree = model.config, dict[str, Any]()
    heads = {"encoder": config.encoder_attention_heads, "decoder": config.decoder_attention_heads}
    for name, tensor in model.state_dict().items():
        flax, array = flax_name(name), np.asarray(tensor, dtype=np.float32)
        if flax.endswith("/kernel"):
            array = array.T.reshape(flax_shape(flax, array.shape, heads[name.split(".")[0]]))
        *modules, last = flax.split("/")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[last] = array
    return {"params": tree}
