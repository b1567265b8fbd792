"""The probes' data: sequences with the token to predict at a few places, and -100 elsewhere.

A row is a function of the generator that draws it. The label at a place is what the token there and those before it
determine; it is never an input at that place or before, unless chance or a repetition puts it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.loss import IGNORE
from pretrain.errors import RunError

Rows = tuple[np.ndarray, np.ndarray]
"""Tokens and labels, int64 [rows, length] each."""


@dataclass(frozen=True)
class Task:
    """One probe.

    Attributes:
        name: as the command knows it.
        about: what is asked, in a sentence.
        vocab: tokens.
        lengths: of training; a batch takes one of them, in turn.
        test_lengths: of the test.
        chance: accuracy of a guess among the possible answers.
        draw: (generator, rows, length) to rows.
        beyond: at a test length above the training lengths only places count that training never reached.
    """

    name: str
    about: str
    vocab: int
    lengths: tuple[int, ...]
    test_lengths: tuple[int, ...]
    chance: float
    draw: Callable[[np.random.Generator, int, int], Rows]
    beyond: bool = False

    def test_rows(self, generator: np.random.Generator, rows: int, length: int) -> Rows:
        """Rows for a test, with labels where they count."""
        tokens, labels = self.draw(generator, rows, length)
        if self.beyond and length > max(self.lengths):
            labels[:, : max(self.lengths)] = IGNORE
        return tokens, labels


def _blank(rows: int, length: int) -> Rows:
    return np.zeros((rows, length), dtype=np.int64), np.full((rows, length), IGNORE, dtype=np.int64)


def _distinct(generator: np.random.Generator, rows: int, low: int, high: int, count: int) -> np.ndarray:
    """`count` different integers of [low, high) a row."""
    return np.argsort(generator.random((rows, high - low)), axis=1)[:, :count] + low


def mqar(vocab: int, pairs: int, power: float = 0.01) -> Callable[[np.random.Generator, int, int], Rows]:
    """Multi-query associative recall (arXiv 2312.04927; zoology, `multiquery_ar.py`).

    Pairs of a key [1, V/2) and a value [V/2, V), each drawn without replacement; then every key once more, at even
    distances drawn without replacement with p(i) ~ a i^(a - 1), and 0 elsewhere. At a repeated key its value is asked.

    Raises:
        RunError: the vocabulary or (when drawing) the length is too small: V > 2 pairs, length >= 4 pairs.
    """
    if vocab // 2 - 1 < pairs:
        raise RunError(
            f"{pairs} pairs need more keys than a vocabulary of {vocab} has; give one above {2 * pairs + 2}."
        )

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        if length < 4 * pairs:
            raise RunError(f"{pairs} pairs and their queries do not fit {length} tokens; give at least {4 * pairs}.")
        tokens, labels = _blank(rows, length)
        keys = _distinct(generator, rows, 1, vocab // 2, pairs)
        values = _distinct(generator, rows, vocab // 2, vocab, pairs)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        slots = (length - 2 * pairs) // 2
        weights = np.arange(1, slots + 1) ** (power - 1)
        # The smallest of exponentials with these rates are a draw without replacement with these weights.
        gaps = np.argsort(generator.exponential(size=(rows, slots)) / weights, axis=1)[:, :pairs]
        places = 2 * pairs + 2 * gaps
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(labels, places, values, axis=1)
        return tokens, labels

    return draw


def selective_copy(vocab: int, copies: int) -> Callable[[np.random.Generator, int, int], Rows]:
    """Selective copying (arXiv 2312.00752, Section 4.1.1): data tokens among noise (0), then one mark (1) for each.

    At the i-th mark the i-th data token, of [2, V), is asked.
    """

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        tokens, labels = _blank(rows, length)
        context = length - copies
        if context < copies:
            raise RunError(f"{copies} tokens and as many marks do not fit {length} tokens; give at least {2 * copies}.")
        places = np.sort(_distinct(generator, rows, 0, context, copies), axis=1)
        data = generator.integers(2, vocab, (rows, copies))
        np.put_along_axis(tokens, places, data, axis=1)
        tokens[:, context:] = 1
        labels[:, context:] = data
        return tokens, labels

    return draw


def induction(vocab: int) -> Callable[[np.random.Generator, int, int], Rows]:
    """Induction heads (arXiv 2312.00752, Section 4.1.2): random tokens of [1, V), a mark (0) within and at the end.

    At the last mark the token that followed the first is asked.
    """

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        if length < 3:
            raise RunError(f"Induction needs at least 3 tokens, not {length}.")
        tokens = generator.integers(1, vocab, (rows, length))
        labels = _blank(rows, length)[1]
        first = generator.integers(0, length - 2, rows)
        every = np.arange(rows)
        labels[:, -1] = tokens[every, first + 1]
        tokens[every, first], tokens[:, -1] = 0, 0
        return tokens, labels

    return draw


def phonebook(names: int, digits: int, entries: int | None) -> Callable[[np.random.Generator, int, int], Rows]:
    """Names with numbers of `digits` tokens, then one name again, after which its number is asked, digit by digit.

    Digits are 1 to 10, names 11 to 10 + `names`, filler is 0. With `entries` = None the row is filled with different
    names (phonebook, arXiv 2402.01032); with 1 it is a passkey: one entry at a random depth of filler.
    """
    size = 1 + digits

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        room = (length - digits) // size if entries is None else entries
        if room > names or (room + 1) * size - 1 > length or room < 1:
            raise RunError(f"{length} tokens hold {room} entries of {size}, and there are {names} names; change one.")
        tokens, labels = _blank(rows, length)
        called = _distinct(generator, rows, 11, 11 + names, room)
        numbers = generator.integers(1, 11, (rows, room, digits))
        book = np.concatenate([called[:, :, None], numbers], axis=2).reshape(rows, -1)
        spare = length - digits - book.shape[1] + 1
        start = generator.integers(0, spare, rows) if entries is not None else np.full(rows, spare - 1)
        np.put_along_axis(tokens, start[:, None] + np.arange(book.shape[1]), book, axis=1)
        asked = generator.integers(0, room, rows)
        every = np.arange(rows)
        tokens[:, -digits] = called[every, asked]
        labels[:, -digits:] = numbers[every, asked]
        tokens[:, length - digits + 1 :] = numbers[every, asked, :-1]
        return tokens, labels

    return draw


def parity() -> Callable[[np.random.Generator, int, int], Rows]:
    """Bits 0 and 1; at each, whether the number of ones so far is odd (a regular language with two states)."""

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        tokens = generator.integers(0, 2, (rows, length))
        return tokens, tokens.cumsum(axis=1) % 2

    return draw


def modular(modulus: int) -> Callable[[np.random.Generator, int, int], Rows]:
    """A number, then operator and number in turn; at each number the value so far, from left to right, is asked.

    Numbers are 0 to m - 1; the operators +, - and * are m, m + 1 and m + 2.
    """

    def draw(generator: np.random.Generator, rows: int, length: int) -> Rows:
        tokens, labels = _blank(rows, length)
        tokens[:, 0::2] = generator.integers(0, modulus, tokens[:, 0::2].shape)
        tokens[:, 1::2] = generator.integers(modulus, modulus + 3, tokens[:, 1::2].shape)
        value = labels[:, 0] = tokens[:, 0]
        for place in range(2, length, 2):
            operator, number = tokens[:, place - 1] - modulus, tokens[:, place]
            value = np.choose(operator, [value + number, value - number, value * number]) % modulus
            labels[:, place] = value
        return tokens, labels

    return draw


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mqar", "the values of 8 keys", 64, (32,), (32, 64), 1 / 32, mqar(64, 8)),
        Task("selective_copy", "8 tokens from among noise", 16, (64,), (64, 128), 1 / 14, selective_copy(16, 8)),
        Task("induction", "what followed the mark", 16, (64,), (64, 256), 1 / 15, induction(16)),
        Task("phonebook", "the 3 digits of one of 15 names", 64, (63,), (63,), 1 / 10, phonebook(53, 3, None)),
        Task("passkey", "3 digits seen once in filler", 64, (64,), (64, 256), 1 / 10, phonebook(53, 3, 1)),
        Task("parity", "whether the ones so far are odd", 2, (8, 16, 40), (40, 128), 1 / 2, parity(), beyond=True),
        Task("modular", "a value modulo 5 so far", 8, (7, 15, 39), (39, 127), 1 / 5, modular(5), beyond=True),
    )
}
"""The probes, sized for minutes on two cores.

The sources use 64 to 512 tokens, vocabularies to 8,192 and 10^5 examples or more (zoology, mad-lab, Mamba); state
tracking is trained at lengths to 40 and tested to 256 there.
"""


def find(name: str) -> Task:
    """The task of that name. Raises RunError that lists them."""
    if name not in TASKS:
        raise RunError(f"There is no probe called '{name}'; the probes are {', '.join(TASKS)}.")
    return TASKS[name]
