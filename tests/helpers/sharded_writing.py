"""Writes texts with a sharded student; started twice as a script by tests/rollouts/test_sharded_engine.py.

python sharded_writing.py RANK FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_writers import PROMPTS, letters, requests, tiny_student
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from xtoken_pl.models.sharding import shard
from xtoken_pl.rollouts import Sampling, TransformersEngine

SAMPLING = Sampling(12, temperature=1.5)
#: Places of the prompts that each of two processes writes behind, call by call.
SHARES = [([0, 1, 2, 3, 4], []), ([], [5]), ([6], [7, 8]), ([], [])]
IDS = torch.tensor([[1, 2, 4, 5]])


def gradient(student: Any) -> list[list[float]]:
    """The gradient of a training step, flat."""
    student.zero_grad()
    student(input_ids=IDS, labels=IDS).loss.backward()
    grads = [weight.grad for weight in student.parameters()]
    return [(grad.full_tensor() if isinstance(grad, DTensor) else grad).flatten().tolist() for grad in grads]


def main(rank: int, folder: Path) -> None:
    init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    student = tiny_student()
    shard(student, init_device_mesh("cpu", (2,)))
    texts, engine = requests(PROMPTS), TransformersEngine(batch_size=2)
    written = []
    for shares in SHARES:
        rollouts = engine.write([texts[place] for place in shares[rank]], SAMPLING, student, letters())
        written.append([rollout.ids for rollout in rollouts])
    assert all(isinstance(weight, DTensor) for weight in student.parameters())  # sharded again
    results = {"written": written, "gradient": gradient(student), "again": gradient(student)}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
