"""The sequences that a run reads: one split or a mixture of several, in an order that is a function of k alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from data_pipeline.best_fit import PackedOrder
from data_pipeline.dataset import Split
from data_pipeline.errors import DataError
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, Pieces

Packing = Literal["concatenate", "best_fit"]


class Stream:
    """Splits with their orders and the mixture that chooses among them.

    Args:
        splits: by name; of one tokenizer. One alone needs no weights.
        weights: of :class:`~data_pipeline.mixture.Mixture`.
        seq_len: T, or its values as (first k, T).
        lanes, seed, shuffle, first_epoch: of every component's order.
        origin: the global number of its first sequence: all other numbers given here count from there.
        packing: ``concatenate`` cuts the stream of documents, ``best_fit`` keeps documents whole.

    Raises:
        DataError: a number is out of range, or best-fit packing shall change its sequence length.
    """

    def __init__(
        self,
        splits: Mapping[str, Split],
        *,
        seq_len: int | Sequence[tuple[int, int]],
        lanes: int,
        seed: int = 0,
        shuffle: bool = True,
        packing: Packing = "concatenate",
        weights: Sequence[tuple[int, Mapping[str, float]]] = (),
        first_epoch: int = 0,
        origin: int = 0,
    ) -> None:
        self.origin = origin
        self.splits = tuple(splits.values())
        if len(self.splits) > 1 and not weights:
            raise DataError(f"a mixture of {', '.join(splits)} needs weights.")
        lengths = ((0, seq_len),) if isinstance(seq_len, int) else tuple(seq_len)
        self._lengths = lengths
        self._mixture = Mixture(tuple(splits), weights) if weights else None
        self.orders = tuple(
            make_order(split, self._component_lengths(c), lanes, seed, shuffle, packing, first_epoch)
            for c, split in enumerate(self.splits)
        )
        self.bos_id, self.dtype = self.splits[0].bos_id, self.splits[0].dtype

    def find(self, k: int) -> tuple[Split, Order | PackedOrder, int]:
        """The split of global sequence k, its order, and k's number within it."""
        k -= self.origin
        if self._mixture is None:
            return self.splits[0], self.orders[0], k
        component, number = self._mixture.locate(k)
        return self.splits[component], self.orders[component], number

    def locate_all(self, numbers: np.ndarray) -> list[tuple[Split, Pieces]]:
        """Where the tokens of global sequences lie, int64 [n]: for each split that has some of them its pieces.

        A piece's row is the sequence's place in `numbers`. Not for whole documents.
        """
        numbers = numbers - self.origin
        if self._mixture is None:
            return [(self.splits[0], self._order_of_rows(0).locate_all(numbers))]
        components, own = self._mixture.locate_all(numbers)
        found = []
        for component in np.unique(components).tolist():
            rows = np.flatnonzero(components == component)
            pieces = self._order_of_rows(component).locate_all(own[rows])
            found.append((self.splits[component], pieces._replace(row=rows[pieces.row])))
        return found

    def length_at(self, k: int) -> int:
        """T of global sequence k."""
        return [length for first, length in self._lengths if first <= k - self.origin][-1]

    def longest(self, numbers: np.ndarray) -> int:
        """The largest T among global sequences, int64 [n] of at least one."""
        if len(self._lengths) == 1:
            return self._lengths[0][1]
        firsts, lengths = np.array(self._lengths).T
        return int(lengths[firsts.searchsorted(numbers - self.origin, side="right") - 1].max())

    @property
    def whole_documents(self) -> bool:
        """Whether sequences are made of whole documents (best-fit packing) and not cut from a stream of them."""
        return self.orders[0].whole_documents

    def last_epoch(self, k: int) -> int:
        """The highest epoch that any component is in when the sequences before k have been read."""
        k -= self.origin
        if self._mixture is None:
            return self.orders[0].epoch_of(max(0, k - 1))
        counts = (self._mixture.count(c, k) for c in range(len(self.orders)))
        return max(order.epoch_of(max(0, n - 1)) for order, n in zip(self.orders, counts, strict=True))

    @property
    def padding_share(self) -> float:
        """The share of labels that is padding, over whole epochs, with the shares and length at k = 0."""
        if self._mixture is None:
            return self.orders[0].padding_share
        shares = self._mixture.shares(0)
        return sum(float(s) * order.padding_share for s, order in zip(shares, self.orders, strict=True))

    def _order_of_rows(self, component: int) -> Order:
        order = self.orders[component]
        assert isinstance(order, Order)
        return order

    def _component_lengths(self, component: int) -> list[tuple[int, int]]:
        """The changes of T at the component's own numbers; of several at the same one, the last counts."""
        if self._mixture is None:
            return list(self._lengths)
        return sorted({self._mixture.count(component, first): length for first, length in self._lengths}.items())


def make_order(
    split: Split,
    lengths: Sequence[tuple[int, int]],
    lanes: int,
    seed: int,
    shuffle: bool,
    packing: Packing,
    first_epoch: int = 0,
) -> Order | PackedOrder:
    """The order of a split. Raises DataError for impossible numbers, or when best-fit packing shall change T."""
    if packing == "concatenate":
        return Order(split.block_tokens, lengths, lanes, seed, shuffle, first_epoch)
    if len(lengths) > 1:
        raise DataError(
            "best_fit packing cannot change the sequence length, since the rest of an epoch would be packed otherwise: "
            "give data.seq_len one value, or set data.packing to concatenate."
        )
    documents = split.document_table["tokens"]
    firsts = split.blocks["first_document"].astype("int64")
    return PackedOrder(split.block_tokens, firsts, documents, lengths[0][1], lanes, seed, shuffle, first_epoch)
