"""A thread in each rank that ends the run when nothing goes on any more.

A rank that hangs makes the others wait in a collective, for half an hour by default and without a word about who was
late. Each rank's watchdog looks at its own last sign of life (`pretrain.heartbeat`), by a clock that does not jump;
beyond the limit of the phase it writes the stacks of all threads, names the rank that is furthest behind by what all
have left on the disk, and ends the process so that the run is started again from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pretrain import exits
from pretrain.errors import EXIT_REQUEUE
from pretrain.heartbeat import Heartbeat

log = logging.getLogger(__name__)

TICK_S = 0.5
FROZEN_S = 5.0
"""A thread that only sleeps and looks is not late by so much on a machine that works."""
STACKS_SIGNAL = signal.SIGUSR2
OTHERS_S = 2.0
"""Between the first rank's last words and its end, with which a launcher ends the others: time for their stacks."""
LAST_WORDS_S = 30.0
"""So long a rank that is ended may take to say why."""


class Watchdog:
    """Watches one rank's heartbeat while the context is open."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        logs: Path,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.heartbeat, self.logs, self._leave = heartbeat, logs, leave
        self._ended = threading.Event()
        self._file: TextIO | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        with contextlib.suppress(OSError):  # where nothing can be written nobody will ask
            self._file = self._stacks.open("a", encoding="utf-8")
            # A supervisor that ends this rank because another one is silent asks for its stacks first.
            faulthandler.register(STACKS_SIGNAL, self._file, all_threads=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._file is not None:
            faulthandler.unregister(STACKS_SIGNAL)
            self._file.close()

    @property
    def _stacks(self) -> Path:
        return self.logs / f"stacks-rank-{self.heartbeat.rank}.txt"

    def overdue(self) -> str:
        """What has taken too long, in words; empty while all is well."""
        return self._words() if self._late() else ""

    def _words(self) -> str:
        phase, silent = self.heartbeat.phase, time.monotonic() - self.heartbeat.last_seen
        patience = self.heartbeat.patience
        return (
            f"Rank {self.heartbeat.rank} has been silent for {silent:.0f} s in phase {phase}, whose limit is "
            f"{patience.of(phase):g} s ({patience.why(phase)}); {self._behind()}"
        )

    def _late(self) -> bool:
        limit = self.heartbeat.patience.of(self.heartbeat.phase)
        return 0 < limit < time.monotonic() - self.heartbeat.last_seen

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(TICK_S):
            stood_still, looked = time.monotonic() - looked - TICK_S, time.monotonic()
            if stood_still > FROZEN_S:
                # The whole process stood still (SIGSTOP, a suspended job, a paused machine): it could not have beaten,
                # and goes on. Where only this rank did, the others' watchdogs tell, and it is the one that is mute.
                log.warning("This process stood still for %.0f s, which do not count as silence.", stood_still)
                self.heartbeat.last_seen += stood_still
            if self._late():
                self._end()
                return

    def _end(self) -> None:
        # A file system that hangs, which may be why nothing goes on, must not keep the rank alive either.
        last_resort = threading.Timer(LAST_WORDS_S, self._leave, [EXIT_REQUEUE])
        last_resort.daemon = True
        last_resort.start()
        try:
            words = self._words()
            log.error("%s; %s. Start the run again and it continues.", words, self._write_stacks(words))
            exits.note(EXIT_REQUEUE, words, kind="hang")
            time.sleep(OTHERS_S)
        finally:
            last_resort.cancel()
            self._leave(EXIT_REQUEUE)

    def _write_stacks(self, words: str) -> str:
        """Returns where they are, or why they are nowhere: a full disk must not cost the words as well."""
        try:
            with self._stacks.open("a", encoding="utf-8") as file:
                file.write(f"{words}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"the stacks could not be written ({error})"
        return f"the stacks are in {self._stacks}"

    def _behind(self) -> str:
        """Who is furthest behind, by the files of all ranks."""
        found = []
        for path in self.heartbeat.folder.glob("rank-*.json"):
            try:
                beat = json.loads(path.read_text(encoding="utf-8"))
                found.append((beat["step"], beat["time"], beat["rank"], beat["host"], beat["phase"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if not found:
            return "no rank has left a sign of life"
        step, when, rank, host, phase = min(found)
        return f"furthest behind is rank {rank} on {host}: phase {phase} of step {step}, {time.time() - when:.0f} s ago"
