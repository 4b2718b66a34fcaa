"""The files in deploy/: each is right by itself, and they fit together. Nothing here needs a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.alertmanager import AlertmanagerSettings
from connectors.kafka import KafkaSettings
from monitor.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
OURS = f"driftd:{VERSION[1] if VERSION else ''}"

# The keys of the compose specification that are used here; a typo is none of them.
TOP_KEYS = {"name", "services", "volumes", "x-logging", "x-driftd"}
SERVICE_KEYS = {
    *("image", "build", "command", "entrypoint", "environment", "ports", "volumes", "depends_on", "healthcheck"),
    *("restart", "logging", "hostname", "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period"),
}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "disable"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
IMAGES = {"apache/kafka", "postgres", "prom/prometheus", "prom/alertmanager", "grafana/grafana"}


def read(file: str) -> Any:
    return yaml.safe_load((DEPLOY / file).read_text())


COMPOSE: dict[str, Any] = read("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
every_service = pytest.mark.parametrize("name", SERVICES)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


def variables() -> set[str]:
    return {name for text in texts(SERVICES) for name in re.findall(r"\$\{([A-Z_]+)", text)}


def filled(text: str) -> str:
    """As compose fills it in, where every variable is "secret"."""
    return re.sub(r"\$\{[^}]*\}", "secret", text)


def mounts(name: str) -> dict[str, str]:
    """What is mounted, by where in the container."""
    return {parts[1]: parts[0] for volume in SERVICES[name].get("volumes", []) for parts in [volume.split(":")]}


def inside(name: str, path: str) -> Path:
    """The file of this repository that a service finds at a path."""
    for at, source in mounts(name).items():
        if path == at or path.startswith(f"{at}/"):
            return (DEPLOY / source / path.removeprefix(at).lstrip("/")).resolve()
    raise AssertionError(f"{name} has nothing at {path}")


def listens(name: str) -> set[int]:
    """The ports that a service listens on, by its own settings."""
    if name == "kafka":
        return {int(port) for port in re.findall(r":(\d+)", SERVICES[name]["environment"]["KAFKA_LISTENERS"])}
    if name == "driftd":
        return {int(read("driftd.yaml")["http"]["bind"].rpartition(":")[2])}
    return {"postgres": {5432}, "prometheus": {9090}, "alertmanager": {9093}, "grafana": {3000}}[name]


# --- compose ----------------------------------------------------------------------------------------------------------


@every_service
def test_every_key_of_a_service_is_one(name: str) -> None:
    service = SERVICES[name]
    assert set(COMPOSE) <= TOP_KEYS
    assert set(service) <= SERVICE_KEYS
    assert set(service.get("healthcheck", {})) <= HEALTH_KEYS
    assert service.get("restart", "no") in ("no", "unless-stopped")
    assert set(service.get("build", {})) <= {"context", "dockerfile", "args"}
    assert set(service["logging"]) <= {"driver", "options"}
    for value in (service.get("environment") or {}).values():
        assert isinstance(value, str), "a number or a truth value is written by YAML as it likes"


@every_service
def test_images_are_pinned_and_known(name: str) -> None:
    image = SERVICES[name]["image"]
    repository, _, tag = image.rpartition(":")
    assert re.search(r"\d+\.\d+", tag), f"{image} may be another one tomorrow"
    assert image == OURS if "build" in SERVICES[name] else repository in IMAGES


@every_service
def test_what_a_service_waits_for_is_there_and_says_when_it_is_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES and set(how) == {"condition"} and how["condition"] in CONDITIONS
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"] or "build" in SERVICES[other]
        if how["condition"] == "service_completed_successfully":
            assert "restart" not in SERVICES[other], "it would never be over"
        assert name not in SERVICES[other].get("depends_on", {}), "each waits for the other"


@every_service
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, at, *mode = volume.split(":")
        assert at.startswith("/")
        if source.startswith("."):
            assert (DEPLOY / source).resolve().exists(), f"{source}: docker would make an empty folder of it"
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]
    assert len(mounts(name)) == len(SERVICES[name].get("volumes", []))


def test_every_volume_is_used() -> None:
    assert set(COMPOSE["volumes"]) == {
        source for name in SERVICES for source in mounts(name).values() if not source.startswith(".")
    }


@every_service
def test_ports_are_published_on_this_machine_only_and_listened_on(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        host, outside, within = port.split(":")
        assert host == "127.0.0.1" and int(within) in listens(name)
        assert sum(f":{outside}:" in other for one in SERVICES.values() for other in one.get("ports", [])) == 1


def test_secrets_come_from_the_environment_and_are_asked_for() -> None:
    example = (DEPLOY / ".env.example").read_text()
    assert variables() == set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)), "and hold nothing"
    for text in texts(SERVICES):
        for use in re.findall(r"\$\{[^}]*\}", text):
            assert ":?" in use, f"{use} may be empty"
    everything = "".join(file.read_text() for file in DEPLOY.rglob("*") if file.is_file() and file.suffix != ".pyc")
    assert not re.search(r"(?i)(password|token|secret)(: +|=)['\"]?[a-z0-9]{6,}", everything)
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines(), "nobody commits it by accident"


def test_addresses_between_services_are_those_that_are_listened_on() -> None:
    named = "|".join(SERVICES)
    found = set()
    for file in DEPLOY.rglob("*"):
        if file.is_file() and "kubernetes" not in file.parts and file.suffix in (".yml", ".yaml"):
            found |= set(re.findall(rf"\b({named}):(\d{{4,5}})\b", file.read_text()))
    assert {"kafka", "postgres", "alertmanager", "prometheus", "driftd"} <= {name for name, _ in found}
    for name, port in found:
        assert int(port) in listens(name), f"{name}:{port}"
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert advertised == "INTERNAL://kafka:9092,EXTERNAL://localhost:9094"


# --- what the services read -------------------------------------------------------------------------------------------


def test_driftd_finds_its_settings_and_the_other_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["driftd"]["environment"].items():
        monkeypatch.setenv(name, filled(value))
    command = SERVICES["driftd"]["command"]
    settings = load_settings(inside("driftd", command[command.index("--settings") + 1]))
    assert settings.database == "postgresql+psycopg://driftd:secret@postgres:5432/driftd"
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "driftd"
    assert SERVICES["postgres"]["environment"]["POSTGRES_DB"] == "driftd"
    assert str(settings.references).startswith("/var/lib/driftd/") and "/var/lib/driftd" in mounts("driftd")
    (model,) = settings.models.values()
    assert isinstance(model.source, KafkaSettings)
    assert f"--topic={model.source.topic}" in SERVICES["topic"]["command"]
    assert SERVICES["feed"]["command"] == ["--brokers", model.source.brokers, "--topic", model.source.topic]
    assert isinstance(settings.sinks["alertmanager"], AlertmanagerSettings)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: make servers")
def test_prometheus_takes_its_settings_and_the_rules(tmp_path: Path) -> None:
    config = read("prometheus/prometheus.yml")
    (rules,) = config["rule_files"]
    mounted = [at for at in mounts("prometheus") if Path(at).match(rules)]
    assert [inside("prometheus", at) for at in mounted] == [ROOT / "dashboards/rules/driftd.yml"]
    assert inside("prometheus", "/etc/prometheus/prometheus.yml") == DEPLOY / "prometheus/prometheus.yml"
    config["rule_files"] = [str(inside("prometheus", at)) for at in mounted]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed: make servers")
def test_alertmanager_takes_its_settings() -> None:
    file = inside("alertmanager", "/etc/alertmanager/alertmanager.yml")
    done = subprocess.run(["amtool", "check-config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_of_prometheus_that_driftd_sends_itself_are_known_by_their_label() -> None:
    rules = yaml.safe_load((ROOT / "dashboards/rules/driftd.yml").read_text())
    about = {rule["labels"]["about"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    (route,) = read("alertmanager/alertmanager.yml")["route"]["routes"]
    assert route["matchers"] == ['about = "model"'] and {"model"} < about


def test_grafana_finds_its_data_sources_and_every_dashboard() -> None:
    from dashboards.grafana import all_dashboards

    assert inside("grafana", "/etc/grafana/provisioning") == DEPLOY / "grafana/provisioning"
    sources = {each["type"]: each for each in read("grafana/provisioning/datasources/driftd.yaml")["datasources"]}
    assert set(sources) == {"postgres", "prometheus"}
    postgres = sources["postgres"]
    assert postgres["url"] == "postgres:5432" and postgres["jsonData"]["database"] == "driftd"
    password = postgres["secureJsonData"]["password"].removeprefix("$")
    assert password in SERVICES["grafana"]["environment"] and password in SERVICES["postgres"]["environment"]
    assert postgres["user"] in (DEPLOY / "postgres/10-grafana-reader.sh").read_text()
    (provider,) = read("grafana/provisioning/dashboards/driftd.yaml")["providers"]
    files = {file.name for file in inside("grafana", provider["options"]["path"]).iterdir()}
    assert {f"{dashboard.uid}.json" for dashboard in all_dashboards()} == files
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert inside("grafana", home).is_file()


def test_the_files_for_grafana_are_those_that_driftd_makes() -> None:
    """Stale? driftd dashboards build DIR --at /var/lib/driftd --postgres ... --prometheus ..., as it stands here."""
    from monitor.provisioning import provisioning_files

    made = provisioning_files(
        [],
        lambda folder, prometheus: {"title": "", "interval": 60, "rules": []},
        "",
        postgres="postgresql://grafana_reader@postgres:5432/driftd?sslmode=disable",
        prometheus="http://prometheus:9090",
        at="/var/lib/driftd",
    )
    for name in ("datasources/driftd.yaml", "dashboards/driftd.yaml"):
        assert (DEPLOY / "grafana/provisioning" / name).read_text() == made[name]


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_holds_what_the_package_needs_and_no_more() -> None:
    file = (DEPLOY / "Dockerfile").read_text()
    assert len(set(re.findall(r"^FROM (python:3\.\d+\.\d+-slim-bookworm)", file, re.MULTILINE))) == 1
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+)$", file, re.MULTILINE) for word in line.split()[:-1]}
    packages = re.search(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text())
    assert packages is not None
    wanted = {name.strip(' "*') for name in packages[1].split(",")} | {"pyproject.toml", "README.md", "LICENSE"}
    assert copied == wanted
    for name in copied:
        assert (ROOT / name).exists()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    extra = re.search(r"^ARG EXTRAS=(\w+)$", file, re.MULTILINE)
    assert extra is not None and re.search(rf"^{extra[1]} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert file.index("USER 10001") < file.index("ENTRYPOINT") and "/livez" in file
    for name in ("driftd", "feed"):
        build = SERVICES[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit_and_calls_it_safe(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd/driftd.service").read_text()
    assert "run --settings /etc/driftd/driftd.yaml" in text
    unit = tmp_path / "driftd.service"
    # Paths of another machine.
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if "driftd" in line]
    assert about_it == [], done.stderr
    safe = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert safe.returncode == 0, safe.stdout[-500:] + safe.stderr


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes/driftd.yaml").read_text())}


def test_the_manifests_fit_together(manifests: dict[str, Any]) -> None:
    kinds = {"Namespace", "ConfigMap", "PersistentVolumeClaim", "Deployment", "Service"}
    assert set(manifests) == kinds
    for kind in kinds - {"Namespace"}:
        assert manifests[kind]["metadata"]["namespace"] == manifests["Namespace"]["metadata"]["name"]
    deployment, service = manifests["Deployment"]["spec"], manifests["Service"]["spec"]
    pod = deployment["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert service["selector"].items() <= labels.items()
    (container,) = pod["spec"]["containers"]
    assert container["image"] == OURS
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= set(ports)
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/livez"), ("startupProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["settings"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    assert "Secret" not in manifests, "secrets are made by hand"
    (variable,) = container["env"]
    secret = variable["valueFrom"]["secretKeyRef"]
    text = (DEPLOY / "kubernetes/driftd.yaml").read_text()
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in text


def test_driftd_takes_the_settings_of_the_manifests(manifests: dict[str, Any], tmp_path: Path) -> None:
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    at = {mount["mountPath"] for mount in container["volumeMounts"]}
    (name, text) = next(iter(manifests["ConfigMap"]["data"].items()))
    assert f"/etc/driftd/{name}" in container["args"] and "/etc/driftd" in at
    (tmp_path / name).write_text(text)
    settings: Settings = load_settings(tmp_path / name)
    assert str(settings.references.parent) in at
    port = container["ports"][0]["containerPort"]
    assert settings.http.bind == f"0.0.0.0:{port}"
    for model in settings.models.values():
        assert isinstance(model.source, KafkaSettings) and model.source.instance == "none"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_takes_the_folder(manifests: dict[str, Any]) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert made["Deployment"]["spec"] == manifests["Deployment"]["spec"]
