"""The cost of explaining, per explainer, from the done-records."""

from __future__ import annotations

from dataclasses import asdict, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.parquet import write_table
from storage.records import Agreement
from storage.run import Run
from storage.scores import read_values

_MIB = 1024 * 1024


def write_costs(run: Run) -> pa.Table:
    """Compute and write ``costs.parquet``: one row per explainer.

    Returns
    -------
    pyarrow.Table
        With these columns:

        - ``explainer``;
        - ``milliseconds`` per map, without reading and writing;
        - ``forward_passes`` per map; null if the explainer makes none of its own;
        - ``peak_mib``, MiB of memory in a batch of ``images`` images, the highest of all shards;
        - ``images``, the images per batch;
        - the fields of :class:`storage.records.Agreement`, which compare the maps of the first batch with
          those in float32. They are null if the run computes in plain float32, and if that batch has no maps
          or does not fit the device in float32.
    """
    rows = []
    records = run.records("saliency")
    for name in run.explainers:
        facts = [record.facts for record in records if record.step.explainer == name]
        costs = [each.cost for each in facts if each.cost is not None]
        maps = sum(cost.explained for cost in costs)
        scored = read_values(run, name)
        # Where an image failed, or has no further label, there is no map to explain.
        passes = scored.filter(pc.is_valid(scored["target"]))["forward_passes"].drop_null().to_numpy()
        found = next((each.agreement for each in facts if each.agreement), Agreement(None, None, None, None))
        rows.append(
            {
                "explainer": name,
                "milliseconds": 1000 * sum(cost.explain_seconds for cost in costs) / maps if maps else None,
                "forward_passes": float(np.mean(passes)) if len(passes) else None,
                "peak_mib": max((cost.peak_bytes / _MIB for cost in costs), default=None),
                "images": run.batch_images,
                **asdict(found),
            }
        )
    numbers = ["milliseconds", "forward_passes", "peak_mib"]
    schema = pa.schema(
        [("explainer", pa.string())]
        + [(key, pa.float64()) for key in numbers]
        + [("images", pa.int64())]
        + [(each.name, pa.float64()) for each in fields(Agreement)]
    )
    table = pa.Table.from_pylist(rows, schema)
    write_table(table, run.costs)
    return table
