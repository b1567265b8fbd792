"""Which documents train, and which are held out: a pure function of the document's text.

Because only the hash of the normalised text decides, a document never changes sides when a corpus grows, is
reordered or built again, and exact copies always land on the same side: no copy of a training document is ever
validated on.
"""

from __future__ import annotations

import hashlib
from typing import Literal

SplitName = Literal["train", "validation", "test"]
#: In the order in which reports list them.
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
#: Bytes of a document hash.
HASH_BYTES = 16


def document_hash(normalised: str) -> bytes:
    """BLAKE2b-128 of the UTF-8 form of a normalised text: the identity of a document (16 bytes)."""
    return hashlib.blake2b(normalised.encode("utf-8"), digest_size=HASH_BYTES).digest()


def split_of(document_hash: bytes, validation_fraction: float, test_fraction: float, salt: int = 0) -> SplitName:
    """The split of a document.

    The hash is hashed again with `salt`: documents are stored in the order of their plain hash, and a split must not
    be a contiguous piece of that order. Test takes the low end of the unit interval and validation the high end, so
    that changing one fraction moves documents only between train and that split.
    """
    key = salt.to_bytes(8, "little")
    point = int.from_bytes(hashlib.blake2b(document_hash, digest_size=8, key=key).digest(), "little") / 2**64
    if point < test_fraction:
        return "test"
    if point >= 1.0 - validation_fraction:
        return "validation"
    return "train"
