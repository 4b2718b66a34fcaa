"""Tables reduced by components or by the auto-encoder, and not at all: one JSON line for each ADBench set, then means.

    python tests/benchmarks/autoencoder.py

Protocol: tests/quality/adbench.py, first split. The embedder is `tabular` as settings make it, the score is that of
driftd's own reference. Every reduction is to a quarter and to a half of the columns. "lost" is the share of the
variance that a reduction loses of training rows that it has not seen. The constants of the auto-encoder were chosen on
the sets of ``CHOSEN_ON``; the others say what to expect. 15 minutes at most on one core.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detectors.outlier import OutlierScorer
from detectors.reference import Reference
from monitor.embedders.embedder import Floats
from monitor.embedders.tabular import TabularSettings
from tests.quality import adbench

CHOSEN_ON = (
    "12_fault",
    "20_letter",
    "27_PageBlocks",
    "2_annthyroid",
    "31_satimage-2",
    "38_thyroid",
    "44_Wilt",
    "5_campaign",
    "7_Cardiotocography",
)
SHARES = {"quarter": 0.25, "half": 0.5}


def measure(name: str) -> dict[str, Any]:
    """AUROC x 100 of each reduction; for `auto`, what it chose is measured, which is one of the others."""
    data = adbench.split("classical", name, 0)
    width = data.train.shape[1]
    found: dict[str, Any] = {"benchmark": f"table_reduction/{name}", "unit": "AUROC x 100", "columns": width}
    found["none"] = _auroc(data, {})[0]
    for size, share in SHARES.items():
        dimension = max(1, round(width * share))
        for how in ("pca", "svd", "autoencoder"):
            score, seconds, _ = _auroc(data, {"dimension": dimension, "reduce": how})
            found[f"{how}, {size}"] = score
            found[f"{how}, {size}, fit s"] = round(seconds, 1)
        chosen, lost = _auto(data, dimension)
        found[f"auto, {size}"] = found["none" if chosen == "none" else f"{chosen}, {size}"]
        found[f"auto, {size}, chose"] = chosen
        found[f"lost, {size}"] = lost
    return found


def _columns(rows: Floats) -> list[list[float]]:
    return [column.astype(np.float64).tolist() for column in rows.T]


def _fitted(data: adbench.Split, settings: dict[str, Any]) -> Any:
    embedder = TabularSettings(numbers=[f"/{index}" for index in range(data.train.shape[1])], **settings).build()
    embedder.fit(_columns(data.train))
    return embedder


def _auroc(data: adbench.Split, settings: dict[str, Any]) -> tuple[float, float, Any]:
    start = time.perf_counter()
    embedder = _fitted(data, settings)
    seconds = time.perf_counter() - start
    reference = Reference.build(embedder.embed(_columns(data.train)).vectors, geometry=embedder.geometry)
    scores = OutlierScorer(reference).score(embedder.embed(_columns(data.test)).vectors)
    return round(adbench.auroc(data.anomalous, scores), 2), seconds, embedder


def _auto(data: adbench.Split, dimension: int) -> tuple[str, dict[str, float]]:
    embedder = _fitted(data, {"dimension": dimension, "reduce": "auto"})
    learned = embedder._learned
    if learned.auto_encoder is not None:
        return "autoencoder", learned.lost
    if learned.projection is None:
        return "none", learned.lost
    return ("pca" if any(learned.projection.mean) else "svd"), learned.lost


def main() -> int:
    if not adbench.DATA.is_dir():
        print(f"autoencoder: skipped: {adbench.NO_DATA}", file=sys.stderr)
        return 0
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for name in sys.argv[1:] or adbench.names("classical"):
        row = {**measure(name), "chosen on": name in CHOSEN_ON}
        rows[name in CHOSEN_ON].append(row)
        print(json.dumps(row), flush=True)
    for chosen, group in rows.items():
        if not group:
            continue
        names = ["none", *(f"{how}, {size}" for size in SHARES for how in ("pca", "svd", "autoencoder", "auto"))]
        means = {each: round(float(np.mean([row[each] for row in group])), 2) for each in names}
        title = "constants chosen on these" if chosen else "others"
        line = {"benchmark": f"table_reduction: {title}", "sets": len(group), "unit": "AUROC x 100", **means}
        value, against = means["autoencoder, quarter"], means["pca, quarter"]
        print(json.dumps({**line, "value": value, "ratio": round(value / against, 4), "against": "pca, quarter"}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
