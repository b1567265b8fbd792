"""A stand-in for a rank of training that needs the standard library alone: dozens of them share two cores.

To its run's folder, its peers and its signals it does what `pretrain.run` does: rank 0 takes the lock and raises the
generation, all join at MASTER_ADDR, beat, stop at a step's end, save, and leave their reasons; a peer that is gone or
silent ends them. What it trains is a number: each rank hashes its sequences of the global batch, and the sum over all
ranks goes into the state. So the last state tells, on any number of ranks, whether a sequence was lost or came twice.

    python -m tests.slurm.dummy -m pretrain.cli train RUN/launch/000001/config.yaml
    python -m tests.slurm.dummy -m pretrain.link_probe JSON
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from pretrain import exits
from pretrain.errors import EXIT_DONE, EXIT_PEER_LOST, EXIT_REQUEUE, Busy, Overtaken, RunError
from pretrain.fence import Fence
from pretrain.files import write_json

SETTINGS = "PHA_DUMMY"
"""The environment variable with the run's figures, `steps,batch,every,step_s,limit_s`."""
JOIN_S = 60.0
FIRST_STATE = "0" * 16


class Lost(Exception):
    """A peer has left."""


class Group:
    """Members that meet at the first one, which hands every value on to all."""

    def __init__(self, rank, size, address, port, join_s, limit_s):
        self.rank, self.links = rank, []
        deadline = time.monotonic() + join_s
        if rank == 0:
            with socket.create_server(("", port), backlog=size) as door:
                for _ in range(size - 1):
                    door.settimeout(max(0.1, deadline - time.monotonic()))
                    self.links.append(door.accept()[0])
        elif size > 1:
            self.links.append(_reach(address, port, deadline))
        for link in self.links:
            link.settimeout(limit_s)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams = [link.makefile("rb") for link in self.links]

    def gather(self, value):
        """Every member's value, in order. Raises Lost, or TimeoutError where a member is silent."""
        try:
            if self.rank:
                self.links[0].sendall(json.dumps([self.rank, value]).encode() + b"\n")
                return self._read(self.streams[0])
            told = dict([(0, value), *(self._read(stream) for stream in self.streams)])
            values = [told[rank] for rank in sorted(told)]
            line = json.dumps(values).encode() + b"\n"
            for link in self.links:
                link.sendall(line)
        except ConnectionError as error:
            raise Lost(str(error)) from None
        return values

    def _read(self, stream):
        line = stream.readline()
        if not line.endswith(b"\n"):
            raise Lost("Connection closed by peer")
        return json.loads(line)


def _reach(address, port, deadline):
    while True:
        try:
            return socket.create_connection((address, port), max(0.1, deadline - time.monotonic()))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Rank:
    """One rank of one start."""

    def __init__(self, run):
        steps, batch, every, step_s, limit_s = os.environ[SETTINGS].split(",")
        self.run, self.steps, self.batch, self.every = run, int(steps), int(batch), int(every)
        self.step_s, self.limit_s = float(step_s), float(limit_s)
        self.rank, self.size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        self.stop, self.beaten = False, ("", 0.0)
        self.step, self.state = 0, FIRST_STATE

    def go(self):
        """Trains; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        generation = self._first() if self.rank == 0 else 0
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.group = Group(self.rank, self.size, *place, JOIN_S, self.limit_s)
        self.fence = Fence(self.run / "generations", self.group.gather(generation)[0])
        exits.register(self.run / "exits", self.fence.generation, self.rank)
        self.beat("start")
        self.step, self.state = self.group.gather(self._newest() if self.rank == 0 else None)[0]
        while self.step < self.steps and not any(self.group.gather(self.stop)):
            self._one_step()
        self._save()
        done = self.step == self.steps
        self.beat("done" if done else "stopped")
        exits.note(
            EXIT_DONE if done else EXIT_REQUEUE, "the run has reached its last step" if done else "asked to stop"
        )
        return EXIT_DONE if done else EXIT_REQUEUE

    def _first(self):
        for name in ("heartbeats", "checkpoints"):
            (self.run / name).mkdir(parents=True, exist_ok=True)
        self.lock = (self.run / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"Another process is training the run {self.run}.") from None
        for path in (self.run / "heartbeats").glob("rank-*.json"):
            path.unlink(missing_ok=True)
        return Fence.rise(self.run / "generations").generation

    def _one_step(self):
        share = self.batch // self.size
        first = self.step * self.batch + self.rank * share
        own = sum(int.from_bytes(hashlib.sha256(b"%d" % k).digest()[:8], "big") for k in range(first, first + share))
        time.sleep(self.step_s)
        self.step += 1
        self.state = folded(self.state, sum(self.group.gather(own)))
        self.beat("train")
        if self.rank == 0:
            self._record({"kind": "train", "step": self.step, "start": self.fence.generation, "state": self.state})
        if self.step % self.every == 0:
            self._save()

    def _save(self):
        self.beat("save")
        if self.rank == 0:
            began, name = time.monotonic(), f"step-{self.step:08d}"
            writing = self.run / "checkpoints" / f".writing-{name}"
            writing.mkdir(exist_ok=True)
            write_json(writing / "state.json", [self.step, self.state])
            self.fence.check()
            if not (self.run / "checkpoints" / name).exists():
                writing.rename(self.run / "checkpoints" / name)
            self._record({"kind": "event", "event": "checkpoint", "seconds": time.monotonic() - began})

    def _newest(self):
        folders = sorted((self.run / "checkpoints").glob("step-*"))
        return json.loads((folders[-1] / "state.json").read_text()) if folders else (0, FIRST_STATE)

    def _record(self, values):
        self.fence.check()
        with (self.run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**values, "time": time.time()}) + "\n")

    def beat(self, phase):
        """As `pretrain.heartbeat`."""
        if self.beaten[0] == phase and time.time() - self.beaten[1] < 1.0:
            return
        self.beaten = phase, time.time()
        told = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "start": self.fence.generation}
        told |= {"phase": phase, "step": self.step, "time": time.time(), "limit_s": self.limit_s, "compute_s": None}
        write_json(self.run / "heartbeats" / f"rank-{self.rank}.json", told)

    def _on_signal(self, *_):
        self.stop = True


def folded(state, total):
    """The state after a step whose sequences' hashes have this sum."""
    return hashlib.sha256(f"{state} {total}".encode()).hexdigest()[:16]


def last_state(steps, batch):
    """That of a run which nothing happened to."""
    state = FIRST_STATE
    for step in range(steps):
        sequences = range(step * batch, (step + 1) * batch)
        state = folded(state, sum(int.from_bytes(hashlib.sha256(b"%d" % k).digest()[:8], "big") for k in sequences))
    return state


def train(config):
    """Returns the exit code; every way out leaves its reason."""
    try:
        return Rank(config.parents[2]).go()
    except TimeoutError:  # what the watchdog of a real rank finds
        code, words, kind = EXIT_REQUEUE, "This rank has been silent for too long in phase train.", "hang"
    except Lost as error:
        code, words, kind = EXIT_PEER_LOST, f"Another rank left ({error}); its own log tells why.", ""
    except RunError as error:
        code, words, kind = error.exit_code, str(error), error.kind
        if isinstance(error, Overtaken):
            kind = "overtaken"
    exits.note(code, words, kind)
    print(words, file=sys.stderr, flush=True)
    return code


def probe(task):
    """What `pretrain.link_probe` does without its sums and products: the members of a group meet, and each is heard."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()

    def say(stage, **values):
        print(json.dumps({"host": host, "time": time.time(), "stage": stage, **values}), flush=True)

    say("device", kind="cpu")
    group = next((group for group in task["groups"] if host in group), [host])
    try:
        began, rank = time.monotonic(), group.index(host)
        members = Group(rank, len(group), group[0], task["port"], task["timeout_s"], task["timeout_s"])
        right = members.gather(rank) == list(range(len(group)))
        if len(group) > 1:
            say("reduced", right=right, seconds=time.monotonic() - began, mb_s=0.0)
    except (OSError, Lost) as error:
        say("failed", at="join", error=f"{type(error).__name__}: {error}")
        return 1
    if task["gemm"]:
        say("gemm", rates=[1e9])
    say("end")
    return 0


def main():
    module, *rest = sys.argv[2:]
    code = probe(json.loads(rest[0])) if module == "pretrain.link_probe" else train(Path(rest[1]))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
