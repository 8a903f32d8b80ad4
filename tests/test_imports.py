"""Importing the package prints nothing, and loads no library that only a part of it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


#: With a None in its place, importing a library fails: those of data sets, the command line and servers.
SCRIPT_WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("datasets", "jsonargparse", "requests", "tenacity", "torchdata"))
import xtoken_pl.callbacks, xtoken_pl.plan.moments
from xtoken_pl import BytePrefixKL, MultiTeacherDistillModule, OptimizerRecipe, Rollouts, Student, Teacher
from xtoken_pl.data import Windower, collate
print("imported")
"""


@pytest.mark.slow  # a process of its own
def test_the_module_needs_no_library_of_data_sets_command_line_and_servers() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT_WITHOUT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr
