"""The examples of transformers' PEGASUS-X page, run here: only the import and the model folder are others.

Source: docs/source/en/model_doc/pegasus_x.md of transformers, where they load google/pegasus-x-large in float32. Their
text is far from what the embedded checkpoint was trained for; what it says of photosynthesis is not tested.
"""

import subprocess
import sys
import types
from typing import Any

import pytest

from pegasusx_ref import DEMO_CHECKPOINT, BackendError, PegasusXForConditionalGeneration

pytestmark = pytest.mark.slow

TEXT = (
    "Plants are among the most remarkable and essential life forms on Earth, possessing a unique ability to "
    "produce their own food through a process known as photosynthesis. This complex biochemical process is "
    "fundamental not only to plant life but to virtually all life on the planet.\n"
    "Through photosynthesis, plants capture energy from sunlight using a green pigment called chlorophyll, "
    "which is located in specialized cell structures called chloroplasts. In the presence of light, plants "
    "absorb carbon dioxide from the atmosphere through small pores in their leaves called stomata, and take in "
    "water from the soil through their root systems.\n"
    "These ingredients are then transformed into glucose, a type of sugar that serves as a source of chemical "
    "energy, and oxygen, which is released as a byproduct into the atmosphere. The glucose produced during "
    "photosynthesis is not just used immediately; plants also store it as starch or convert it into other "
    "organic compounds like cellulose, which is essential for building their cellular structure.\n"
    "This energy reserve allows them to grow, develop leaves, produce flowers, bear fruit, and carry out "
    "various physiological processes throughout their lifecycle."
)

PIPELINE = """
import torch
from pegasusx_ref import pipeline

pipeline = pipeline(
    task="summarization",
    model=FOLDER,
    torch_dtype=torch.float32,
    device=0
)
result = pipeline(TEXT)
"""

MODEL = """
import torch
from pegasusx_ref import PegasusTokenizer as AutoTokenizer, PegasusXForConditionalGeneration as AutoModelForSeq2SeqLM

tokenizer = AutoTokenizer.from_pretrained(
    FOLDER
)
model = AutoModelForSeq2SeqLM.from_pretrained(
    FOLDER,
    torch_dtype=torch.float32,
    device_map="auto",
)

input_text = TEXT
input_ids = tokenizer(input_text, return_tensors="pt").to("cuda")

output = model.generate(**input_ids, cache_implementation="static")
result = tokenizer.decode(output[0], skip_special_tokens=True)
"""

QUANTIZED = """
import torch
from pegasusx_ref import (
    BitsAndBytesConfig, PegasusXForConditionalGeneration as AutoModelForSeq2SeqLM, PegasusTokenizer as AutoTokenizer
)

quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_quant_type="nf4"
)
model = AutoModelForSeq2SeqLM.from_pretrained(
    FOLDER,
    torch_dtype=torch.bfloat16,
    device_map="auto",
    quantization_config=quantization_config
)

tokenizer = AutoTokenizer.from_pretrained(
    FOLDER
)
input_text = TEXT
input_ids = tokenizer(input_text, return_tensors="pt").to("cuda")

output = model.generate(**input_ids, cache_implementation="static")
result = tokenizer.decode(output[0], skip_special_tokens=True)
"""


def result_of(example: str) -> Any:
    names = {"FOLDER": str(DEMO_CHECKPOINT), "TEXT": TEXT}
    exec(example, names)
    return names["result"]


def test_pipeline_model_and_command_line_write_the_same(transformers: types.ModuleType) -> None:
    (summary,) = result_of(PIPELINE)
    assert summary["summary_text"].strip()
    assert result_of(MODEL) == summary["summary_text"]
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", "--model", str(DEMO_CHECKPOINT), "--device", "0"]
    piped = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True, timeout=120)
    assert piped.stdout == summary["summary_text"] + "\n"


def test_newlines_are_spaces_to_the_tokenizer(transformers: types.ModuleType) -> None:
    """The command line's example has spaces where the others have newlines."""
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", "--no-progress", "--model", str(DEMO_CHECKPOINT)]
    outputs = {
        subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=120).stdout
        for text in (TEXT, TEXT.replace("\n", " "))
    }
    assert len(outputs) == 1


def test_the_page_s_bfloat16_runs_on_the_torch_backend(transformers: types.ModuleType) -> None:
    """Later versions of the page ask for bfloat16, which NumPy's backend refuses by name."""
    example = PIPELINE.replace("torch_dtype=torch.float32", "dtype=torch.bfloat16")
    with pytest.raises(BackendError, match="backend 'numpy' does not compute in 'bfloat16'"):
        result_of(example)
    (summary,) = result_of(example.replace("device=0", 'device=0, backend="torch"'))
    assert summary["summary_text"].strip()


def test_the_page_s_4_bits_run_on_every_cpu_backend(transformers: types.ModuleType) -> None:
    """NumPy's backend has no bfloat16, which is a wish there; torch's computes in it."""
    with pytest.warns(
        UserWarning, match="backend 'numpy' does not compute in bfloat16: the quantized model computes in"
    ):
        summary = result_of(QUANTIZED)
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, quantization="nf4")
    assert summary == result_of(
        MODEL.replace("    FOLDER,\n    torch", '    FOLDER,\n    quantization="nf4",\n    torch')
    )
    assert model.weights["encoder.layers.0.fc1.weight"].dtype == "nf4"
    assert result_of(QUANTIZED.replace('device_map="auto"', 'device_map="auto", backend="torch"')).strip()
