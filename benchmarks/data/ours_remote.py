"""Blocks over HTTP or S3 through our checked reader, and the same ranges through the bare client."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.data.measure import Meter
from data_pipeline.dataset import Dataset

#: What a range read needs: the shard's name, the offset and the length in bytes.
Range = tuple[str, int, int]


def measure(location: str, threads: int, local: str) -> dict[str, Any]:
    """Read every block once, in shuffled order, from a URL by so many threads, every checksum verified; none is kept.

    `local` is the same dataset on disk, for the order. Raises DataError.
    """
    with Dataset.open(location, cache_bytes=1) as dataset:
        split = dataset.split("train")
        return _timed(_order(local), threads, lambda number: split.read_block(number).nbytes)


def measure_bare(location: str, threads: int, local: str) -> dict[str, Any]:
    """The same bytes by urllib3 or boto3 alone, unchecked; `local` is the dataset on disk, for the ranges."""
    with Dataset.open(local) as dataset:
        split = dataset.split("train")
        shards = [shard.name for shard in split.info.shards]
        ranges = [(shards[int(row["shard"])], int(row["offset"]), int(row["bytes"])) for row in split.blocks]
    fetch = _boto3(location) if location.startswith("s3:") else _urllib3(location)
    return _timed(_order(local), threads, lambda number: fetch(ranges[number]))


def _order(local: str) -> list[int]:
    with Dataset.open(local) as dataset:
        numbers: list[int] = np.random.default_rng(0).permutation(len(dataset.split("train").blocks)).tolist()
    return numbers


def _timed(numbers: list[int], threads: int, read: Callable[[int], int]) -> dict[str, Any]:
    ready = threading.Barrier(threads + 1)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(ready.wait)
        ready.wait()  # all threads run, and the first connection is made
        read(numbers[0])
        with Meter() as meter:
            bytes_ = sum(pool.map(read, numbers))
    return {"wall_s": meter.wall_s, "cpu_s": meter.cpu_s, "items": len(numbers), "bytes": bytes_}


def _urllib3(location: str) -> Callable[[Range], int]:
    import urllib3

    pool = urllib3.PoolManager(maxsize=32)

    def fetch(wanted: Range) -> int:
        name, offset, length = wanted
        answer = pool.request("GET", f"{location}/{name}", headers={"Range": f"bytes={offset}-{offset + length - 1}"})
        return len(answer.data)

    return fetch


def _boto3(location: str) -> Callable[[Range], int]:
    import boto3
    from botocore.config import Config

    parts = urlsplit(location)
    # as ours is set, so that the difference is not that of two settings
    config = Config(
        retries={"total_max_attempts": 1},
        max_pool_connections=32,
        s3={"addressing_style": "path"},
        response_checksum_validation="when_required",
    )
    client = boto3.client("s3", config=config)

    def fetch(wanted: Range) -> int:
        name, offset, length = wanted
        answer = client.get_object(
            Bucket=parts.netloc,
            Key=f"{parts.path.strip('/')}/{name}",
            Range=f"bytes={offset}-{offset + length - 1}",
        )
        return len(answer["Body"].read())

    return fetch


def upload(location: str, local: str) -> dict[str, Any]:
    """Put the files of a dataset into a new bucket."""
    import boto3

    parts = urlsplit(location)
    client = boto3.client("s3")
    client.create_bucket(Bucket=parts.netloc)
    files = [file for file in Path(local).rglob("*") if file.is_file()]
    for file in files:
        key = f"{parts.path.strip('/')}/{file.relative_to(local).as_posix()}"
        client.put_object(Bucket=parts.netloc, Key=key, Body=file.read_bytes())
    return {"files": len(files)}
