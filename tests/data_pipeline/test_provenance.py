"""The documents of a sequence, against its tokens."""

from __future__ import annotations

import pytest

from data_pipeline.batch import read_sequences
from data_pipeline.dataset import Dataset
from data_pipeline.provenance import HASH_DIGITS, documents_of
from data_pipeline.stream import Stream


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_they_are_those_whose_tokens_are_read(tiny_dataset, packing):
    with Dataset.open(tiny_dataset) as dataset:
        split = dataset.split("train")
        texts = {digest.hex()[:HASH_DIGITS]: tokens.tolist() for digest, tokens in split.iter_documents()}
        stream = Stream({"data": split}, seq_len=48, lanes=4, seed=0, packing=packing)
        for number in (0, 1, 7, 40):
            found = documents_of(stream, [number])
            assert found and len(set(found)) == len(found)
            batch = read_sequences(stream, [number], 0)
            read, parts = batch.tokens[0].tolist(), []
            for token, label in zip(read, batch.labels[0].tolist(), strict=True):
                if token == stream.bos_id:
                    parts.append([])
                elif not parts:
                    parts.append([token])
                else:
                    parts[-1].append(token)
                del label
            for part in filter(None, parts):
                assert any(_has(texts[name], part) for name in found), "a piece of no listed document"
        assert len(documents_of(stream, range(40), most=5)) == 5


def _has(whole: list[int], part: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
