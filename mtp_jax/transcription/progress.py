"""The bar of a transcription: seconds of audio that are done, of about how many."""

from __future__ import annotations

import tqdm


class ProgressBar:
    """Counts seconds of audio.

    Args:
        total: seconds of all recordings, as far as they are known before they are read.

    Attributes:
        bar: the bar; a context manager that ends it.
    """

    def __init__(self, total: float) -> None:
        self._expected = total
        self.bar = tqdm.tqdm(
            total=total,
            bar_format="{percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of audio{postfix}",
            dynamic_ncols=True,
            postfix="starting",
        )

    def advance(self, seconds: float) -> None:
        """So many more are done."""
        self.bar.total = max(self._expected, self.bar.n + seconds)
        self.bar.update(seconds)
        elapsed = self.bar.format_dict["elapsed"]
        self.bar.set_postfix_str(
            f"{self.bar.n / max(elapsed, 1e-3):.0f} per second, [{elapsed:.0f} s]"
        )

    def compiling(self, rows: int, seconds: float) -> None:
        """The next batch, of so many rows of `seconds` each, waits for its program."""
        self.bar.set_postfix_str(f"compiling for {rows} x {seconds:.0f} s ...")

    def learn(self, longer: float) -> None:
        """A recording was `longer` (or shorter) than it was thought to be; all of it is done."""
        self._expected += longer
        self.bar.total = max(self._expected, self.bar.n)
        self.bar.refresh()
