"""The models that are measured: ours on a backend, transformers' with the same weights."""

from typing import Any

from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.errors import ExtraError
from pegasusx_ref.model import PegasusXForConditionalGeneration


def our_model(case: Case, backend: str, device: str) -> PegasusXForConditionalGeneration:
    """Make our model with random weights.

    Raises:
        BackendError: the backend cannot run here.
    """
    return PegasusXForConditionalGeneration.from_random(case.config, backend=backend, device=device, dtype=case.dtype)


def their_model(case: Case, device: str) -> Any:
    """Make transformers' model with the weights that ours has.

    Raises:
        ExtraError: transformers or torch is not installed.
    """
    torch, transformers = their_libraries()
    model = transformers.PegasusXForConditionalGeneration(transformers.PegasusXConfig(**case.config.to_dict()))
    weights = PegasusXForConditionalGeneration.from_random(case.config).state_dict()
    tensors = {f"model.{name}": torch.from_numpy(tensor) for name, tensor in weights.items()}
    model.load_state_dict(tensors, strict=False)  # tied copies are not among them
    return model.to(device, getattr(torch, case.dtype)).eval()


def their_libraries() -> tuple[Any, Any]:
    """Load torch and transformers, which then says only what is wrong.

    Raises:
        ExtraError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ExtraError(f"{error.name} is not installed: pip install transformers torch") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers
