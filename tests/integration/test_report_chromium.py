"""The report in a real browser: it renders, its script runs, and nothing complains, in both themes and on paper."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dashboards.nearest_picture import Named, Nearby, NearestMap, write_map
from dashboards.replay_picture import Choice, Lane, ReplayPicture, Told, write_replay
from dashboards.report import write_report
from dashboards.report_data import (
    Channel,
    Excerpt,
    Header,
    Mark,
    MeasuredPoint,
    Period,
    ReferenceIdentity,
    Report,
    ScoreHistogram,
    StrangeRecord,
    Timeline,
    Traffic,
    VerdictSection,
    WordSpan,
    flat_map,
)
from dashboards.verdict_picture import write_verdict

pytestmark = pytest.mark.chromium

START = 1_772_438_400_000


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        reason = "Chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _run(chromium: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run headless Chromium with a profile of its own; its console goes to stderr."""
    return subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--hide-scrollbars",
            f"--user-data-dir={directory / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def _console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _report(text: str) -> Report:
    chance = np.random.default_rng(1)
    strength = chance.exponential(0.7, 200)
    strength[120:160] = 30.0
    vectors = chance.normal(size=(300, 4))
    edges = np.linspace(0, 5, 21)
    pixels = chance.integers(0, 256, (8, 8)).astype(np.uint8)
    return Report(
        header=Header(text, START, START + 2_000_000, "page", text),
        traffic=Traffic(51_200, 12, 0, {text: 3}),
        references=(ReferenceIdentity("input", 1, 100_000, 4, "ab" * 32, START),),
        timelines=(
            Timeline(
                space=text,
                segment="",
                starts_ms=START + np.arange(200, dtype=np.int64) * 10_000,
                block_ms=10_000,
                channels=(Channel(text, strength),),
                n=np.full(200, 256, dtype=np.int64),
                page=6.0,
                warn=4.0,
                marks=(Mark(START + 1_200_000, "onset"),),
            ),
        ),
        histograms=(ScoreHistogram("input", edges, np.arange(20), np.arange(20), 4.0),),
        maps=(flat_map("input", vectors, recent=vectors[:9], flagged=vectors[:2], labels=(text, text)),),
        strangest=(
            StrangeRecord(text, START, "input", "", 9.0, 1e-4, Excerpt(pixels, text), Excerpt(pixels, text), text, 0.5),
        ),
        settings=((text, text),),
        verdict=_verdict(text),
    )


def _verdict(text: str) -> VerdictSection:
    starts = START + np.arange(200, dtype=np.int64) * 10_000
    return VerdictSection(
        word=text,
        level="page",
        since_ms=START,
        reasons=(text,),
        numbers=((text, text),),
        unseen=text,
        next_step=f"`{text}`",
        spans=(WordSpan(START, START + 2_000_000, text, "page"),),
        starts_ms=starts,
        block_ms=10_000,
        low=np.full(200, 0.8),
        high=np.full(200, 0.9),
        floor=np.full(200, 0.85),
        novel=np.full(200, 0.1),
        measured=(MeasuredPoint(START, 0.9, 0.8, 0.95, 10),),
    )


@pytest.mark.parametrize(
    "text", ["orders", "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"]
)
def test_the_page_renders_and_its_script_runs_without_a_complaint(chromium: str, tmp_path: Path, text: str) -> None:
    page = tmp_path / "report.html"
    write_report(page, _report(text))
    done = _run(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert 'data-ready="yes"' in done.stdout, "the script did not reach its end"
    assert _console(done) == []
    assert "<title>x</title>" not in done.stdout


def test_the_picture_of_replays_renders_in_the_same_frame_without_a_complaint(chromium: str, tmp_path: Path) -> None:
    text = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    lane = Lane(text, text, (Told(START + 100_000, START + 200_000, "page"),))
    picture = ReplayPicture(
        title=text,
        start_ms=START,
        end_ms=START + 2_000_000,
        said=(text, text),
        lanes=(lane, lane),
        truth=(Period(START, START + 300_000, text),),
        strength=_report("x").timelines[0],
        choices=(Choice(text, 1.0, 60.0, "now", True), Choice(text, 0.0, 90.0, "suggested", True)),
        split_ms=START + 1_200_000,
    )
    page = tmp_path / "replay.html"
    write_replay(page, picture)
    done = _run(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert 'data-ready="yes"' in done.stdout and _console(done) == []
    assert "<title>x</title>" not in done.stdout and done.stdout.count('class="open page"') == 2


def test_the_map_of_neighbours_renders_in_the_same_frame_without_a_complaint(chromium: str, tmp_path: Path) -> None:
    text = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    dots = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
    picture = NearestMap(
        title=text,
        said=text,
        dots=dots,
        dot_words=(text,) * 300,
        group_of=np.arange(300) % 3 - 1,
        groups=(text, "b"),
        grouped_by=text,
        explained=0.3,
        measure="cosine",
        query=(0.1, 0.2),
        terms=(Named((1.0, 1.0), text, 1), Named((-1.0, 0.5), text, -1)),
        neighbours=tuple(Nearby((x, y), text, "0.9", 0.9, 0) for x, y in dots[:20].tolist()),
    )
    page = tmp_path / "map.html"
    write_map(page, picture)
    done = _run(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert 'data-ready="yes"' in done.stdout and _console(done) == []
    assert "<title>x</title>" not in done.stdout and done.stdout.count('class="number"') == 2 * 16


def test_the_picture_of_a_verdict_renders_in_the_same_frame_without_a_complaint(chromium: str, tmp_path: Path) -> None:
    text = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    page = tmp_path / "verdict.html"
    write_verdict(page, text, _verdict(text))
    done = _run(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert 'data-ready="yes"' in done.stdout and _console(done) == []
    assert "<title>x</title>" not in done.stdout and done.stdout.count('class="band"') == 1


def test_a_script_that_is_not_ours_is_refused_by_the_page(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(page, _report("orders"))
    page.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'taken'</script>"))
    done = _run(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert "<title>taken</title>" not in done.stdout
    assert any("Content Security Policy" in line for line in _console(done))


def test_light_and_dark_show_the_same_page_on_different_grounds(chromium: str, tmp_path: Path) -> None:
    import matplotlib.image

    page = tmp_path / "report.html"
    write_report(page, _report("orders"))
    grounds = {}
    for theme, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{theme}.png"
        _run(
            chromium,
            tmp_path,
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}",
            "--window-size=1000,600",
            page.as_uri(),
        )
        grounds[theme] = matplotlib.image.imread(shot)[..., :3]
    assert grounds["light"][2, 2].min() > 0.9
    assert grounds["dark"][2, 2].max() < 0.15
    for image in grounds.values():
        assert image.std() > 0.02, "the page is empty"


def test_the_page_prints(chromium: str, tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    write_report(page, _report("orders"))
    _run(chromium, tmp_path, f"--print-to-pdf={paper}", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 10_000
