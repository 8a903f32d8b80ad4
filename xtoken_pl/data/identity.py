"""Description of the training data and their order, which must stay the same when training resumes."""

from __future__ import annotations

from datasets import Dataset, IterableDataset

from xtoken_pl.checkpoints import DataIdentity
from xtoken_pl.checkpoints.fingerprints import training_windows_fingerprint
from xtoken_pl.data.loaders import Loaders
from xtoken_pl.data.maker import WindowMaker


def describe_data(
    windows: Dataset | IterableDataset, maker: WindowMaker, loaders: Loaders, *, seed: int, shuffle_buffer: int
) -> DataIdentity:
    """Settings that decide which windows are read, and in which order.

    The order of stored windows does not depend on the number of processes. Each worker of a stream reads texts of its
    own, so that it does.

    Args:
        windows: Training windows; an IterableDataset is streamed.
        maker: Maker of the windows.
        loaders: Maker of the loaders.
        seed: Seed of the order.
        shuffle_buffer: Windows to shuffle among when streaming.
    """
    identity: DataIdentity = {"seed of the order (data.seed, else seed_everything)": seed}
    if maker.packing != "none":
        identity["data.packing"] = maker.packing
    if isinstance(windows, Dataset):
        return identity | {
            "number of windows": len(windows),
            "windows (texts, tokenizers, sequence_length)": training_windows_fingerprint(windows, maker.fingerprint),
            "global batch size (processes x batch_size)": loaders.num_processes * loaders.batch_size,
        }
    return identity | {
        "texts (data.train)": str(maker.source),
        "windows (tokenizers, sequence_length)": maker.fingerprint,
        "number of processes": loaders.num_processes,
        "data.num_workers": loaders.num_workers,
        "data.batch_size": loaders.batch_size,
        "data.shuffle_buffer": shuffle_buffer,
    }
