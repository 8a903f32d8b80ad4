"""Compares gradients of split models with those of whole ones; started by tests/models/test_split_models.py.

python split_models.py RANK NUM_PROCESSES TENSOR_PARALLEL_SIZE FOLDER ARCHITECTURE...
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from architectures import ARCHITECTURES
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.batch import RowCuts
from xtoken_pl.models import hidden_states
from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.head import Head
from xtoken_pl.models.sharding import full_state, layers, shard
from xtoken_pl.models.tensor_parallel import tensor_mesh
from xtoken_pl.models.tensor_parallel_plan import check_can_be_split
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows
from xtoken_pl.specs import LoRA
from xtoken_pl.training.gradients import average_copies, total_norm

VOCABULARY = 150
#: Sizes of which each process of two gets an odd part; sharding it once more has to pad.
SIZES = {
    **{"hidden_size": 24, "intermediate_size": 42, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "vocab_size": VOCABULARY},
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
}


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a small model of an architecture."""
    own = {"hidden_size": 32, "head_dim": 8} if name == "phi" else {}  # rotates a half of each head, which must be even
    settings = {**SIZES, **own, **ARCHITECTURES[name], **changes}
    return {key: value for key, value in settings.items() if value is not None}


def random_model(name: str) -> PreTrainedModel:
    """A random model of an architecture, or ``ARCHITECTURE+LoRA``, in double precision, the same in each process."""
    torch.manual_seed(1)
    name, _, adapter = name.partition("+")
    config = AutoConfig.for_model(name, **settings_of(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).double()  # and what it keeps in float32
    if adapter:
        add_adapter(model, LoRA(rank=3))
    for weight in model.parameters():  # norms and biases, too, which begin at 1 and 0
        with torch.no_grad():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def nats(model: PreTrainedModel, group: Any, *, block_rows: int) -> Tensor:
    """Cross-entropy of random tokens, scored in blocks of a few rows, with weights of their own."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (2, 12), generator=generator)
    hidden = hidden_states(model, ids, torch.ones_like(ids))[:, :-1].flatten(0, 1)
    rows = HiddenRows(hidden, ids[:, 1:].flatten(), Head(model.get_output_embeddings(), VOCABULARY, None))
    memory = LogitMemory(block_rows * VOCABULARY * 8 / 0.9)
    scores = evaluate_rows(rows, {}, RowCuts.from_spans(len(hidden), {}), memory, group)
    return (scores.token_nats * torch.linspace(0.5, 2.0, len(hidden), dtype=torch.float64)).sum()


def shard_and_watch(model: PreTrainedModel, mesh: Any) -> int:
    """Shards a model; returns the largest number of layers with split matrices that were not sharded at a time."""
    found, most = layers(model), 0

    def watching(part: Any, **options: Any) -> Any:
        nonlocal most
        waiting = [layer for layer in found if not isinstance(layer, FSDPModule)]
        most = max(most, sum(any(isinstance(w, DTensor) for w in layer.parameters()) for layer in waiting))
        return fully_shard(part, **options)

    with patch("xtoken_pl.models.sharding.fully_shard", watching):
        shard(model, mesh)
    return most


def compare(name: str, mesh: Any) -> dict[str, float]:
    """Largest differences of the loss, its gradients (relative to the largest of each weight), norm and full state."""
    whole = random_model(name)
    split = copy.deepcopy(whole)
    expected = nats(whole, None, block_rows=100)
    expected.backward()
    group = None if (of_group := tensor_mesh(mesh)) is None else of_group.get_group()
    if of_group is not None and "+" not in name:
        check_can_be_split(split, of_group.size(), role="student")
    num_ahead = shard_and_watch(split, mesh)
    loss = nats(split, group, block_rows=3)
    loss.backward()
    if group is not None:
        average_copies(split.parameters(), group)
    grads = {n: w.grad for n, w in whole.named_parameters() if w.grad is not None}
    found = {n: w.grad for n, w in split.named_parameters() if w.grad is not None}
    assert grads.keys() == found.keys(), grads.keys() ^ found.keys()
    norm = total_norm(list(found.values()))
    result = {
        "loss": ((loss - expected) / expected).abs().item(),
        "norm": (norm / total_norm(list(grads.values())) - 1).abs().item(),
        "split ahead": float(num_ahead),
        "is split": float(sum(isinstance(w, DTensor) and w.device_mesh.ndim == 2 for w in split.parameters())),
    }
    for key, grad in grads.items():
        own = found[key]
        assert isinstance(own, DTensor)
        result[f"gradient {key}"] = ((own.full_tensor() - grad).abs().max() / grad.abs().max()).item()
    state = full_state(split)
    if torch.distributed.get_rank() == 0:
        result["state"] = max((state[key] - weight).abs().max().item() for key, weight in whole.state_dict().items())
    return result


def main(rank: int, num_processes: int, size: int, folder: Path, names: list[str]) -> None:
    init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_processes)
    shape = (num_processes // size, size)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
    results = {}
    for name in names:
        results[name] = compare(name, mesh)
        (folder / f"{rank}.json").write_text(json.dumps(results))
    destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
