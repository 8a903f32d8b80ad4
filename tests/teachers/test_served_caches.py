"""Caches built from a teacher's server: their rows are those of the live teacher, and training needs no server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_teachers import data_of, module_of, set_up, split_teacher
from small_models import splitting_tokenizer, write_model
from stand_in_server import StandInServer
from transformers import AutoModelForCausalLM

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, DistillDataModule, Teacher
from xtoken_pl.batch import AllRows, KnownRows, SpanStartRows, TopTokens
from xtoken_pl.batch.quantization import bits_of
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.specs import Server
from xtoken_pl.teachers.cache.manifest import Manifest
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.served_rows import encode_known
from xtoken_pl.utilities.errors import UserError


@pytest.fixture
def server(root: Path) -> Iterator[StandInServer]:
    """A server of a model whose head has no rows beyond its tokenizer, so that it computes what the live one does."""
    model = AutoModelForCausalLM.from_pretrained(root / "unpadded").eval()
    with StandInServer(model, splitting_tokenizer()) as running:
        yield running


def served_teacher(root: Path, url: str, cache: Path | None = None, **options: Any) -> Teacher:
    """A teacher of whose files only tokenizer and configuration are here."""
    server = Server(**{"url": url, "model": "teacher", "top_k": 8, "patience": 0.5, **options})
    folder = None if cache is None else str(cache)
    return split_teacher(root, model=str(root / "no_weights/unpadded"), server=server, cache=folder)


def few(root: Path) -> DistillDataModule:
    return data_of(root, train="few.txt", val="few.txt")


def build(root: Path, teacher: Teacher, folder: Path, **options: Any) -> Manifest:
    return build_cache(
        module_of(root, {"t": teacher}), few(root), CacheOptions(teacher="t", output=str(folder), **options)
    )


def rows_of(root: Path, teacher: Teacher) -> list[torch.Tensor]:
    """Probabilities of the rows of the validation data, as losses read them, and what is known of the text."""
    module = module_of(root, {"t": teacher})
    result = []
    for batch in set_up(module, few(root), "validate").val_dataloader():
        rows = module.caches["t"].rows(batch.teachers["t"])
        result.append(rows.dense(slice(None)).exp())
        if isinstance(rows.known, SpanStartRows):
            result += [rows.known.continuation, rows.known.span_log_prob]
        elif isinstance(rows.known, AllRows):
            result.append(rows.known.text)
    return result


@pytest.mark.parametrize("rows", ["span_starts", "all"])
@pytest.mark.parametrize("top_k", [8, 5, "all"])
def test_a_server_gives_the_cache_of_the_live_teacher(
    root: Path, server: StandInServer, tmp_path: Path, rows: RowKind, top_k: Any
) -> None:
    given = "all" if top_k == "all" else 8
    teacher = served_teacher(root, server.url, top_k=given)
    identity = build(root, teacher, tmp_path / "cache", rows=rows, top_k=top_k, precision=32).identity
    assert (identity.dtype, identity.top_k, identity.rows) == ("server", top_k, rows)
    assert identity.model_fingerprint.startswith("server:teacher:")
    server.stop()
    found = rows_of(root, replace(teacher, cache=str(tmp_path / "cache")))
    live = split_teacher(root, model=str(root / "unpadded"))
    build(root, live, tmp_path / "live", rows=rows, top_k=top_k, precision=32)
    expected = rows_of(root, replace(live, cache=str(tmp_path / "live")))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_training_from_a_cache_asks_no_server(root: Path, server: StandInServer, tmp_path: Path) -> None:
    teacher = replace(served_teacher(root, server.url, tmp_path / "cache"), loss=BytePrefixKL())
    build(root, teacher, tmp_path / "cache")
    server.stop()
    num_asked = len(server.headers)
    module = module_of(root, {"t": teacher})
    data = set_up(module, few(root), "validate")
    module.configure_model()
    loss = module.score(next(iter(data.val_dataloader()))).spans["t"].loss
    assert loss.isfinite().all()
    assert len(loss) > 0
    assert len(server.headers) == num_asked
    other_name = replace(teacher, server=Server(url=server.url, model="another"))
    with pytest.raises(UserError, match="built from a server's model 'teacher', but the server of this run has 'anot"):
        module_of(root, {"t": other_name}).setup("fit")


def test_as_many_tokens_are_stored_as_the_server_gives(root: Path, server: StandInServer, tmp_path: Path) -> None:
    asked = served_teacher(root, server.url)
    assert build(root, asked, tmp_path / "default").identity.top_k == 8
    num_asked = len(server.headers)
    for top_k in (9, "all"):
        with pytest.raises(UserError, match=f"server of teacher 't' is asked for, 8, got {top_k}; raise `top_k` of"):
            build(root, asked, tmp_path / "more", top_k=top_k)
    assert len(server.headers) == num_asked
    assert not (tmp_path / "more").exists()


def test_a_build_whose_server_dies_is_resumed_with_the_same_model_alone(
    root: Path, server: StandInServer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"shard_windows": 2, "batch_size": 2}
    teacher = served_teacher(root, server.url)
    build(root, teacher, tmp_path / "whole", **options)
    num_rows_asked = len(server.prompts)
    server.prompts.clear()
    take, halfway = server.take_failure, num_rows_asked // 2

    def die_halfway() -> Any:
        return "error" if len(server.prompts) >= halfway else take()

    server.take_failure = die_halfway  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"must answer within patience=0\.5 s"):
        build(root, teacher, tmp_path / "cache", **options)
    server.take_failure = take  # type: ignore[method-assign]
    finished = Manifest.load(tmp_path / "cache").entries
    assert 0 < len(finished) < len(Manifest.load(tmp_path / "whole").entries)
    model = server.model
    write_model(tmp_path / "other", splitting_tokenizer(), seed=9, num_head_rows=520)
    server.model = AutoModelForCausalLM.from_pretrained(tmp_path / "other").eval()
    with pytest.raises(UserError, match=r"built from one model, but .* differ by .* nats in the mean .*overwrite"):
        build(root, teacher, tmp_path / "cache", **options)
    server.model = model
    server.prompts.clear()
    build(root, teacher, tmp_path / "cache", **options)
    assert len(server.prompts) < num_rows_asked
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cache" / path.name).read_bytes() == path.read_bytes()


def test_a_cache_of_a_model_is_not_resumed_from_a_server(root: Path, server: StandInServer, tmp_path: Path) -> None:
    build(root, split_teacher(root), tmp_path / "cache")
    with pytest.raises(UserError, match=r"is 'sha256:\w+' in the cache, 'server:teacher:[-.,\d]{,120}' in this run"):
        build(root, served_teacher(root, server.url), tmp_path / "cache")


def test_a_finished_cache_is_verified_without_the_server(root: Path, server: StandInServer, tmp_path: Path) -> None:
    teacher = served_teacher(root, server.url, tmp_path / "cache")
    manifest = build(root, teacher, tmp_path / "cache")
    server.stop()
    assert build(root, teacher, tmp_path / "cache") == manifest


def test_a_teacher_without_a_configuration_may_be_served(root: Path, server: StandInServer, tmp_path: Path) -> None:
    tokenizer_alone = Path(shutil.copytree(root / "no_weights/unpadded", tmp_path / "tokenizer"))
    (tokenizer_alone / "config.json").unlink()
    teacher = replace(served_teacher(root, server.url), model=str(tokenizer_alone))
    assert build(root, teacher, tmp_path / "cache").identity.config_fingerprint == ""
    for source in (replace(teacher, cache=str(tmp_path / "cache")), split_teacher(root, cache=str(tmp_path / "cache"))):
        assert module_of(root, {"t": source}).caches["t"].gives.top_k == 8


@pytest.mark.parametrize("rows", ["span_starts", "all"])
@pytest.mark.parametrize("top_k", [2, 4, 6])
def test_places_without_a_token_and_tokens_that_are_left_out_belong_to_the_tail(rows: RowKind, top_k: int) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(splitting_tokenizer())
    num_ids, num_tokens = len(vocabulary), int(vocabulary.exists.sum())
    log_probs = torch.log(torch.tensor([[0.3, 0.2, 0.1, 0.08, 0.05, 0.02]] * 3))
    # The observed token is stored, left out when fewer are stored, and not known to the server's k.
    ids = torch.tensor([[7, num_ids, 9, 10, num_ids, 12], [7, 8, 9, 10, 11, 12], [7, 8, num_ids, 10, 11, 12]])
    labels, observed = torch.tensor([7, 12, 40]), torch.tensor([0.3, 0.02, 0.01]).log()
    log_probs[ids == num_ids] = -torch.inf
    tail = 1 - log_probs.exp().sum(1) - torch.tensor([0.0, 0.0, 0.01])
    known = AllRows(
        TopTokens(bits_of(log_probs.numpy()), ids.int(), bits_of(tail.log().numpy())), bits_of(observed.numpy())
    )
    holes, row_format = torch.from_numpy(~vocabulary.exists), RowFormat(rows, top_k, 32, num_ids, num_tokens)
    arrays = encode_known(known, labels, row_format, vocabulary)
    none = observed.numpy()
    extra = {"log_observed": none} if rows == "all" else {"log_continuation": none, "log_span": none}
    found = KnownRows.from_windows([arrays | extra]).dense(labels, holes, num_tokens)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
    whole = known.dense(labels, holes, num_tokens)
    for row in range(3):
        best = [token for token in ids[row].tolist() if token < num_ids][:top_k]
        exact = best + ([int(labels[row])] if rows == "all" else [])
        torch.testing.assert_close(found[row, exact], whole[row, exact])
        others = torch.ones(num_ids, dtype=torch.bool).index_fill(0, torch.tensor(exact), value=False) & ~holes
        assert found[row, others].exp().std() < 1e-6 or len(best) < top_k or not others.any()
        torch.testing.assert_close(found[row, others].exp().sum(), whole[row, others].exp().sum())
