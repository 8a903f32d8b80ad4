"""Importing the package prints nothing, and loads no library of adapters and quantization."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import pkgutil, sys
import xtoken_pl, xtoken_pl.callbacks
for module in pkgutil.walk_packages(xtoken_pl.__path__, "xtoken_pl."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
sys.exit(str({"peft", "bitsandbytes"} & sys.modules.keys() or ""))
"""


def test_importing_every_module_prints_nothing_and_leaves_peft_and_bitsandbytes_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr.strip() == ""
