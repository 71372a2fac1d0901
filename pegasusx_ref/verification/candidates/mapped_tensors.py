"""A candidate's tensors under the names of the trace points, each read on access. [spec 16]"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError, reason, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.inputs import MAX_TOKENS
from pegasusx_ref.verification.candidates.array_steps import JOINS, STEPS, WrongSize, placeholder
from pegasusx_ref.verification.candidates.inputs import INPUTS, Dimensions, Inputs
from pegasusx_ref.verification.candidates.read_on_access import ReadOnAccess

MAX_NAMES = 2**20  # of trace points that a mapping may produce
MAX_SOURCE = 64  # size of what a tensor is cut from, in largest tensors of a run: blocks, layers or projections in one
MAX_KEPT = 3  # tensors that several trace points are cut from: scores, probabilities and context of a layer


class OtherBlocks(InputError):
    """A tensor whose padding or blocks are not those of the model, or that is too large for the run."""


class Source(NamedTuple):
    """Where the tensor of a trace point comes from.

    Attributes:
        names: the candidate's own names.
        steps: by name, with their arguments; that of "add" is a name of the candidate.
    """

    names: tuple[str, ...]
    steps: Mapping[str, Any]


class MappedTensors(ReadOnAccess):
    """Tensors by trace-point name, each read on access; shapes are known before.

    Args:
        tensors: by their own names.
        config: the model's configuration, or None.
        inputs: of the run, or None where they are among the tensors.
        mapping: the name of the mapping, for messages.
    """

    def __init__(
        self, tensors: Mapping[str, Any], config: PegasusXConfig | None, inputs: Inputs | None, mapping: str
    ) -> None:
        self._tensors, self._config, self._inputs, self._mapping = tensors, config, inputs, mapping
        self._sources: dict[str, Source] = {}
        self._names = self._sources
        self._uses: Counter[str] = Counter()
        self._kept: dict[str, np.ndarray] = {}

    @property
    def used(self) -> set[str]:
        """The candidate's own names of the tensors that are mapped."""
        return set(self._uses)

    def add(self, name: str, source: Source) -> None:
        """Add a tensor.

        Raises:
            InputError: it is there already, or there are too many.
        """
        if name in self._sources:
            first, second = (shown(names[0]) for names in (self._sources[name].names, source.names))
            raise InputError(f"{name} has two sources, {first} and {second}: keep one")
        if len(self._sources) == MAX_NAMES:
            raise InputError(f"more than {MAX_NAMES:,} tensors")
        self._sources[name] = source
        self._uses.update([*source.names, *(argument for step, argument in source.steps.items() if step == "add")])

    def __getitem__(self, name: str) -> np.ndarray:
        if name in INPUTS and max(map(math.prod, (self.shape(name), *self.source_shapes(name)))) > MAX_TOKENS:
            raise InputError(f"{name} has shape {self.shape(name)}: at most {MAX_TOKENS:,} ids or masks are read")
        return self._value(name, self._read)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it, where its file can tell."""
        return self._value(name, self._placeholder).shape

    def source_shapes(self, name: str) -> list[tuple[int, ...]]:
        """Return the shapes of what steps make a tensor from; a small compressed file may hold large ones."""
        names, steps = self._sources[name]
        added = [argument for step, argument in steps.items() if step == "add"]
        return [self._placeholder(theirs).shape for theirs in (*names, *added)] if steps else []

    def check_size(self, name: str, max_size: int) -> None:
        """Check that a tensor can be one of a run, before anything is read.

        Args:
            name: of the trace point.
            max_size: elements of the largest tensor of the run.

        Raises:
            OtherBlocks: it is larger, or what it is made from is much larger.
        """
        if math.prod(shape := self.shape(name)) > max_size:
            raise OtherBlocks(f"{name}: shape {shape}: no tensor of this run has more than {max_size:,} numbers")
        for shape in self.source_shapes(name):
            if math.prod(shape) > MAX_SOURCE * max_size:
                raise OtherBlocks(
                    f"{name}: it is made from a tensor of shape {shape}: at most {MAX_SOURCE * max_size:,} numbers are "
                    f"read, {MAX_SOURCE:,} times those of the largest tensor of this run"
                )

    def dimensions(self, name: str) -> Dimensions:
        """Return the sizes of a trace point's dimensions, as far as they are known."""
        return Dimensions(name, self._config, self._input_shape)

    def _value(self, name: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
        names, steps = self._sources[name]
        arrays = [read(theirs) for theirs in names]
        value: Any = arrays if next(iter(steps), None) in JOINS else arrays[0]
        for step, argument in steps.items():
            operand = read(argument) if step == "add" else argument
            shape = arrays[0].shape if value is arrays else value.shape
            try:
                value = STEPS[step](value, operand, self.dimensions(name))
            except Exception as error:
                problem = (
                    f"{name}: {step} = {shown(argument)} does not fit {shown(names[0])} of shape {tuple(shape)}: "
                    f"{reason(error)}"
                )
                if isinstance(error, WrongSize):
                    raise OtherBlocks(problem) from None
                raise InputError(f"{self._mapping}: {problem}") from None
        return np.asarray(value)

    def _read(self, theirs: str) -> np.ndarray:
        if theirs in self._kept:
            return self._kept[theirs]
        with reading(f"tensor {shown(theirs)}", "readable", InputError):
            tensor = to_numpy(self._tensors[theirs])
        if tensor.dtype == np.dtype("V2"):
            raise InputError(f"tensor {shown(theirs)}: npz has no bfloat16; save float32, or a safetensors file")
        if self._uses[theirs] > 1:
            self._kept[theirs] = tensor
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return tensor

    def _placeholder(self, theirs: str) -> np.ndarray:
        with reading(f"tensor {shown(theirs)}", "readable", InputError):
            if hasattr(self._tensors, "shape_of"):  # a file that tells
                return placeholder(self._tensors.shape_of(theirs))
            tensor = self._tensors[theirs]
            return placeholder(getattr(tensor, "shape", None) or to_numpy(tensor).shape)

    def _input_shape(self, name: str) -> tuple[int, ...] | None:
        if self._inputs is not None and self._inputs.get(name) is not None:
            return np.shape(self._inputs[name])
        return self.shape(name) if name in self._sources else None
