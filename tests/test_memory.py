"""The encoder's memory at 16,384 tokens; beyond the weights it does not depend on the number of layers."""

import subprocess
import sys

import pytest

from pegasusx_ref.benchmarking.memory import can_reset_peak

pytestmark = pytest.mark.slow

# In its own process: other resident memory would count.
ENCODE = """
import sys
import numpy as np
from pegasusx_ref import PegasusXConfig, PegasusXModel
from pegasusx_ref.benchmarking.memory import memory_meter

config = PegasusXConfig.preset("large", encoder_layers=2, decoder_layers=0, activation_function=sys.argv[1])
model = PegasusXModel.from_random(config, backend=sys.argv[2])
ids = np.random.default_rng(0).integers(106, config.vocab_size, (1, 16384))
model.encode(ids[:, :64])  # libraries allocate memory at their first use, which is not the encoder's
meter = memory_meter("numpy", "cpu")
meter.reset()
model.encode(ids)
print(meter.peak())
"""


@pytest.mark.skipif(not can_reset_peak(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("backend", "activation"), [("numpy", "relu"), ("numpy", "gelu"), ("torch", "gelu")])
def test_the_large_shape_encodes_16384_tokens_within_800_mib(backend: str, activation: str) -> None:
    """Two layers, one of them staggered; benchmarks/results has the figure of all sixteen."""
    if backend == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    command = [sys.executable, "-c", ENCODE, activation, backend]
    mib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20
    assert mib <= 800, mib
    assert mib >= 3 * 64, f"{mib} MiB are less than three hidden states: the measurement is wrong"
