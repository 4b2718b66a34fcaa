"""A server that speaks the protocol of S3, for tests: moto's, in a process of its own, with its data in memory."""

from __future__ import annotations

import importlib.util
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.servers.kafka import free_port

KEY, SECRET = "test-key", "test-secret"
_START_S = 30.0


def missing_s3() -> str:
    """Why no S3 server can be started; "" if one can."""
    missing = [name for name in ("moto", "flask", "s3fs") if importlib.util.find_spec(name) is None]
    return f"no S3 server: {', '.join(missing)} missing; type: pip install 'moto[server]' s3fs" if missing else ""


class S3Server:
    """Serves buckets on 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._log = directory / "s3.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment must hold."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the S3 server did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def new_bucket(self) -> str:
        """Make an empty bucket; its URL."""
        name = f"bucket-{secrets.token_hex(6)}"
        # Without a signature: this server believes everybody who asks for a bucket.
        request = urllib.request.Request(f"{self.address}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return f"s3://{name}"

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/moto-api/", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return True
