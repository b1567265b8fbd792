"""Compiled blocks learn what the blocks learn. PyTorch runs the compiler's graphs here: no C++ compiler is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model.lm import LanguageModel
from tests.model.architecture_cases import CASES

Build = Callable[..., LanguageModel]

CHOSEN = [(name, False) for name in ("pha", "transformer", "mamba2", "taipan", "gss-hybrid", "h3", "hedgehog")]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "recompute"), [*CHOSEN, ("pha-window", True)])
def test_compiled_blocks_learn_the_same(build: Build, name: str, recompute: bool) -> None:
    model = build(**CASES[name])
    if recompute:
        model.set_recompute(functools.partial(checkpoint, use_reentrant=False), 1)
    tokens = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 10, 8])).expand(2, -1)
    names = list(model.state_dict())
    found = []
    for compiled in (False, True):
        if compiled:
            model.compile_blocks("aot_eager")
        model.zero_grad()
        loss = model(tokens, documents, labels=tokens)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) and list(model.state_dict()) == names
    for plain, made in zip(*found, strict=True):
        torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_only_training_is_compiled(build: Build) -> None:
    model = build()
    calls: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        calls.append(1)
        return graph.forward

    model.compile_blocks(count)  # type: ignore[arg-type]  # torch takes functions too
    tokens = torch.randint(0, 61, (1, 9))
    with torch.no_grad():
        model(tokens, labels=tokens)
        model.eval()(tokens, cache=model.new_cache(1, 16))
    assert not calls
    model.train()(tokens, labels=tokens).backward()
    assert calls
