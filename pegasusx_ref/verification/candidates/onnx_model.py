"""Capture of the intermediate values of an ONNX model, run by onnxruntime. [spec 16]"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.errors import ExtraError, InputError, shown
from pegasusx_ref.files.reading import as_path, reading
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import INPUTS, MASKS, Inputs
from pegasusx_ref.verification.candidates.mapping import find, map_names
from pegasusx_ref.verification.candidates.module_values import unknown
from pegasusx_ref.verification.candidates.name_maps import Mappings, NameMap, nearest, read_mapping
from pegasusx_ref.verification.candidates.sources import Candidate

DATA_FOLDER = "session.model_external_initializers_file_folder_path"  # a setting of onnxruntime


def from_onnx(
    path: str | Path,
    mapping: NameMap,
    config: PegasusXConfig | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Candidate:
    """Return a candidate that runs an ONNX model by onnxruntime on the CPU. [spec 16.23]

    The values that the mapping names become outputs of the graph; the file stays as it is.

    Args:
        path: the .onnx file; tensors outside of it are found beside it.
        mapping: as in `from_dump`, from trace points to names of values: outputs of nodes, and initializers.
        config: the model's configuration, as in `from_dump`.
        inputs: the model's names of input_ids, attention_mask, decoder_input_ids and decoder_attention_mask, where they
            are others: {"input_ids": "tokens"}.

    Raises:
        ExtraError: onnx or onnxruntime is not installed.
        InputError: the file is no ONNX model, or the mapping names a value that there is not, or inputs name none of
            a run; when it runs, the model has other inputs.
    """
    path = as_path(path)
    try:
        import onnx  # type: ignore[import-not-found,unused-ignore]
        import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ExtraError(f"ONNX models need {error.name}: pip install 'pegasusx-ref[onnx]'") from None
    for name in inputs or {}:
        if name not in INPUTS:
            raise InputError(f"inputs: {shown(name)} is not one of {', '.join(INPUTS)}{nearest(name, INPUTS)}")
    mappings, ours = read_mapping(mapping), {theirs: name for name, theirs in (inputs or {}).items()}
    with reading(path, "an ONNX model", InputError):
        model = onnx.load(path, load_external_data=False)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        values = {name for node in model.graph.node for name in node.output if name}
        wanted = set(wanted_names(mappings, dict.fromkeys([*values, *constants])))
        outputs = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted & values - outputs))
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(DATA_FOLDER, str(path.parent))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kept = {
            name: onnx.numpy_helper.to_array(constants[name], base_dir=str(path.parent))
            for name in wanted & constants.keys()
        }
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in types.items() if name not in constants}

    def run(arrays: Inputs) -> Mapping[str, np.ndarray]:
        feeds = {name: feed(ours.get(name, name), dtype, arrays) for name, dtype in dtypes.items()}
        with reading(path, "runnable on these inputs", InputError):
            found = session.run(sorted(wanted & values), feeds) if wanted & values else []
        tensors: dict[str, Any] = dict(zip(sorted(wanted & values), found, strict=True))
        return map_names(tensors | kept, mappings, config, arrays, others=False)

    return run


def wanted_names(mapping: Mappings, values: Mapping[str, Any]) -> Iterator[str]:
    """List the values of a graph that a mapping names."""
    for group in mapping.lines:
        found = [name for line in group for source in line.sources for _, name in find(source, values)]
        if not found and not mapping.optional:
            raise unknown("value", group[0].sources[0], values)
        yield from found


def feed(name: str, dtype: np.dtype[Any], arrays: Inputs) -> np.ndarray:
    """Return an input of the model: ids or a mask; a mask that the run has not is all ones."""
    if name in MASKS.values() and arrays.get(name) is None:
        ids = next(ids for ids, mask in MASKS.items() if mask == name)
        return np.ones(np.shape(arrays[ids]), dtype)
    if arrays.get(name) is None:
        raise InputError(f"the ONNX model has an input {shown(name)}: pass its meaning as inputs={{'input_ids': …}}")
    return np.asarray(arrays[name], dtype)
