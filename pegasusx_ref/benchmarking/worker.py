"""The process that measures one implementation: JSON lines in, JSON lines out, one repetition at a time.

The first line says what to make ready. Every later one asks for a repetition. Where the lines end, so does the process.
"""

import json
import os
import sys
from typing import IO, Any

from pegasusx_ref.benchmarking.cases import MACHINE, Case
from pegasusx_ref.benchmarking.facts import torch_facts
from pegasusx_ref.benchmarking.memory import Meter, meter
from pegasusx_ref.benchmarking.tasks import Task, task_of
from pegasusx_ref.errors import PegasusXError

WARM_UP_TOKENS = 1024  # on a CPU; what a library sets up at its first use does not depend on the length


def main() -> None:
    """Serve the process that started this one."""
    requests, replies = sys.stdin, own_stdout()

    def reply(entries: dict[str, Any]) -> None:
        print(json.dumps(entries), file=replies, flush=True)

    try:
        wish = json.loads(requests.readline())
        if wish.get("facts"):
            reply({"facts": torch_facts()})
            return
        case, task, memory = made_ready(wish)
        reply({"ready": True})
        for _ in requests:
            memory.start()
            reply({"seconds": task(case.tokens), "memory": memory.peak()})
    except Exception as error:  # whatever a library raises costs this implementation alone
        reply({"error": described(error)})
        raise SystemExit(1) from error


def own_stdout() -> IO[str]:
    """Keep stdout for the replies: what libraries print there, from C too, goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def made_ready(wish: dict[str, Any]) -> tuple[Case, Task, Meter]:
    """Build and warm up what is wished for: "case", "implementation", "device", "folder"."""
    case, implementation, device = Case.from_dict(wish["case"]), wish["implementation"], wish["device"]
    task = task_of(case, implementation, device, wish["folder"])
    # From here on: a second copy of the weights, as a library may make one at its first use, is part of what it takes.
    memory = Meter(lambda: None, lambda: None) if implementation == MACHINE else meter(implementation, device)
    # On a GPU it is quick, and what it sets up does depend on the length.
    task(case.tokens if device.startswith("cuda") else min(case.tokens, WARM_UP_TOKENS))
    return case, task, memory


def described(error: BaseException) -> str:
    """Say in a line what was raised."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, PegasusXError) else f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    main()
