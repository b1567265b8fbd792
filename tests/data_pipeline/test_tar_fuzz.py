"""Tar headers that nobody meant: every document, or one sentence; no hang, no code, no bomb."""

from __future__ import annotations

import io
import tarfile
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.foreign import archives, stream_documents

TEXTS = ["the first text " * 30, "another one " * 60, "the last"]
BLOCK = 512
FIELDS = {  # offset and length in a header (POSIX ustar)
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1), "link": (157, 100),
    "magic": (257, 8), "device": (329, 16), "prefix": (345, 155),
}  # fmt: skip
quick = settings(
    max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def archive(kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for number, text in enumerate(TEXTS):
            # a name of more than a hundred characters has an extended header of its own
            info = tarfile.TarInfo(f"{'long/' * 25 if number == 1 else ''}{number:04d}.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


ARCHIVES = [archive(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def headers(data: bytes) -> list[int]:
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def signed(data: bytearray, at: int) -> None:
    """Gives the header at `at` the checksum that its bytes have: harm by one who knows how."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])


def read(tmp_path, data: bytes) -> list[str] | None:
    """The texts, or None for one sentence."""
    path = tmp_path / "fuzzed.tar"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        return [document.text for document in stream_documents(archives([str(path)]))]
    except DataError as error:
        assert "Traceback" not in str(error) and len(str(error)) < 2000
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20, "a small file must not take much memory"


@pytest.mark.parametrize("data", ARCHIVES)
def test_what_is_whole_is_read(tmp_path, data):
    assert read(tmp_path, data) == TEXTS


@quick
@given(st.sampled_from(ARCHIVES), st.data())
def test_a_header_with_any_field_is_the_documents_or_one_sentence(tmp_path, data, draw):
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.sampled_from(headers(data)))
        offset, length = FIELDS[draw.draw(st.sampled_from(sorted(FIELDS)))]
        numbers = st.integers(0, 8**11 - 1).map(lambda n: b"%011o" % n)
        value = draw.draw(st.one_of(st.binary(max_size=length), numbers))[:length]
        changed[at + offset : at + offset + length] = value.ljust(length, b"\0")
        signed(changed, at)
    found = read(tmp_path, bytes(changed))
    assert found is None or set(found) <= set(TEXTS) or len(found) <= len(TEXTS)


@quick
@given(st.sampled_from(ARCHIVES), st.integers(0, 2**32), st.integers(0, 7))
def test_a_flipped_bit_of_a_header_is_noticed(tmp_path, data, place, bit):
    at = headers(data)[place % len(headers(data))] + place // 7 % BLOCK
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    assert read(tmp_path, bytes(changed)) in (None, TEXTS)  # TEXTS: in the checksum's own padding


@quick
@given(st.sampled_from(ARCHIVES), st.integers(1, 2**32))
def test_an_archive_that_is_cut_short_is_noticed(tmp_path, data, length):
    # tarfile fills up to a multiple of 20 blocks; all after the two empty ones is of no use
    end = data.rindex(TEXTS[-1].encode()) + BLOCK + 2 * BLOCK
    assert read(tmp_path, data[: 1 + length % (end - 2 * BLOCK)]) is None


@quick
@given(st.binary(min_size=1, max_size=3000))
def test_any_bytes_are_one_sentence(tmp_path, data):
    assert read(tmp_path, data) in (None, [])
