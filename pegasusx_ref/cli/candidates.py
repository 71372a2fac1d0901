"""The implementations that ``verify --against`` builds: our backends, and transformers."""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.checkpoint.location import Location
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.quantization import TABLES
from pegasusx_ref.verification import Candidate, from_backend, from_transformers


def build_candidate(
    against: str, place: Location, reference: PegasusXForConditionalGeneration, weights: dict[str, Any], dtype: str
) -> Candidate:
    """Build the implementation to verify.

    Raises:
        UsageError: transformers or torch is not installed.
        BackendError: the backend is unavailable, or lacks this dtype.
    """
    if against != "transformers":
        ops = get_backend(against, dtype=dtype)
        return from_backend(PegasusXForConditionalGeneration(reference.config, weights, ops), layerwise=True)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(
            f"--against transformers needs {error.name}: pip install transformers torch, or check our own backend with "
            "--against numpy, which needs neither"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = partial(
        transformers.PegasusXForConditionalGeneration.from_pretrained,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
    )
    if any(isinstance(tensor, QuantizedMatrix) for tensor in weights.values()):
        return from_transformers(load_quantized(load, reference, getattr(torch, dtype)))
    theirs: Any = load(place.folder)
    if place.adapter is not None:
        try:
            import peft
        except ImportError:
            raise UsageError("--against transformers needs peft for an adapter: pip install peft") from None
        theirs = peft.PeftModel.from_pretrained(theirs, place.adapter).merge_and_unload()
    return from_transformers(theirs.eval())


def load_quantized(load: Callable[[str], Any], reference: PegasusXForConditionalGeneration, dtype: Any) -> Any:
    """Load the bits of a model into transformers; quantized there, some scales of double quantization would differ.

    Args:
        load: `from_pretrained` of transformers.
        reference: the model.
        dtype: of torch; what transformers computes in.

    Raises:
        UsageError: bitsandbytes or accelerate is not installed, or an embedding is quantized.
    """
    if any(isinstance(reference.weights.get(name), QuantizedMatrix) for name in TABLES):
        raise UsageError("--against transformers does not read a quantized embedding: omit --quantize-embedding")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401 - transformers needs it
        import bitsandbytes
    except ImportError as error:
        raise UsageError(
            f"--against transformers needs {error.name} for quantized weights: pip install bitsandbytes accelerate"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        theirs = load(folder)
    for parameter in theirs.parameters():
        if parameter.is_floating_point():  # transformers keeps the dtypes of a quantized checkpoint
            parameter.data = parameter.data.to(dtype)
    for module in theirs.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):  # its kernel for CPUs computes in bfloat16
            module.support_avx512bf16_for_cpu = dtype.itemsize == 2
    return theirs.eval()
