"""The workloads as this package runs them on a backend; results stay on the device."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.golden.global_local import block_bounds
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.encoder import encoder
from pegasusx_ref.model.layers import embed
from pegasusx_ref.tracing import listen

SENTENCE = "This library reads and writes PNG images, and converts them to other formats."


class BackendWorkloads:
    """The workload of each kind of case; every method prepares one.

    A method returns a function that takes T, makes the inputs, and returns the call to be timed.

    Raises:
        BackendError: the backend cannot run here.
    """

    def __init__(self, case: Case, backend: str, device: str, folder: Path | None) -> None:
        self.case, self.folder = case, folder
        self.settings: dict[str, Any] = {"backend": backend, "device": device, "dtype": case.dtype}
        self.ops: Any = get_backend(backend, device, case.dtype)  # its library is imported now, not in the timed call

    def encoder(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the encoder over one text; the call returns hidden states (1, T, D)."""
        model = PegasusXForConditionalGeneration.from_random(self.case.config, **self.settings)

        def encode(ids_BT: np.ndarray) -> Any:
            x_BTD = embed(model.ops, model.weights, model.config, "encoder", model.ops.asarray(ids_BT), start=0)
            return encoder(model.ops, model.weights.at("encoder"), model.config, x_BTD, None)[0]

        return lambda tokens: partial(encode, self.case.source_ids(tokens))

    def decoder(self) -> Callable[[int], Callable[[Callable[[], None]], Any]]:
        """Prepare a search; the call takes a function to call after each step, and returns token ids (1, L)."""
        model = PegasusXForConditionalGeneration.from_random(self.case.config, **self.settings)

        def search(states_BTD: np.ndarray, on_step: Callable[[], None]) -> Any:
            with listen(lambda *_: on_step(), "lm_head"):
                return model.generate(encoder_outputs=(states_BTD,), **self.case.search_settings)

        return lambda tokens: partial(search, self.case.encoder_states(tokens))

    def texts(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare `generate` for a batch of texts; the call returns token ids (B, L)."""
        model = PegasusXForConditionalGeneration.from_random(self.case.config, **self.settings)
        return lambda tokens: partial(model.generate, self.case.source_ids(tokens), **self.case.search_settings)

    def start(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the command line with the embedded checkpoint; the call returns when the process has ended."""
        command = ["-m", "pegasusx_ref", "summarize", "-", "--backend", self.settings["backend"], "--no-progress"]
        return lambda tokens: partial(run_python, command)

    def load(self) -> Callable[[int], Callable[[], float]]:
        """Prepare loading the checkpoint; the call reads every number and returns their sum.

        Reading them counts because a memory-mapped file is read on access only.
        """

        def load() -> float:
            model = PegasusXForConditionalGeneration.from_pretrained(self.folder or "", **self.settings)
            return total({id(tensor): tensor for tensor in model.weights.values()}.values())  # tied weights once

        return lambda tokens: load

    def training(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the torch module in training mode; the call adds a text's gradients to those that are there."""
        module = PegasusXForConditionalGeneration.from_random(self.case.config, **self.settings).to_torch_module()
        return partial(training_step, with_gradients(module.train()), self.case, False)

    def core(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the attention over the blocks of one staggered layer and the global tokens."""
        config, H = self.case.config, self.case.config.encoder_attention_heads

        @cache
        def prepare(tokens: int) -> Callable[[], Any]:
            rng = np.random.default_rng(0)
            lengths = [tokens] * 3 + [config.num_global_tokens] * 3  # queries, keys and values of both
            shapes = [(1, length, H, config.d_model // H) for length in lengths]
            streams = [self.ops.asarray(rng.standard_normal(s, dtype=np.float32)).swapaxes(1, 2) for s in shapes]
            blocks = block_bounds(tokens, config.block_size, staggered=True)
            return partial(self.ops.global_local_attention, *streams, None, blocks)

        return prepare


def run_python(arguments: list[str]) -> None:
    """Run Python with a sentence as its input."""
    command = [sys.executable, *arguments]
    subprocess.run(command, input=SENTENCE, text=True, check=True, capture_output=True)


def with_gradients(module: Any) -> Any:
    """Return a torch module after giving its parameters gradients of 0, which steps add to."""
    for parameter in module.parameters():
        parameter.grad = parameter.detach().clone().zero_()  # in memory that is there, unlike that of new zeros
    return module


def training_step(module: Any, case: Case, autocasts: bool, tokens: int) -> Callable[[], None]:
    """Prepare a step of a torch module.

    Args:
        module: in training mode, with gradients; its result has a loss.
        case: for the texts.
        autocasts: whether torch chooses where bfloat16 is used.
        tokens: T.
    """
    import torch

    device = next(module.parameters()).device
    ids, labels = (torch.from_numpy(array).to(device) for array in (case.source_ids(tokens), case.labels()))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocasts):
            loss = module(input_ids=ids, labels=labels).loss
        loss.backward()

    return step


def total(tensors: Any) -> float:
    """Add up all numbers of some tensors, always with NumPy, so that implementations differ in loading only."""
    return sum(float(to_numpy(tensor).sum(dtype=np.float32)) for tensor in tensors)
