"""Starts training under `bench.training_phases`, which notes the phases of the run."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 900  # seconds that a command may take


class Start:
    """One start of the command in a workdir.

    Args:
        run: folder of what it says; `name`: of the workdir.
        group: flags of one of several processes.
        place: of the config and the workdir, if that is another folder.
        largest_file: bytes, as a limit of the system; 0 for none.
    """

    _number = 0

    def __init__(
        self,
        run: Path,
        name: str,
        group: tuple[str, ...] = (),
        place: Path | None = None,
        largest_file: int = 0,
    ) -> None:
        Start._number += 1
        self.phases, self._log = (run / f"{Start._number}.{kind}" for kind in ("phases", "log"))
        self.phases.unlink(missing_ok=True)  # of an earlier use of the folder
        command = [sys.executable, "-m", "bench.training_phases", str(self.phases), "--"]
        place = place or run
        command += [f"--config={place / 'tiny.py'}", f"--workdir={place / name}", *group]

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        self.begun = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=limit if largest_file else None,
            )

    def notes(self) -> list[tuple[str, float]]:
        """Phases so far, and when each began."""
        lines = self.phases.read_text().split("\n")[:-1] if self.phases.exists() else []
        noted = [line.split() for line in lines]
        return [("start-up", self.begun), *((phase, float(at)) for phase, at in noted)]

    def wait_for(self, phase: str, times: int) -> bool:
        """Returns once the phase has begun as often; False if the process has ended before."""
        while sum(name == phase for name, _ in self.notes()) < times:
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def end(self, seconds: float = LONGEST) -> int:
        """The exit status; one that does not end is killed, and its status is -1000."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -1000

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace").replace("\r", "\n")

    @property
    def last_line(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
