"""S3 and everything that speaks its protocol, by boto3 (the extra ``[s3]``), as a transport for remote storage.

Credentials come only from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; without
them requests are anonymous, for public buckets. AWS_ENDPOINT_URL names a server other than Amazon's, and
AWS_DEFAULT_REGION the region.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import urllib3

from data_pipeline.errors import DataError
from data_pipeline.remote import Answer, RemoteStorage, RetryPolicy, TransientFault, retry_after

_ARGUMENTS = {"Range": "Range", "If-Match": "IfMatch"}


class Listed(NamedTuple):
    """An object as a listing tells of it: its key, its bytes and its ETag ("" where the server leaves it out)."""

    key: str
    size: int
    etag: str


class S3Transport:
    """Requests to ``s3://bucket/prefix``; see :class:`data_pipeline.remote.Transport`.

    Raises DataError if boto3 is not installed.
    """

    def __init__(self, location: str, policy: RetryPolicy) -> None:
        parts = urlsplit(location)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._policy = policy
        try:
            import boto3  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"{location} needs boto3: install the extra with pip install 'pha-pretrain[s3]'."
            ) from error
        self._client, self._pid = self._connect(), os.getpid()

    def _connect(self) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        key = os.environ.get("AWS_ACCESS_KEY_ID")
        options: dict[str, Any] = {} if key else {"signature_version": UNSIGNED}
        return boto3.session.Session().client(
            "s3",
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None,
            region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            aws_access_key_id=key,
            aws_secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=os.environ.get("AWS_SESSION_TOKEN"),
            config=Config(
                connect_timeout=self._policy.connect_s,
                read_timeout=self._policy.stall_s,
                retries={"total_max_attempts": 1},  # ours are the only tries
                max_pool_connections=32,
                s3={"addressing_style": "path" if os.environ.get("AWS_ENDPOINT_URL") else "auto"},
                response_checksum_validation="when_required",  # the index has a checksum of every block
                **options,
            ),
        )

    @contextmanager
    def send(self, method: str, name: str, headers: dict[str, str]) -> Iterator[Answer]:
        """See :class:`data_pipeline.remote.Transport`."""
        from botocore.exceptions import ClientError

        arguments = {_ARGUMENTS[key]: value for key, value in headers.items() if key in _ARGUMENTS}
        key = f"{self._prefix}/{name}" if self._prefix else name
        body = None
        with self._explained() as client:
            try:
                try:
                    call = client.head_object if method == "HEAD" else client.get_object
                    response = call(Bucket=self._bucket, Key=key, **arguments)
                    body = response.get("Body")
                except ClientError as error:
                    response = error.response
                status, found = _head(response)
                yield Answer(status, found, body.read if body is not None else _nothing)
            finally:
                if body is not None:
                    body.close()

    def page(self, prefix: str, token: str | None) -> tuple[list[Listed], str | None]:
        """Up to 1,000 objects whose keys begin with `prefix`, and what asks for the next page, if there is one.

        Raises:
            TransientFault: it may go better at another try.
            DataError: the bucket does not exist or may not be listed.
        """
        from botocore.exceptions import ClientError

        more = {} if token is None else {"ContinuationToken": token}
        with self._explained() as client:
            try:
                answer = client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **more)
            except ClientError as error:
                raise self._refused(error.response) from error
        found = [Listed(row["Key"], int(row["Size"]), str(row.get("ETag", ""))) for row in answer.get("Contents", ())]
        following = answer.get("NextContinuationToken")
        if bool(answer.get("IsTruncated")) != (following is not None):
            raise TransientFault("listing", "the listing does not say how it goes on")
        return found, following

    def _refused(self, response: Any) -> Exception:
        status, headers = _head(response)
        if status in (408, 425, 429) or status >= 500:
            return TransientFault("status", f"status {status}", retry_after(headers.get("retry-after")))
        if status == 404:
            return DataError(f"s3://{self._bucket} is missing: check the bucket's name and AWS_ENDPOINT_URL.")
        return DataError(
            f"s3://{self._bucket} may not be listed (status {status}): name each object instead of a glob or folder, "
            "or set credentials that may list it."
        )

    @contextmanager
    def _explained(self) -> Iterator[Any]:
        """The client of this process, and its exceptions as ours."""
        from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

        if self._pid != os.getpid():
            self._client, self._pid = self._connect(), os.getpid()
        try:
            yield self._client
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DataError(
                f"s3://{self._bucket} cannot be read with half a credential: set both AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or neither for a public bucket."
            ) from error
        except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
            kind = "timeout" if "Timeout" in type(error).__name__ else "connection"
            raise TransientFault(kind, type(error).__name__) from error

    def close(self) -> None:
        """Drop connections."""
        self._client.close()


class S3Bucket(RemoteStorage):
    """A whole bucket, whose names are keys and whose objects can be listed.

    Args:
        location: ``s3://BUCKET``.
        policy: as everywhere.
        check: raises for keys that shall not be read.
    """

    def __init__(self, location: str, policy: RetryPolicy, check: Callable[[str], str]) -> None:
        transport = S3Transport(location, policy)
        super().__init__(location, transport, policy, check)
        self._pages = transport

    def objects(self, prefix: str) -> Iterator[Listed]:
        """All objects whose keys begin with `prefix`, in the order of the listing. Raises DataError."""
        token: str | None = None
        while True:
            found, token = self.retried(prefix, partial(self._pages.page, prefix, token))
            yield from found
            if token is None:
                return


def _head(response: Any) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    meta = response["ResponseMetadata"]
    return int(meta["HTTPStatusCode"]), {key.lower(): value for key, value in meta.get("HTTPHeaders", {}).items()}


def _nothing(size: int) -> bytes:
    return b""
