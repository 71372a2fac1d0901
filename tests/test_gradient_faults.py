"""`verify` flags each wrong gradient of the suite first, and nothing in the backward pass of stock transformers."""

import copy
from typing import Any

import numpy as np
import pytest
from fault_table import CONFIG, INPUTS, deterministic_torch, right_models
from faults.gradients import GRADIENT_FAULTS, GradientFault
from faults.injection import torch

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.verification import Report, verify
from pegasusx_ref.verification.candidates.transformers_gradients import GradientCapture

pytestmark = pytest.mark.unwatched

_rng = np.random.default_rng(1)
LABELS = _rng.integers(106, 256, (3, 15))
LABELS[:, 3], LABELS[0, 8:], LABELS[1, 5:7] = 0, -100, LABELS[1, 4]
IDS: dict[str, Any] = INPUTS | {"labels": LABELS}
IDS["input_ids"] = np.where(np.arange(29) % 5 == 4, 0, IDS["input_ids"])
IDS["input_ids"][:, 1:3] = IDS["input_ids"][:, :1]  # a token that occurs more than once
NO_FAULT = GradientFault("no fault", "", lambda right, _: right)


class FaultyCapture(GradientCapture):
    """A backward pass of transformers in which one gradient is computed wrongly; the ones after it follow from it."""

    def __init__(self, fault: GradientFault, model: Any, config: PegasusXConfig, inputs: Any) -> None:
        self.fault, self.ids = fault, inputs
        for name, parameter in model.named_parameters():
            if f"{name.removeprefix('model.')}.grad" == fault.where:
                parameter.register_hook(self._wrong_parameter)
        super().__init__(model, config, inputs)
        if ".local." in fault.where:
            self._between[fault.where] = fault.change(self(fault.where), self).astype(np.float32)

    def __call__(self, name: str) -> np.ndarray:
        """Return a tensor or a gradient that has been computed."""
        return self._between[name].astype(np.float64)

    def weight(self, name: str) -> np.ndarray:
        """Return a parameter."""
        parameter: Any = self._model.get_parameter(f"model.{name}")
        found: np.ndarray = parameter.detach().double().numpy()
        return found

    def _keep(self, name: str, tensor: Any) -> None:
        if f"{name}.grad" == self.fault.where:
            tensor.register_hook(lambda right: self._wrong(name, right))
        super()._keep(name, tensor)

    def _wrong(self, name: str, right: Any) -> Any:
        """Compute a wrong gradient in the layout of transformers."""
        (own, unpadded), *_ = self._unpadded.tensors(name.replace(".scores", ".probs"), right.double().numpy())
        wrong = torch.from_numpy(np.ascontiguousarray(self.fault.change(unpadded, self)))
        if own.endswith(".context"):
            return wrong.transpose(1, 2).reshape(right.shape).to(right.dtype)
        found = right.clone()
        if ".global." in name:  # keys of tokens may be padded
            found[..., np.r_[:4, 4 + self._unpadded._rows(name, right.shape[3] - 4)]] = wrong.to(right.dtype)
        elif ".self_attn.tokens." in name:
            found[:, self._unpadded._rows(name, right.shape[1])] = wrong.to(right.dtype)
        else:
            found[:, : wrong.shape[1]] = wrong.to(right.dtype)
        return found

    def _wrong_parameter(self, right: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(self.fault.change(right.double().numpy(), self))).to(right.dtype)


def verified(fault: GradientFault, dtype: str) -> Report:
    """Verify transformers with a fault in its backward pass."""
    golden, hf_model = right_models(tuple(fault.config.items()), dtype)
    config = CONFIG.replace(**fault.config)
    inputs = IDS | {"label_smoothing": fault.label_smoothing}

    def candidate(arrays: Any) -> Any:
        with deterministic_torch():
            model = copy.deepcopy(hf_model).requires_grad_(True)
            return FaultyCapture(fault, model, config, arrays)

    return verify(golden, candidate, inputs, dtype, gradients=True)


def test_the_suite_is_large() -> None:
    assert len(GRADIENT_FAULTS) >= 60
    assert len({fault.name for fault in GRADIENT_FAULTS}) == len(GRADIENT_FAULTS)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_without_a_fault_everything_passes(dtype: str) -> None:
    for fault in {(str(fault.config), fault.label_smoothing): fault for fault in GRADIENT_FAULTS}.values():
        report = verified(NO_FAULT._replace(config=fault.config, label_smoothing=fault.label_smoothing), dtype)
        assert report.passed, report
        assert report.coverage.is_complete, report


@pytest.mark.slow
@pytest.mark.parametrize("fault", GRADIENT_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_flagged_first_and_alone(fault: GradientFault) -> None:
    report = verified(fault, "float32")
    assert report.first_failure is not None
    assert report.first_failure.name == fault.where
    assert [check.name for check in report.table if check.verdict == "fail"] == [
        fault.where
    ] or ".local." in fault.where
