"""The workloads as transformers runs them, with the weights of this package's models."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.benchmarking.cases import COMPILED, Case
from pegasusx_ref.benchmarking.tasks.backends import run_python, total, training_step, with_gradients
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import ExtraError
from pegasusx_ref.model import PegasusXForConditionalGeneration

SCRIPT = """
import sys
from transformers import PegasusTokenizer, PegasusXForConditionalGeneration

tokenizer = PegasusTokenizer.from_pretrained(sys.argv[1])
model = PegasusXForConditionalGeneration.from_pretrained(sys.argv[1], dtype="float32")
ids = model.generate(**tokenizer(sys.stdin.read(), return_tensors="pt"))
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
"""


class TransformersWorkloads:
    """The workload of each kind of case except "core", prepared as in `BackendWorkloads`.

    Raises:
        ExtraError: transformers or torch is not installed.
    """

    def __init__(self, case: Case, name: str, device: str, folder: Path | None) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ExtraError(f"{error.name} is not installed: pip install transformers torch") from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.case, self.device, self.folder, self.is_compiled = case, device, folder, name == COMPILED
        self.torch, self.transformers, self.dtype = torch, transformers, getattr(torch, case.dtype)

    def model(self) -> Any:
        """Build a model with the same random weights as this package's."""
        config = self.case.config
        model = self.transformers.PegasusXForConditionalGeneration(self.transformers.PegasusXConfig(**config.to_dict()))
        weights = PegasusXForConditionalGeneration.from_random(config).state_dict()
        tensors = {f"model.{name}": self.torch.from_numpy(tensor) for name, tensor in weights.items()}
        model.load_state_dict(tensors, strict=False)  # without the tied copies
        return model.to(self.device, self.dtype).eval()

    def encoder(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the encoder over one text; the call returns hidden states (1, T, D)."""
        encoder = self.model().get_encoder()
        if self.is_compiled:
            encoder = self.torch.compile(encoder)

        def encode(ids_BT: np.ndarray) -> Any:
            with self.torch.inference_mode():
                return encoder(input_ids=self.torch.from_numpy(ids_BT).to(self.device)).last_hidden_state

        return lambda tokens: partial(encode, self.case.source_ids(tokens))

    def decoder(self) -> Callable[[int], Callable[[Callable[[], None]], Any]]:
        """Prepare a search; the call takes a function to call after each step, and returns token ids (1, L)."""
        from transformers.modeling_outputs import BaseModelOutput

        model = self.model()

        def search(states_BTD: np.ndarray, on_step: Callable[[], None]) -> Any:
            def processor(_: Any, scores: Any) -> Any:
                on_step()
                return scores

            # A new object for each search, which repeats the states for its beams in place.
            states = BaseModelOutput(self.torch.from_numpy(states_BTD).to(self.device, self.dtype))
            processors = self.transformers.LogitsProcessorList([processor])
            with self.torch.inference_mode():
                return model.generate(encoder_outputs=states, logits_processor=processors, **self.case.search_settings)

        return lambda tokens: partial(search, self.case.encoder_states(tokens))

    def texts(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare `generate` for a batch of texts; the call returns token ids (B, L)."""
        model = self.model()

        def generate(ids_BT: np.ndarray) -> Any:
            with self.torch.inference_mode():
                return model.generate(self.torch.from_numpy(ids_BT).to(self.device), **self.case.search_settings)

        return lambda tokens: partial(generate, self.case.source_ids(tokens))

    def start(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare a script that does what the command line does; the call returns when the process has ended."""
        return lambda tokens: partial(run_python, ["-c", SCRIPT, str(DEMO_CHECKPOINT)])

    def training(self) -> Callable[[int], Callable[[], Any]]:
        """Prepare the model in training mode, with layers that are computed again in the backward pass, as in ours."""
        model = self.model().float().train()
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable()
        return partial(training_step, with_gradients(model), self.case, self.case.dtype == "bfloat16")

    def load(self) -> Callable[[int], Callable[[], float]]:
        """Prepare loading the checkpoint; the call reads every number and returns their sum."""
        model_class = self.transformers.PegasusXForConditionalGeneration

        def load() -> float:
            with self.torch.inference_mode():
                model = model_class.from_pretrained(self.folder, dtype=self.dtype).to(self.device)
                return total(model.parameters())

        return lambda tokens: load
