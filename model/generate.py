"""Sampling text from a language model, with its cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.errors import ModelError
from model.lm import LanguageModel


def filter_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set the logits [B, V] of excluded tokens to minus infinity.

    Args:
        logits: scores, already divided by the temperature.
        top_k: keep the k best tokens (ties with the k-th are kept).
        top_p: then keep the least set of best tokens whose probability reaches p (arXiv 1904.09751); the best
            token always stays.

    Returns:
        Logits [B, V].
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        excluded = (before >= top_p).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(excluded, -torch.inf)
    return logits


def _check(tokens: Tensor, new: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ModelError for a setting out of its range."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ModelError(
            f"The prompt has shape {list(tokens.shape)}; give [rows, tokens] with at least one token a row."
        )
    if new < 0:
        raise ModelError(f"max_new_tokens is {new}; it must be at least 0.")
    if not 0 <= temperature < math.inf:
        raise ModelError(
            f"temperature is {temperature}; it must be a finite number of at least 0 (0 takes the best token)."
        )
    if top_k is not None and top_k < 1:
        raise ModelError(f"top_k is {top_k}; it must be at least 1, or None for all tokens.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ModelError(f"top_p is {top_p}; it must be above 0 and at most 1, or None for all tokens.")


def _choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw one token a row [B] from logits [B, V]."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filter_logits(logits / temperature, top_k, top_p).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    generator: torch.Generator | None = None,
    vocabulary: int | None = None,
) -> list[list[int]]:
    """Continue each prompt. The prompt is read once; every new token then costs one step with the cache.

    The model is put into evaluation mode meanwhile.

    Args:
        model: the language model.
        tokens: prompts, int64 [B, T], all of one length (padding would enter the recurrent state).
        max_new_tokens: most tokens to add to each row.
        temperature: divides the logits; 0 takes the best token.
        top_k, top_p: see `filter_logits`; None turns either off.
        stop_token: ends a row; it is not part of the result.
        generator: source of randomness, on the model's device; None is the global one.
        vocabulary: only ids below this are chosen; for a tokenizer with fewer pieces than the model has rows.

    Returns:
        One list of new tokens a row, without the prompt.

    Raises:
        ModelError: an empty prompt, or a setting out of range.
    """
    _check(tokens, max_new_tokens, temperature, top_k, top_p)
    if max_new_tokens == 0:
        return [[] for _ in range(tokens.shape[0])]
    training = model.training
    model.eval()
    try:
        cache = model.new_cache(tokens.shape[0], tokens.shape[1] + max_new_tokens)
        chosen: list[Tensor] = []
        running = torch.ones(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        step = tokens
        while len(chosen) < max_new_tokens:
            last = model(step, cache=cache)[:, -1, :vocabulary]
            token = _choose(last, temperature, top_k, top_p, generator)
            chosen.append(token)
            if stop_token is not None:
                running &= token != stop_token
                if not running.any():
                    break
            step = token[:, None]
    finally:
        model.train(training)
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: row.index(stop_token)] if stop_token in row else row for row in rows]
