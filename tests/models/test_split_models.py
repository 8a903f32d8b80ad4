"""Models that are split over processes have the loss and the gradient of whole ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import split_models

#: All with a plan that is supported. Among them: norms of heads (Qwen 3); fused projections that are gathered (Phi-3);
#: biases (GPT-NeoX); layers of another kind beside attention (Qwen 3.5); norms behind projections (OLMo 2); soft caps.
ARCHITECTURES = [
    *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma", "phi", "phi3", "olmo", "olmo2"),
    *("olmo3", "smollm3", "glm", "glm4", "starcoder2", "gpt_neox", "arcee", "cwm", "ernie4_5", "exaone4", "helium"),
    *("nemotron", "seed_oss", "internlm3", "iquestcoder", "jais2", "hrm_text", "gemma4_unified_text", "gemma2"),
    *("gemma3_text", "vaultgemma", "gemma3n_text", "nanochat", "granite", "cohere", "cohere2", "hyperclovax"),
    *("qwen3_5_text", "olmo_hybrid"),
]
#: Adapters on layers that are split along outputs, inputs, and on those whose outputs are gathered.
ADAPTED = ["llama+LoRA", "phi3+LoRA"]


def compared(folder: Path, num_processes: int, size: int, names: list[str]) -> list[dict[str, Any]]:
    """What each process found."""
    script = str(Path(split_models.__file__))
    arguments = [str(num_processes), str(size), str(folder), *names]
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), *arguments], stdout=subprocess.DEVNULL)
        for rank in range(num_processes)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * num_processes
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "size", "names"), [(2, 2, ARCHITECTURES + ADAPTED), (4, 2, ["llama", "qwen3", "gpt_neox"])]
)
def test_split_models_have_the_loss_and_gradient_of_whole_ones(
    tmp_path: Path, num_processes: int, size: int, names: list[str]
) -> None:
    found = compared(tmp_path, num_processes, size, names)
    for name in names:
        assert found[0][name]["state"] == 0  # gathered again, weights are bit for bit the same
        for of_process in found:
            differences = of_process[name]
            assert differences.pop("is split") >= 4
            assert differences.pop("split ahead") == 1  # a GPU never holds the parts of several layers whole
            assert len(differences) > 10
            # In double precision, but for Gemma's norms.
            assert all(difference < 1e-6 for difference in differences.values()), (name, differences)
