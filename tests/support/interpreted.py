"""Checks of Triton kernels on a CPU, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from forked import ENVIRONMENT, ROOT

__all__ = ["failures_of"]

CODE = """
import importlib, json, sys, traceback
from unittest.mock import MagicMock
sys.path[:0] = {paths!r}
# Networks are not checked, and their library takes longer to import than all else together.
sys.modules["timm"] = sys.modules["timm.models"] = MagicMock()
import torch
from moleflow.model.runtime import fused
fused._operators_agree = lambda dtype: False  # plain weights, as on a GPU
checks = vars(importlib.import_module({module!r}))
found = {{}}
for call in {calls!r}:
    torch.manual_seed(0)
    try:
        eval(call, checks)
        found[call] = ""
    except Exception:
        found[call] = traceback.format_exc()
print(json.dumps(found))
"""


def failures_of(checks: Path, calls: Sequence[str]) -> dict[str, str]:
    """The traceback of each call of functions in the module ``checks``; an empty one if it raised nothing.

    All in one new process: the interpreter is chosen when Triton is imported, and a forked process may have it already.
    The interpreter takes some milliseconds for every program of a launch, hardly more for a large one, and multiplies
    no bf16 matrices.
    """
    paths = [str(ROOT), str(ROOT / "tests" / "support"), str(checks.parent)]
    code = CODE.format(paths=paths, module=checks.stem, calls=list(calls))
    environment = os.environ | ENVIRONMENT | {"TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])
