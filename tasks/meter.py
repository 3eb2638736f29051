"""Measures the time and the peak memory of calls to an explainer."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import psutil
import torch

# Seconds between samples of the process's memory: the first interval and the longest one. Sampling every
# 5 ms all the time would take 4 % of the core that explains.
_FIRST_LOOK, _LONGEST = 0.005, 0.1


@dataclass
class Meter:
    """A context manager that adds up the seconds spent inside it and keeps the peak memory.

    Attributes
    ----------
    device
        Where the explainer computes.
    seconds
        Time spent inside, over all entries.
    peak
        The most memory in use, in bytes beyond what was in use on entering. On a GPU it is what PyTorch's
        allocator counts. On the CPU it is that of the whole process, so it includes what other threads take
        meanwhile; it is sampled after 5 ms, 10 ms more, 20 ms more, and so on up to every 100 ms.
    """

    device: torch.device
    seconds: float = 0.0
    peak: int = 0

    def __enter__(self) -> Meter:
        self._left = threading.Event()
        if self.device.type == "cuda":
            # Only this stream: the next batch is copied on another one meanwhile.
            torch.cuda.current_stream(self.device).synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._process = psutil.Process()
            self._before = self._process.memory_info().rss
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
            self._note(torch.cuda.max_memory_allocated(self.device))
        self.seconds += time.perf_counter() - self._start
        if self.device.type != "cuda":
            self._left.set()
            self._watcher.join()
            self._note(self._process.memory_info().rss)

    def _watch(self) -> None:
        pause = _FIRST_LOOK
        while not self._left.wait(pause):
            self._note(self._process.memory_info().rss)
            pause = min(2 * pause, _LONGEST)

    def _note(self, taken: int) -> None:
        self.peak = max(self.peak, taken - self._before)
