"""A Dask cluster, as far as `monitor.distributed` needs one: processes of this machine, or a scheduler's address.

This is the one file that imports Dask; what it raises is translated here.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from detectors.errors import ClusterError, InvalidInput, MissingExtra

CONNECT_S: Final = 10.0
_LOOK_S: Final = 2.0  # between two looks at which workers there are
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CHECKED: Final = ("python", "dask", "distributed")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A task that is over.

    Attributes:
        answer: what it returned; None where it did not, and
        failure: says why.
        again: it may be tried once more.
        killed: because workers died while they made it.
    """

    task: Task[T]
    answer: T | None
    failure: str = ""
    again: bool = False
    killed: bool = False


class Task(Generic[T]):
    """A call that a worker is to make."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._future.cancel()


class Cluster:
    """A connection to the scheduler of a cluster. Used from one thread, but for what Dask does behind it.

    Args:
        client: `distributed.Client`.
        name: its address, or "N processes of this machine".
    """

    def __init__(self, client: Any, name: str) -> None:
        self.name = name
        self._client = client
        self._over: queue.SimpleQueue[tuple[Task[Any], Any]] = queue.SimpleQueue()
        self._workers: dict[str, Any] = {}
        self._looked = float("-inf")

    @property
    def workers(self) -> int:
        """How many worker processes there are now."""
        return len(self._known())

    @property
    def connected(self) -> bool:
        """The scheduler answers."""
        return self._client.status == "running" and self._client.scheduler is not None

    @property
    def addresses(self) -> list[str]:
        """Of the workers."""
        return list(self._known())

    def submit(
        self, call: Callable[..., T], *arguments: object, first: bool = False, worker: str | None = None
    ) -> Task[T]:
        """Have a worker make a call.

        Args:
            first: before others that wait.
            worker: the address of the one that is to do it.

        Raises:
            ClusterError: the connection to the scheduler is closed.
        """
        try:
            future = self._client.submit(call, *arguments, pure=False, priority=10 if first else 0, workers=worker)
        except Exception as error:
            raise ClusterError(
                f"The connection to the Dask scheduler at {self.name} is closed.",
                hint="What was scored stays. Start the scheduler, and type the same command again to go on.",
            ) from error
        task: Task[T] = Task(future)
        future.add_done_callback(lambda done: self._over.put((task, done)))
        return task

    def over(self, timeout_s: float) -> list[Done[Any]]:
        """The tasks that are over since the last call; waits for the first of them."""
        found: list[Done[Any]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._answer(*self._over.get(timeout=timeout_s)))
            while True:
                found.append(self._answer(*self._over.get_nowait()))
        return found

    def _answer(self, task: Task[Any], future: Any) -> Done[Any]:
        """What a task returned. Its copy on the worker is dropped with it."""
        try:
            if future.status == "finished":
                return Done(task, future.result(timeout=CONNECT_S))
            if future.status == "cancelled":
                return Done(task, None, "the scheduler has forgotten it", again=True)
            return self._why(task, future.exception(timeout=CONNECT_S))
        except Exception as error:  # the worker that held the answer is gone, or the scheduler
            return Done(task, None, f"its answer was lost ({_in_words(error)})", again=True)
        finally:
            future.release()

    def _why(self, task: Task[Any], error: BaseException | None) -> Done[Any]:
        """Why a task has no answer."""
        from distributed.scheduler import KilledWorker

        if error is None:  # it began to be done again, or was done after all, between two questions
            return Done(task, None, "the worker that had its answer is gone", again=True)
        if isinstance(error, KilledWorker):
            worker = getattr(error.last_worker, "address", error.last_worker)
            why = f"{error.allowed_failures + 1} workers died while they did it, the last one {worker}"
            return Done(task, None, why, again=True, killed=True)
        if isinstance(error, ImportError):
            return Done(task, None, f"a worker lacks a package: {_in_words(error)}")
        return Done(task, None, _in_words(error))

    def _known(self) -> Mapping[str, Any]:
        if time.monotonic() - self._looked >= _LOOK_S:
            try:
                self._workers = dict(self._client.scheduler_info(n_workers=-1)["workers"])
            except Exception:  # not connected now
                self._workers = {}
            self._looked = time.monotonic()
        return self._workers


@contextmanager
def cluster_of(wanted: str, *, secrets: Mapping[str, str]) -> Iterator[Cluster]:
    """A cluster by the scheduler's address, or of ``wanted`` processes of this machine, which end with the block.

    Args:
        secrets: environment variables for processes that are started here; nothing is sent to a cluster that is there.

    Raises:
        MissingExtra: Dask is not installed.
        InvalidInput: neither an address nor a number.
        ClusterError: nothing answers there, nobody works there, or it has other versions.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise MissingExtra(
            "Scoring by several processes needs Dask, which is not installed.",
            hint="Type: pip install 'driftd[dask]'",
        ) from error
    if not wanted.isdecimal() and "://" not in wanted:
        raise InvalidInput(
            f"--dask {wanted} is neither an address nor a number of processes.",
            hint="For example: --dask tcp://scheduler:8786, or --dask 2",
        )
    if wanted.isdecimal() and not 1 <= int(wanted) <= 1024:
        raise InvalidInput(f"--dask {wanted}: there must be at least one process.", hint="For example: --dask 2")
    # What is sent with a task are halves of pairs and keys, at most; they are bounded elsewhere.
    chosen: dict[str, Any] = {
        "distributed.admin.large-graph-warning-threshold": "1GB",
        "distributed.comm.timeouts.connect": CONNECT_S,
    }
    with ExitStack() as stack:
        if wanted.isdecimal():  # its web servers, which cannot be left out, have nothing to show
            chosen |= {f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}
            # Dask's own environment would give memory back after each batch (MALLOC_TRIM_THRESHOLD_), and its profiler
            # looks at every thread 100 times a second.
            chosen["distributed.nanny.pre-spawn-environ"] = dict.fromkeys(_ONE_THREAD, "1")
            chosen["distributed.worker.profile.enabled"] = False
        stack.enter_context(dask.config.set(chosen))
        address: Any = wanted
        if wanted.isdecimal():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="driftd-dask-"))
            address = stack.enter_context(_local(int(wanted), folder, secrets))
        try:
            connect: Any = distributed.Client
            client = connect(address, timeout=CONNECT_S, set_as_default=False, name="driftd-backfill")
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at {wanted} within {CONNECT_S:.0f} s.",
                hint="Look for it: dask scheduler prints its address. Or use processes of this machine: --dask 2",
            ) from error
        stack.callback(_closed, client)
        name = wanted if not wanted.isdecimal() else f"{wanted} processes of this machine"
        cluster = Cluster(client, name)
        _check(cluster, client)
        yield cluster


@contextmanager
def _local(count: int, folder: str, secrets: Mapping[str, str]) -> Iterator[Any]:
    """Processes of one thread each, heard on this machine only, without the web server of Dask."""
    import distributed

    # What is started while Ctrl-C is ignored ignores it for good: it ends when the backfill does.
    with _ignoring_interrupts():
        try:
            start: Any = distributed.LocalCluster
            cluster = start(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                local_directory=folder,
                env=dict(secrets),
            )
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterError(
                f"{count} processes could not be started: {_in_words(error)}.", hint="Try fewer: --dask 1"
            ) from error
    try:
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            cluster.close(timeout=CONNECT_S)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check(cluster: Cluster, client: Any) -> None:
    """Raise ClusterError where nobody works, or versions differ."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise ClusterError(
            f"The Dask scheduler at {cluster.name} has no workers.",
            hint="Start some where driftd is installed: dask worker ADDRESS --nthreads 1 --nworkers 4",
        ) from error
    found = client.get_versions()
    mine = _versions_of(found["client"])
    others = {"The scheduler": found["scheduler"], **{f"Worker {name}": one for name, one in found["workers"].items()}}
    for name, said in others.items():
        for package, wanted in mine.items():
            has = _versions_of(said).get(package)
            if has != wanted:
                raise ClusterError(
                    f"{name} of {cluster.name} has {package} {has or 'unknown'}; here it is {wanted}.",
                    hint="Run driftd, the scheduler and the workers from the same image.",
                )


def _versions_of(said: Any) -> dict[str, str]:
    packages = said.get("packages", {}) if isinstance(said, Mapping) else {}
    found = {name: str(packages.get(name) or "") for name in _CHECKED}
    return {name: ".".join(text.split(".")[:2]) if name == "python" else text for name, text in found.items()}


def _closed(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=CONNECT_S)


def _in_words(error: BaseException | None) -> str:
    text = str(error).split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
