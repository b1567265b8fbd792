"""Range reads over HTTP(S) or S3: one retry policy, and no answer that is taken on trust.

Each answer's status, range, length and ETag are checked before its bytes are handed out. What may heal is tried again
with exponential back-off; what cannot (403, 404, 412, 416) fails at once. Whether the bytes are the right ones is the
business of the caller, who has their checksum.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar
from urllib.parse import unquote

import urllib3

from data_pipeline.errors import DataError
from data_pipeline.storage import REMEDY, DamagedData, Storage, check_name

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Bytes that are taken from a connection at once.
_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
#: Servers and buckets often declare what a compressed file is; its bytes are still those that are stored.
_STORED = {"gzip": (".gz", ".tgz"), "x-gzip": (".gz", ".tgz"), "zstd": (".zst",), "xz": (".xz", ".txz")}
_FINAL = {
    401: "the server asks for credentials",
    403: "access is denied",
    412: "the file was replaced while it was being read",
}


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait and how often to try; times in seconds.

    Attributes:
        tries: attempts at one read, the first included.
        connect_s: for a connection.
        stall_s: for the first byte, and between any two.
        transfer_s: for a whole answer, against servers that drip.
        first_delay_s, longest_delay_s: the pause doubles from the one to the other, and is shortened by up to a half
            at random so that ranks do not return together.
        longest_retry_after_s: a longer Retry-After is cut to this.
        random, sleep: replaceable, for tests.
    """

    tries: int = 8
    connect_s: float = 10.0
    stall_s: float = 30.0
    transfer_s: float = 300.0
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    longest_retry_after_s: float = 120.0
    random: Callable[[], float] = field(default_factory=lambda: random.Random().random)
    sleep: Callable[[float], None] = time.sleep

    def pause(self, attempt: int, retry_after: float | None) -> float:
        """Seconds to wait after the failure of that attempt (from 0), not less than the server asked for."""
        delay = min(self.longest_delay_s, self.first_delay_s * 2.0**attempt) * (1.0 - self.random() / 2)
        return delay if retry_after is None else max(delay, min(retry_after, self.longest_retry_after_s))


@dataclass
class Answer:
    """An HTTP answer whose body has not been read; header names in lower case. `read` gives b"" at its end."""

    status: int
    headers: dict[str, str]
    read: Callable[[int], bytes]


class Transport(Protocol):
    """Sends one request, without retries."""

    def send(self, method: str, name: str, headers: dict[str, str]) -> AbstractContextManager[Answer]:
        """`method` is GET or HEAD; `headers` may hold Range, If-Match and Cache-Control.

        Raises TransientFault (also while the answer is read) for what may heal, DataError for what cannot.
        """

    def close(self) -> None:
        """Drop connections."""


class TransientFault(Exception):
    """A fault that may heal: its kind (for the counters), and the pause (s) that the server asked for."""

    def __init__(self, kind: str, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.retry_after = kind, retry_after


class HttpTransport:
    """HTTP(S) by urllib3, over connections that are kept. A forked child makes its own."""

    def __init__(self, base: str, policy: RetryPolicy) -> None:
        self._base, self._policy = base.rstrip("/"), policy
        self._pool, self._pid = self._connect(), os.getpid()

    def _connect(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(
            maxsize=32,
            timeout=urllib3.Timeout(connect=self._policy.connect_s, read=self._policy.stall_s),
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5),
        )

    @contextmanager
    def send(self, method: str, name: str, headers: dict[str, str]) -> Iterator[Answer]:
        """See :class:`Transport`."""
        if self._pid != os.getpid():
            self._pool, self._pid = self._connect(), os.getpid()
        response = None
        try:
            response = self._pool.request(
                method,
                f"{self._base}/{name}",
                headers={"Accept-Encoding": "identity", **headers},
                preload_content=False,
                decode_content=False,
            )
            yield Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read1)
        except urllib3.exceptions.TimeoutError as error:
            raise TransientFault("timeout", f"no byte came for {self._policy.stall_s:g} s") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
            kind = "timeout" if isinstance(cause, urllib3.exceptions.TimeoutError) else "connection"
            if isinstance(cause, urllib3.exceptions.NewConnectionError):  # a TimeoutError too, though it is a refusal
                kind = "connection"
            if "IncompleteRead" in repr(cause):  # urllib3 wraps it in a ProtocolError
                kind = "cut_off"
            raise TransientFault(kind, f"{type(cause).__name__}") from error
        finally:
            if response is not None:
                # a connection is used again only when its answer was read to the end
                if method != "HEAD" and not response.closed:
                    response.close()
                response.release_conn()

    def close(self) -> None:
        """Drop idle connections."""
        self._pool.clear()


class RemoteStorage(Storage):
    """Files behind a :class:`Transport`. A file's ETag must stay what it was when it was first seen."""

    at_once = 16

    def __init__(
        self, location: str, transport: Transport, policy: RetryPolicy, check: Callable[[str], str] = check_name
    ) -> None:
        super().__init__(location)
        self._transport, self._policy, self._check = transport, policy, check
        self._etags: dict[str, str] = {}
        self._lock = threading.Lock()

    def size(self, name: str) -> int:
        """See :meth:`Storage.size`."""

        def attempt() -> int:
            with self._transport.send("HEAD", self._check(name), self._pin(name)) as answer:
                self._check_status(name, answer)
                self._check_etag(name, answer)
                return _length(answer)

        return self.retried(name, attempt)

    def look(self, name: str) -> tuple[int, str]:
        """Size and version (ETag, else Last-Modified, else nothing) as they are now; pins the ETag anew.

        Without a version, only another size tells that a file was replaced.

        Raises like :meth:`size`.
        """

        def attempt() -> tuple[int, str]:
            with self._transport.send("HEAD", self._check(name), {}) as answer:
                self._check_status(name, answer)
                with self._lock:
                    self._etags.pop(name, None)
                self._check_etag(name, answer)
                return _length(answer), answer.headers.get("etag") or answer.headers.get("last-modified", "")

        return self.retried(name, attempt)

    def read(self, name: str, limit: int) -> bytes:
        """See :meth:`Storage.read`."""

        def attempt() -> bytes:
            with self._transport.send("GET", self._check(name), self._pin(name)) as answer:
                self._check_status(name, answer)
                self._check_etag(name, answer)
                length = _length(answer)
                if length > limit:
                    raise DataError(
                        f"{self.shown(name)} has {length} bytes, more than the {limit} it may have: {REMEDY}."
                    )
                return self._body(answer, 0, length)

        return self.retried(name, attempt)

    def read_range(self, name: str, offset: int, length: int, total: int | None = None, fresh: bool = False) -> bytes:
        """See :meth:`Storage.read_range`."""
        if length == 0:
            return b""

        def attempt() -> bytes:
            headers = {"Range": f"bytes={offset}-{offset + length - 1}", **self._pin(name)}
            if fresh:
                headers["Cache-Control"] = "no-cache"
            with self._transport.send("GET", self._check(name), headers) as answer:
                self._check_status(name, answer)
                self._check_etag(name, answer)
                return self._ranged_body(name, answer, offset, length, total)

        return self.retried(name, attempt)

    def close(self) -> None:
        """Drop connections."""
        self._transport.close()

    def _ranged_body(self, name: str, answer: Answer, offset: int, length: int, total: int | None) -> bytes:
        if answer.status == 200:  # the server does not know ranges: the whole file, of which we keep our part
            whole = _length(answer)
            self._check_total(name, whole, total, offset + length)
            self._count("whole_answers")
            return self._body(answer, offset, length, rest=whole - offset - length)
        match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None:
            raise TransientFault("range", "the answer does not say which range it is")
        first, last, whole = (int(number) for number in match.groups())
        self._check_total(name, whole, total, offset + length)
        if (first, last) != (offset, offset + length - 1) or _length(answer) != length:
            raise TransientFault("range", f"the answer is another range ({match[0]}, {_length(answer)} bytes)")
        return self._body(answer, 0, length)

    def _check_total(self, name: str, found: int, total: int | None, end: int) -> None:
        if found < end or (total is not None and found != total):
            raise DamagedData(f"{self.shown(name)} has {found} bytes instead of {end if total is None else total}")

    def _body(self, answer: Answer, skip: int, length: int, rest: int = 0) -> bytes:
        """`length` bytes after `skip`; the `rest` is read and dropped, so that a cut-off answer shows itself."""
        deadline = time.monotonic() + self._policy.transfer_s
        kept: list[bytes] = []
        position, whole = 0, skip + length + rest
        while position < whole:
            chunk = answer.read(min(_CHUNK, whole - position))
            if not chunk:
                raise TransientFault("cut_off", f"the answer ended after {position} of {whole} bytes")
            inside = position >= skip and position + len(chunk) <= skip + length
            kept.append(chunk if inside else chunk[max(0, skip - position) : max(0, skip + length - position)])
            position += len(chunk)
            if time.monotonic() > deadline:
                raise TransientFault("timeout", f"the answer was not complete after {self._policy.transfer_s:g} s")
        answer.read(1)  # the end, which gives the connection back
        self._count("bytes", position)
        return b"".join(kept)

    def _check_status(self, name: str, answer: Answer) -> None:
        status = answer.status
        if status in (200, 206):
            encoding = answer.headers.get("content-encoding", "identity").lower()
            as_stored = unquote(name).lower().endswith(_STORED.get(encoding, ()))
            if encoding not in ("identity", "aws-chunked", "") and not as_stored:
                raise DataError(f"{self.shown(name)} is sent compressed ({encoding}): switch that off on the server.")
            return
        if status in (404, 410):
            raise DamagedData(f"{self.shown(name)} is missing (status {status})")
        if status == 416:
            raise DamagedData(f"{self.shown(name)} is shorter than the index says (status 416)")
        if status in (408, 425, 429) or status >= 500:
            raise TransientFault("status", f"status {status}", retry_after(answer.headers.get("retry-after")))
        raise DataError(
            f"{self.shown(name)} cannot be read: {_FINAL.get(status, 'the server refuses')} (status {status})."
        )

    def _pin(self, name: str) -> dict[str, str]:
        etag = self._etags.get(name)
        # RFC 9110: If-Match compares strongly, so a weak ETag never matches and is only compared by us
        return {"If-Match": etag} if etag is not None and not etag.startswith("W/") else {}

    def _check_etag(self, name: str, answer: Answer) -> None:
        etag = answer.headers.get("etag")
        with self._lock:
            known = self._etags.setdefault(name, etag) if etag is not None else self._etags.get(name)
        if known != etag:
            raise TransientFault("etag", f"the file's ETag changed from {known} to {etag}, so it was replaced")

    def retried(self, name: str, attempt: Callable[[], T]) -> T:
        """What `attempt` gives, which is tried again after a TransientFault. Raises DataError after the last try."""
        for number in range(self._policy.tries):
            self._count("requests")
            try:
                return attempt()
            except TransientFault as fault:
                self._count(f"fault_{fault.kind}")
                if number + 1 == self._policy.tries:
                    raise DataError(
                        f"{self.shown(name)} could not be read in {self._policy.tries} tries (the last: {fault}): "
                        "check the server and the network, and start again; the run continues where it was."
                    ) from fault
                pause = self._policy.pause(number, fault.retry_after)
                log.info("%s: %s; trying again in %.1f s.", self.shown(name), fault, pause)
                self._count("retries")
                self._policy.sleep(pause)
        raise AssertionError("a policy has at least one try")

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counters[what] += number


def _length(answer: Answer) -> int:
    text = answer.headers.get("content-length", "")
    if not text.isascii() or not text.isdigit():
        raise TransientFault("length", "the answer does not say how long it is")
    return int(text)


def retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date. None if there is none that makes sense."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
