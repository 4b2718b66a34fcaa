"""Draws docs/drift_monitor.png: the three strengths of a `DriftMonitor` over a stream with a change.

python docs/drift_monitor.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from detectors import DriftMonitor, Reference
from tests.streams import Topics

BLOCK, BEFORE, AFTER = 64, 64_000, 4_096
COLOURS = {"level": "#0072b2", "shape": "#d55e00", "mix": "#009e73"}


def main() -> None:
    """Write the picture into docs."""
    topics, random = Topics(), np.random.default_rng(0)
    reference = Reference.build(topics.draw(120_000, random), prototypes=200)
    # Five of forty topics become twice as common.
    stream = np.concatenate([topics.draw(BEFORE, random), topics.draw(AFTER, random, prior=2.0)])
    monitor = DriftMonitor(reference, block=BLOCK, page_every=1e7, warn_every=2e4)
    readings = monitor.update(stream)
    page = next(reading for reading in readings if reading.page)
    shown = [reading for reading in readings if BEFORE - 2_000 <= reading.block * BLOCK <= page.block * BLOCK]

    figure, axes = plt.subplots(figsize=(9, 4), constrained_layout=True)
    for channel, colour in COLOURS.items():
        points = [reading for reading in shown if reading.channel == channel]
        axes.plot(
            [(reading.block + 1) * BLOCK for reading in points],
            [reading.strength for reading in points],
            color=colour,
            label=channel,
        )
    axes.axhline(page.threshold, color="black", linewidth=1, label="a page: once in 10,000,000 records by chance")
    axes.axhline(page.warn_threshold, color="grey", linewidth=1, label="a warning: once in 20,000")
    axes.axvline(BEFORE, color="black", linestyle=":", label=f"the change, at record {BEFORE:,}")
    axes.axvspan(page.onset_earliest, page.onset_latest, color="#cccccc", label="the onset, as the page puts it")
    axes.plot([(page.block + 1) * BLOCK], [page.strength], "o", color=COLOURS[page.channel])
    axes.set(xlabel="records", ylabel="strength (log10 of blocks)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(ROOT / "docs" / "drift_monitor.png", dpi=110)
    print(
        f"{page.channel} pages {(page.block + 1) * BLOCK - BEFORE:,} records after the change and puts the onset at "
        f"record {page.onset:,}, between {page.onset_earliest:,} and {page.onset_latest:,}."
    )


if __name__ == "__main__":
    main()
