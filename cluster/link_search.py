"""Finds which nodes, or which links between two nodes, spoil a collective that fails when all take part.

The question is only ever whether a group of nodes works together; disjoint groups are asked at the same time, in one
round. Nodes are found in a handful of rounds whatever their number: all are asked in pairs, and those of a pair that
fails are asked again with partners that have worked. A link between two nodes that each work with others is found in
less than 2 log₂ n rounds: for each bit of the nodes' numbers the two halves with equal bits are asked, which tells the
bits in which the link's ends agree; which bits of the rest go together is told by halves with equal differences of
bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Test = Callable[[list[list[str]]], list[bool]]
"""Disjoint groups of at least two nodes → whether each of them works."""
Pair = tuple[str, str]

STRIKES = 2
"""Failures with so many partners that have worked with others make a node bad: one could be the link."""


@dataclass
class Found:
    """What spoils the collective."""

    nodes: list[str] = field(default_factory=list)
    """That work with nobody."""
    links: list[Pair] = field(default_factory=list)
    """Between nodes that work with others."""
    left_out: list[str] = field(default_factory=list)
    """The nodes, and of each link one end: without these the rest has worked."""
    unclear: str = ""
    """Why something is left that could not be told; empty where the rest has worked."""
    rounds: int = 0


def search(nodes: Sequence[str], test: Test, whole_failed: bool = False, most_rounds: int = 100) -> Found:
    """Asks until what is left works.

    Args:
        nodes: all that take part.
        test: see `Test`.
        whole_failed: that all together do not work is known already, and is not asked.
        most_rounds: after so many it is given up, and `unclear` says so.
    """
    return _Search(list(nodes), test, most_rounds).run(whole_failed)


class _OutOfRounds(Exception):
    pass


class _Search:
    def __init__(self, nodes: list[str], test: Test, most_rounds: int) -> None:
        self.nodes, self._test, self._most = nodes, test, most_rounds
        self.found = Found()
        self.failed: dict[Pair, None] = {}
        """Pairs that have failed, in order."""

    def run(self, whole_failed: bool) -> Found:
        try:
            if len(self.nodes) < 2 or (not whole_failed and self._works(self.nodes)):
                return self.found
            if len(self.nodes) == 2:
                self.found.links = [(self.nodes[0], self.nodes[1])]
                self._settle()
                return self.found
            self._bad_nodes()
            if not self.found.unclear:
                self._bad_links()
        except _OutOfRounds:
            self.found.unclear = f"after {self._most} rounds the nodes that are left still fail together"
        self._settle()
        return self.found

    def _ask(self, groups: list[list[str]]) -> list[bool]:
        """One round; a node alone works by definition and is not asked."""
        asked = [group for group in groups if len(group) > 1]
        if not asked:
            return [True] * len(groups)
        if self.found.rounds >= self._most:
            raise _OutOfRounds
        self.found.rounds += 1
        told = iter(self._test(asked))
        answers = [next(told) if len(group) > 1 else True for group in groups]
        for group, works in zip(groups, answers, strict=True):
            if len(group) == 2 and not works:
                self.failed[(group[0], group[1])] = None
        return answers

    def _works(self, nodes: list[str]) -> bool:
        return self._ask([nodes])[0]

    def _bad_nodes(self) -> None:
        """All in pairs, then each of a pair that failed with partners that have worked."""
        trusted, pending = self._first_pairs()
        strikes: dict[str, list[str]] = {node: [] for node in pending}
        while pending and trusted:
            matched = _match(pending, trusted, strikes)
            if not matched:
                break
            answers = self._ask([list(pair) for pair in matched])
            for (node, partner), works in zip(matched, answers, strict=True):
                if works:
                    pending.remove(node)
                    trusted.append(node)
                    continue
                strikes[node].append(partner)
                if len(strikes[node]) == STRIKES:
                    pending.remove(node)
                    self.found.nodes.append(node)
        if not trusted:
            self.failed.clear()
            self.found.unclear = "no two of the nodes work together, which is hardly a defect of the nodes"

    def _first_pairs(self) -> tuple[list[str], list[str]]:
        """(Nodes that have worked with another one, the others); other pairs are formed until some work."""
        for pairs in itertools.islice(_pairings(self.nodes), len(self.nodes)):
            answers = self._ask([list(pair) for pair in pairs])
            trusted = [node for pair, works in zip(pairs, answers, strict=True) if works for node in pair]
            if trusted:
                return trusted, [node for node in self.nodes if node not in trusted]
        return [], list(self.nodes)

    def _bad_links(self) -> None:
        """While those that each work with others do not all work together, finds a link and leaves one end out."""
        while len(rest := self._settle()) > 1 and not self._works(rest):
            link = self._one_link(rest)
            # asked by itself: what fails only now and then must not cost a node
            if link is None or self._works(list(link)):
                self.found.unclear = "the nodes that are left fail together, but not the same ones each time"
                return

    def _one_link(self, nodes: list[str]) -> Pair | None:
        """The ends of one bad link; None where the answers contradict each other."""
        number = {node: index for index, node in enumerate(nodes)}
        differ: list[int] = []
        inside = nodes
        for bit in range((len(nodes) - 1).bit_length()):
            halves = [[node for node in inside if number[node] >> bit & 1 == value] for value in (0, 1)]
            works = self._ask(halves)
            if all(works):
                differ.append(bit)
            else:  # with both, there are two links: the other one is found when this one is out of the way
                inside = halves[works.index(False)]
        if not differ:
            return None
        first, *others = differ
        for bit in others:
            halves = [[n for n in inside if (number[n] >> first ^ number[n] >> bit) & 1 == value] for value in (0, 1)]
            works = self._ask(halves)
            if all(works):
                return None
            inside = halves[works.index(False)]
        return (inside[0], inside[1]) if len(inside) == 2 else None

    def _settle(self) -> list[str]:
        """Tells links from nodes among the pairs that failed, chooses who is left out; returns the rest."""
        bad = set(self.found.nodes)
        if self.failed:
            self.found.links = [pair for pair in self.failed if not bad & set(pair)]
        out = list(self.found.nodes)
        links = [set(pair) for pair in self.found.links]
        while links:
            # the end of the most links; of two equal ones the later
            worst = max(self.nodes, key=lambda node: (sum(node in link for link in links), self.nodes.index(node)))
            out.append(worst)
            links = [link for link in links if worst not in link]
        self.found.left_out = out
        return [node for node in self.nodes if node not in out]


def _pairings(nodes: list[str]) -> itertools.chain[list[Pair]]:
    """All ways to pair the nodes off so that no pair comes twice; of an odd number one is left alone each time."""
    ring: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    rounds = []
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append([(a, b) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return itertools.chain(rounds)


def _match(pending: list[str], trusted: list[str], strikes: dict[str, list[str]]) -> list[Pair]:
    """Each pending node with a partner that it has not failed with, as far as there are any."""
    free, matched = list(trusted), []
    for node in pending:
        partner = next((one for one in free if one not in strikes[node]), None)
        if partner is not None:
            free.remove(partner)
            matched.append((node, partner))
    return matched
