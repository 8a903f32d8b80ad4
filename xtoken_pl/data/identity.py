"""Description of the training data and their order, which must stay the same when training resumes."""

from __future__ import annotations

from datasets import Dataset, IterableDataset

from xtoken_pl.checkpoints import DataIdentity
from xtoken_pl.checkpoints.fingerprints import training_windows_fingerprint
from xtoken_pl.data.maker import WindowMaker


def describe_data(
    windows: Dataset | IterableDataset,
    maker: WindowMaker,
    *,
    seed: int,
    batch_size: int,
    num_processes: int,
    num_workers: int,
    shuffle_buffer: int,
) -> DataIdentity:
    """Describes the settings that determine which windows are read, and in which order.

    The order of stored windows does not depend on the number of processes. The order of streamed ones does, since each
    worker reads its own share of the texts.

    Args:
        windows: Training windows; an IterableDataset is streamed.
        maker: Maker of the windows.
        seed: Seed of the order.
        batch_size: Number of windows of a batch on each process.
        num_processes: Number of processes that train together.
        num_workers: Number of loader workers of each process.
        shuffle_buffer: Number of windows that are shuffled together when streaming.
    """
    identity: DataIdentity = {"seed of the order (data.seed, else seed_everything)": seed}
    if maker.packing != "none":
        identity["data.packing"] = maker.packing
    if maker.normalizer is not None:
        identity["data.normalize"] = "true"
    if isinstance(windows, Dataset):
        return identity | {
            "number of windows": len(windows),
            "windows (texts, tokenizers, sequence_length)": training_windows_fingerprint(windows, maker.fingerprint),
            "global batch size (processes x batch_size)": num_processes * batch_size,
        }
    return identity | {
        "texts (data.train)": str(maker.source),
        "windows (tokenizers, sequence_length)": maker.fingerprint,
        "number of processes": num_processes,
        "data.num_workers": num_workers,
        "data.batch_size": batch_size,
        "data.shuffle_buffer": shuffle_buffer,
    }
