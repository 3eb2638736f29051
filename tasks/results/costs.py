"""What explaining costs: measured around every call of an explainer, kept in the done-records."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import torch

from storage.records import finished, read_record
from storage.run import Run
from storage.scores import read_values, write_table
from tasks.results.agreement import DRIFT

# Seconds between looks at the memory of the process, the first and the longest: every 5 ms they take 4 % of
# the core that explains.
_FIRST_LOOK, _LONGEST = 0.005, 0.1
_MIB = 1024 * 1024


@dataclass
class Meter:
    """A context manager that adds up the seconds spent in it, and notes the most memory taken there.

    ``peak`` is in bytes beyond what was taken on entering: on a GPU as PyTorch's allocator counts, otherwise
    of the process, so that what other threads take at the time counts as well; looked at after 5 ms, 10 ms
    more, 20 ms more, and so on to every 100 ms.
    """

    device: torch.device
    seconds: float = 0.0
    peak: int = 0

    def __enter__(self) -> Meter:
        self._left = threading.Event()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # batches are read ahead on another
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


def tell_costs(run: Run) -> pa.Table:
    """Compute and write ``costs.parquet``: one row per explainer.

    ``milliseconds`` a map, reading and writing left out; ``forward_passes`` a map, null where the explainer
    makes none of its own; ``peak_mib`` of memory in a step of ``images`` images, the worst of all shards.
    Steps done by versions that did not measure are left out; null if there are no others. The columns of
    :data:`tasks.results.agreement.DRIFT` compare the maps of the first step with those of float32; null where
    the run computes in float32 itself, or where that step has no maps or does not fit the device in float32.
    """
    rows = []
    for name in run.explainers:
        steps = [step for step in finished(run.root) if (step.stage, step.explainer) == ("saliency", name)]
        records = [record for step in steps if (record := read_record(run.root, step))]
        measured = [record for record in records if "explain_seconds" in record]
        maps = sum(record["explained"] for record in measured)
        seconds = sum(record["explain_seconds"] for record in measured)
        passes = read_values(run, name)["forward_passes"].drop_null().to_numpy()
        rows.append(
            {
                "explainer": name,
                "milliseconds": 1000 * seconds / maps if maps else None,
                "forward_passes": float(np.mean(passes)) if len(passes) else None,
                "peak_mib": max((record["peak_bytes"] / _MIB for record in measured), default=None),
                "images": run.batch_images,
                **{key: next((r[key] for r in measured if r.get(key) is not None), None) for key in DRIFT},
            }
        )
    schema = pa.schema(
        [("explainer", pa.string())]
        + [(key, pa.float64()) for key in ("milliseconds", "forward_passes", "peak_mib")]
        + [("images", pa.int64())]
        + [(key, pa.float64()) for key in DRIFT]
    )
    table = pa.Table.from_pylist(rows, schema)
    write_table(table, run.costs)
    return table
