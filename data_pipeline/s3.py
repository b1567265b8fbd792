"""S3 and everything that speaks its protocol, by boto3 (the extra ``[s3]``), as a transport for remote storage.

Credentials come only from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; without
them requests are anonymous, for public buckets. AWS_ENDPOINT_URL names a server other than Amazon's, and
AWS_DEFAULT_REGION the region.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import urllib3

from data_pipeline.errors import DataError
from data_pipeline.remote import Answer, RetryPolicy, TransientFault

_ARGUMENTS = {"Range": "Range", "If-Match": "IfMatch"}


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
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        if self._pid != os.getpid():
            self._client, self._pid = self._connect(), os.getpid()
        call = self._client.head_object if method == "HEAD" else self._client.get_object
        arguments = {_ARGUMENTS[key]: value for key, value in headers.items() if key in _ARGUMENTS}
        body = None
        try:
            try:
                response = call(Bucket=self._bucket, Key=f"{self._prefix}/{name}".lstrip("/"), **arguments)
                body = response.get("Body")
            except ClientError as error:
                response = error.response
            meta = response["ResponseMetadata"]
            found = {key.lower(): value for key, value in meta.get("HTTPHeaders", {}).items()}
            yield Answer(int(meta["HTTPStatusCode"]), found, body.read if body is not None else _nothing)
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DataError(
                f"s3://{self._bucket} cannot be read with half a credential: set both AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or neither for a public bucket."
            ) from error
        except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
            kind = "timeout" if "Timeout" in type(error).__name__ else "connection"
            raise TransientFault(kind, type(error).__name__) from error
        finally:
            if body is not None:
                body.close()

    def close(self) -> None:
        """Drop connections."""
        self._client.close()


def _nothing(size: int) -> bytes:
    return b""
