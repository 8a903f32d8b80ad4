"""The weight of positions inside a teacher token."""

from __future__ import annotations

import torch
from prefix_pairs import Pair
from small_models import numeral_tokenizer
from torch import Tensor

from xtoken_pl import BytePrefixKL
from xtoken_pl.tokenization import CanonicalVocabulary


def make(text: str, *, student: int, teacher: int, weigh_inside: bool = True) -> Pair:
    """Numerals whose longest tokens have so many digits."""
    sides = [numeral_tokenizer(longest_token=longest, letters="x") for longest in (student, teacher)]
    loss = BytePrefixKL(weigh_inside=weigh_inside)
    loss.bind(*(CanonicalVocabulary.from_tokenizer(side) for side in sides), None)
    return Pair.of(sides[0], sides[1], text, loss=loss)


def ids(pair: Pair, side: int, *texts: str) -> list[int]:
    vocabulary = (pair.student, pair.teacher)[side]
    return [vocabulary.token_bytes.index(text.encode()) for text in texts]


def span_losses(pair: Pair, student: Tensor, teacher: Tensor) -> Tensor:
    return pair.loss(pair.block(student, teacher)).loss


def test_weighted_losses_of_all_numerals_add_up_to_the_kl_of_the_teachers_tokens() -> None:
    """The chain rule: each position behind different digits counts once."""
    pairs = [make(text, student=1, teacher=2) for text in ("x00x", "x10x")]
    student, teacher = pairs[0].rows(observed=0.0)  # the same for both texts, which differ in one digit
    at_start = torch.tensor(pairs[0].slow_nats(student, teacher)[0], dtype=torch.float64)
    losses = [span_losses(pair, student, teacher)[0] for pair in pairs]

    # A numeral of one digit ends where anything but a digit follows.
    first, second = student[0].exp(), student[1].exp()
    zero, one, letter, end = (*ids(pairs[0], 0, "0", "1", "x"), pairs[0].student.roles["eos"])
    ours = {"x": first[letter]}
    for digit, token in (("0", zero), ("1", one)):
        ours |= {digit: first[token] * (second[letter] + second[end])}
        ours |= {digit + "0": first[token] * second[zero], digit + "1": first[token] * second[one]}
    q = teacher[0].exp()
    theirs = {text: q[token] for text, token in zip(ours, ids(pairs[0], 1, *ours), strict=True)}
    ours |= {"end": first[end]}
    theirs |= {"end": q[pairs[0].teacher.roles["eos"]]}
    torch.testing.assert_close(sum(theirs.values()), torch.tensor(1.0, dtype=torch.float64))
    expected = sum(theirs[text] * (theirs[text] / ours[text]).log() for text in ours)
    torch.testing.assert_close(sum(losses) - at_start, expected, rtol=0, atol=1e-12)


def test_text_that_the_teacher_finds_wrong_teaches_nothing_about_what_follows_it() -> None:
    pair = make("x10x", student=1, teacher=2)
    student, teacher = pair.rows(observed=0.0)
    teacher[0, ids(pair, 1, "1", "10", "11")] -= 30.0
    leaf = student.clone().requires_grad_()
    span_losses(pair, leaf, teacher.log_softmax(-1))[0].backward()
    assert leaf.grad is not None
    assert leaf.grad[1].abs().max() < 1e-10
    assert leaf.grad[0].abs().max() > 0.01


def test_positions_at_boundaries_have_weight_1() -> None:
    losses = []
    for weigh_inside in (True, False):
        pair = make("01x101x", student=2, teacher=1, weigh_inside=weigh_inside)
        losses.append(span_losses(pair, *pair.rows()))
    assert losses[0].min() > 0.1
    torch.testing.assert_close(*losses, rtol=0, atol=0)
