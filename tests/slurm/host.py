"""The first process of one host of the test bed: makes the host's own places, starts its daemons, and waits.

Started by `tests.slurm.bed` inside fresh namespaces as `python -m tests.slurm.host MARK NAME ADDRESS`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.bed import CABLES, DATA, LOGIN, NET, ROOT, SHARED, STATE


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def main() -> None:
    name, own = sys.argv[2], sys.argv[3]
    # /proc is still the machine's own: this is our number out there.
    pid = Path("/proc/self/stat").read_text().split()[0]
    temporary = STATE / "pid" / f".{name}"
    temporary.write_text(pid)
    temporary.replace(STATE / "pid" / name)
    run("hostname", name)
    run("mount", "-t", "proc", "proc", "/proc")
    places(name)
    run("ip", "link", "set", "lo", "up")
    if name == LOGIN:
        for _, bridge in CABLES.values():
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        run("ip", "addr", "add", f"{own}/24", "dev", "br0")
    else:
        while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True).returncode:
            time.sleep(0.01)
        for device, net in (("eth0", NET), ("eth1", DATA)):
            run("ip", "addr", "add", f"{net}.{own.rpartition('.')[2]}/24", "dev", device)
            run("ip", "link", "set", device, "up")
    daemons(name)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:  # the first process has to bury all orphans
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.5)


def places(name: str) -> None:
    """/tmp, /run and /dev/shm of the host's own, with what is shared inside."""
    own = STATE / "host" / name / "tmp"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    own.chmod(0o1777)
    for seen in {SHARED, ROOT, Path(sys.prefix)}:  # the checkout and its environment may lie in /tmp too
        if seen.is_relative_to("/tmp"):
            inside = own / seen.relative_to("/tmp")
            inside.mkdir(parents=True, exist_ok=True)
            run("mount", "--rbind", seen, inside)
    run("mount", "--rbind", own, "/tmp")
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    run("mount", "--bind", STATE / "hosts", "/etc/hosts")
    munge = Path("/run/munge")
    munge.mkdir()
    shutil.chown(munge, "munge", "munge")


def daemons(name: str) -> None:
    """munged, and slurmctld or slurmd."""
    os.environ["SLURM_CONF"] = str(STATE / "slurm.conf")
    log = (STATE / "log" / f"daemons-{name}.log").open("a")
    socket = Path("/run/munge/munge.socket.2")
    files = [f"--socket={socket}", "--pid-file=/run/munge/munged.pid", "--seed-file=/run/munge/seed"]
    as_munge = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
    munged = [*as_munge, "munged", "--foreground", f"--key-file={STATE / 'munge.key'}", *files]
    subprocess.Popen(munged, stdout=log, stderr=log)
    while not socket.exists():
        time.sleep(0.02)
    daemon = ["slurmctld", "-D"] if name == LOGIN else ["slurmd", "-D", "-N", name]
    subprocess.Popen(daemon, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
