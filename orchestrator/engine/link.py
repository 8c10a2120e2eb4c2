"""The client's end of a Dask cluster: connecting, asking workers, and noticing that the scheduler has gone."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import distributed

from orchestrator.engine.identity import dask_version
from orchestrator.errors import EngineError, UserError, printable

T = TypeVar("T")
Say = Callable[[str], None]

SCHEMES = {"dask": "tcp", "dask+tls": "tls"}
ADDRESS = re.compile(r"(?P<scheme>[a-z+]+)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
FIRST_S, CONNECT_S = 1.0, 5.0  # one attempt, before and after we say that we wait; it takes milliseconds
CLOSE_S = 10.0
RETRY_S = 0.5

# What a broken connection raises: CommClosedError and TimeoutError are kinds of OSError, a closed client says
# RuntimeError or ValueError.
BROKEN = (OSError, RuntimeError, ValueError)


class LinkError(Exception):
    """The scheduler did not answer, or the connection to it is gone."""


@dataclass(frozen=True)
class Resident:
    """A worker as the scheduler sees it: how many tasks it runs at once, and the resources that it declared."""

    address: str
    name: str
    threads: int
    resources: tuple[tuple[str, float], ...]


def dask_address(engine: str) -> str:
    """Dask's own form of ``dask://HOST:PORT`` or ``dask+tls://HOST:PORT``. Raises :class:`UserError`."""
    found = ADDRESS.fullmatch(engine)
    if found is None or found["scheme"] not in SCHEMES or not 0 < int(found["port"]) < 65536:
        raise UserError(
            f"{printable(engine)!r} is no address of a scheduler",
            hint="--engine dask://127.0.0.1:8786, or dask+tls://…",
        )
    return f"{SCHEMES[found['scheme']]}://{found['host']}:{found['port']}"


class Link:
    """A connection to the scheduler at ``engine``, made and made again by :meth:`connect`.

    With ``dask+tls`` certificates come from Dask's configuration (``distributed.comm.tls``).
    """

    def __init__(self, engine: str, say: Say) -> None:
        self.engine = engine
        self._address = dask_address(engine)
        self._say = say
        self._client: distributed.Client | None = None
        quiet()

    def connect(self, deadline_s: float) -> None:
        """Connect, trying again for ``deadline_s``. Raises :class:`EngineError`, or :class:`UserError` for a scheduler
        of another Dask and for TLS that is not set up."""
        self.close()
        ends = time.monotonic() + deadline_s
        told = False
        while True:
            try:
                attempt_s = min(CONNECT_S if told else FIRST_S, max(0.1, ends - time.monotonic()))
                self._knock(attempt_s)
                self._client = self._open(attempt_s)
                break
            except OSError as error:
                if time.monotonic() + RETRY_S >= ends:
                    raise EngineError(
                        f"no scheduler answers at {self.engine} within {deadline_s:.0f} s: {brief(error)}",
                        hint="dask scheduler --host 127.0.0.1 --port 8786   (see docs/dask.md)",
                    ) from error
            except (TypeError, ValueError, RuntimeError) as error:  # No certificate, encryption required, …
                raise UserError(f"cannot connect to {self.engine}: {brief(error)}", hint="see docs/dask.md") from error
            if not told:
                self._say(f"waiting for a scheduler at {self.engine}")
                told = True
            time.sleep(RETRY_S)
        self._check_scheduler()

    def close(self) -> None:
        """Leave the scheduler; what it still runs for us it forgets."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.close(timeout=CLOSE_S)
        except Exception:  # It is of no more use, whatever it is.
            _bury(client)

    @property
    def lost(self) -> bool:
        """Whether the scheduler has gone since :meth:`connect`: what it was asked for is gone as well."""
        return self._client is None or self._client.status != "running"

    def residents(self) -> dict[str, Resident]:
        """All workers by address. Raises :class:`LinkError`."""
        with _network():
            client = self._open_client
            # Not client.scheduler_info(): between its question and its answer a timer of the client's own may write
            # what it asks every two seconds, which is without workers (Client._update_scheduler_info()).
            workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
        return {
            address: Resident(
                address, printable(str(info["name"]))[:100], int(info["nthreads"]), tuple(info["resources"].items())
            )
            for address, info in workers.items()
        }

    def dask_versions(self) -> dict[str, str]:
        """The version of Dask that each worker has, by address. Raises :class:`LinkError`."""
        with _network():
            found = self._open_client.get_versions()["workers"]
        return {address: printable(str(_packages(info).get("distributed"))) for address, info in found.items()}

    def ask(self, workers: Sequence[str], function: Callable[..., T], *args: object) -> dict[str, T | Exception]:
        """Call a function of :mod:`orchestrator.engine.remote` in each of these workers; what came of it, by address.

        Raises :class:`LinkError` if it is the scheduler that did not answer.
        """
        with _network():
            answers: dict[str, T | Exception] = self._open_client.run(
                function, *args, workers=list(workers), on_error="return"
            )
        return answers

    @overload
    def ask_one(self, worker: str, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T: ...

    @overload
    def ask_one(self, worker: str, function: Callable[..., T], *args: object) -> T: ...

    def ask_one(self, worker: str, function: Callable[..., Any], *args: object) -> Any:
        """The same of one worker, also of a function that waits; raises what it raised."""
        answer = self.ask([worker], function, *args)[worker]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def submit(
        self,
        function: Callable[..., Any],
        *args: object,
        key: str,
        workers: Sequence[str],
        resource: str,
        when_done: Callable[[distributed.Future], None],
    ) -> distributed.Future:
        """Run ``function`` as a task in one of these workers that has one of ``resource`` free. :class:`LinkError`."""
        with _network():
            future = self._open_client.submit(
                function, *args, key=key, workers=list(workers), resources={resource: 1}, pure=False
            )
            future.add_done_callback(when_done)
        return future

    def result(self, future: distributed.Future, timeout_s: float) -> Any:
        """What came of a task that has ended.

        Raises :class:`TimeoutError` if it does not come in time (its worker died, and it runs again),
        :class:`~concurrent.futures.CancelledError` if Dask has forgotten it, and :class:`LinkError`.
        """
        try:
            return future.result(timeout=timeout_s)
        except TimeoutError:
            raise
        except BROKEN as error:
            raise LinkError(brief(error)) from error

    @property
    def _open_client(self) -> distributed.Client:
        if self._client is None or self._client.scheduler is None:
            raise ConnectionError("not connected")
        return self._client

    def _knock(self, timeout_s: float) -> None:
        """Raise OSError if nobody listens: each client of Dask's that fails to connect leaves a thread behind."""
        host, _, port = self._address.partition("://")[2].rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
            pass

    def _open(self, timeout_s: float) -> distributed.Client:
        client = distributed.Client.__new__(distributed.Client)  # To have it also when it fails to connect.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # About versions: we compare them ourselves, and name both.
                client.__init__(self._address, timeout=timeout_s, set_as_default=False)
        except BaseException:
            _bury(client)
            raise
        return client

    def _check_scheduler(self) -> None:
        packages = _packages(self._open_client.get_versions()["scheduler"])
        theirs, ours = printable(str(packages.get("distributed"))), dask_version()
        if theirs != ours:
            self.close()
            raise UserError(
                f"the scheduler at {self.engine} has Dask {theirs}, here is {ours}",
                hint=f"pip install distributed=={theirs}, or the other way round",
            )


def _bury(client: distributed.Client) -> None:
    """Let a client that failed rest. The garbage collector would close it again, in whatever thread it happens to run,
    and wait there for a lock that this thread may hold (LoopRunner in distributed/utils.py)."""
    client.status = "closed"


@contextlib.contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise LinkError(brief(error)) from error


def _packages(info: Any) -> dict[str, object]:
    found: dict[str, object] = info.get("packages", {}) if isinstance(info, dict) else {}
    return found


def quiet() -> None:
    """Keep Dask's own log to itself: what it says of lost connections is said by us, once and in words."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def brief(error: BaseException) -> str:
    """An error of Dask's in one line."""
    return printable(" ".join(str(error).split()))[:300] or type(error).__name__
