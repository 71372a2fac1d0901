"""What a folder holds instead of the weights that are read: another program's checkpoint, an archive, a parent."""

import re
from itertools import islice
from pathlib import Path

from pegasusx_ref.checkpoint.file_names import CONFIG
from pegasusx_ref.errors import shown

MAX_ENTRIES = 10_000
FLAX = "Flax weights: convert them with `pegasusx-ref convert SOURCE DESTINATION`"
# The first kind whose pattern one of the folder's entries matches, and what to do about it.
KINDS = (
    (r"zero_to_fp32\.py|global_step\d+|.*_(optim|model)_states\.pt", "shards of DeepSpeed ZeRO: run "
     "`python zero_to_fp32.py . pytorch_model.bin` in it"),
    (r".*\.distcp|pytorch_model_fsdp_\d+", "a distributed checkpoint of torch: run `accelerate merge-weights` or "
     "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin`"),
    (r"flax_model.*|.*\.msgpack|checkpoint_\d+", FLAX),
    (r"tf_model.*\.h5|.*\.ckpt.*\.(index|meta)|saved_model\.pb", "TensorFlow weights: load them in transformers 4 with "
     "from_tf=True and save them with save_pretrained"),
    (r".*\.onnx", "an ONNX graph, without the model's configuration: use the checkpoint that it was made from"),
    (r".*\.gguf", "a GGUF file of llama.cpp, which has no PEGASUS-X: use the checkpoint that it was made from"),
    (r"adapter_model\.(safetensors|bin)", "a PEFT adapter without its adapter_config.json: add that file"),
    (r".*\.(zip|tar|tgz|gz|xz|bz2|7z)", "an archive: unpack it and pass the folder with config.json"),
    (r".*\.(safetensors|bin|pt|pth|ckpt)", "weights under another name: rename them to model.safetensors or "
     "pytorch_model.bin, or their index"),
)  # fmt: skip
# Files of a training program beside the weights; none of them holds a model.
TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|trainer_state)\.(bin|pt|pth|json)")
STEP = re.compile(r"checkpoint-(\d+)")


def foreign_content(folder: Path) -> str | None:
    """Recognize what a folder without weights holds instead.

    Args:
        folder: the folder.

    Returns:
        What it is and what to do about it; None where nothing is known.
    """
    try:
        names = sorted(path.name for path in islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return None
    steps = sorted((int(match[1]), name) for name in names if (match := STEP.fullmatch(name)))
    if steps:
        return f"it holds the checkpoints of a training run: pass one, such as {folder / steps[-1][1]}"
    parts = [
        name for name in names if (folder / name / CONFIG).is_file() and any((folder / name).glob("*.safetensors"))
    ]
    if parts:
        return (
            f"its folders hold checkpoints ({', '.join(map(shown, parts[:3]))}): pass one, such as {folder / parts[0]}"
        )
    for pattern, kind in KINDS:
        found = [name for name in names if re.fullmatch(pattern, name, re.DOTALL) and not TRAINING.fullmatch(name)]
        if found:
            return f"{shown(found[0])} is {kind}"
    if found := [name for name in names if TRAINING.fullmatch(name)]:
        return f"{shown(found[0])} is a file of a training run, without the model: save it with save_pretrained"
    return None
