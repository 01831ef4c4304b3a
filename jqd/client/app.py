"""Typed tasks: functions that are called here and run by a worker.

Knows:         which function has which name, how a call becomes a job, which client of which loop sends it.
Must not know: how a value becomes bytes (arguments.py), how a worker runs a function (worker.py, running.py).

    app = jqd.App("jqd://127.0.0.1:7717")

    @app.task(queue="emails", max_retries=5, timeout="30s")
    async def send(to: str, subject: str = "hello") -> int: ...

    await send("ada")                          # the function itself, here and now
    job = await send.submit("ada")             # a job; its arguments are checked as those of the function
    number = await job.wait()                  # int, and mypy knows
    await send.options(delay="5m", priority=9).submit("ada", subject="later")
    await send.map(["ada", "bob"], subject="to all")

A task is known by its name, never by an import: a worker runs what its own app has under the name, and what it does not
have fails. The name is the function's unless said otherwise, so that it stays when the module moves.
"""

import asyncio
import copy
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    Never,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    cast,
    overload,
)
from weakref import WeakKeyDictionary

from jqd.client import requests
from jqd.client.aio import AsyncClient
from jqd.client.arguments import Arguments, Call, pack
from jqd.client.current import CurrentJob
from jqd.client.handle import AsyncCall, Handle, SyncHandle, results_of, wait_for
from jqd.client.requests import HeldJob, JobOptions
from jqd.client.retry import Backoff
from jqd.client.sync import Client
from jqd.client.values import DEFAULT_URL, Duration, to_address, to_ms
from jqd.client.waits import Call as SyncCall
from jqd.client.waits import Wanted, wait_for_sync
from jqd.core.commands import Command, Submit, SubmitGroup, SubmitMany, SubmittedMany
from jqd.core.model import DEFAULT_QUEUE, JOBS_PER_REQUEST_MAX, NAME_CHARS_MAX, check_name

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])

Middleware = Callable[[CurrentJob], AbstractContextManager[Any]]
"""Called with each job; what it returns is entered around the handler, in the handler's own task, thread or process."""

Hook = Callable[[], Awaitable[None] | None]
"""Called when a process that runs handlers begins, or ends."""

# Payloads of one request: well below the 16 MiB of a frame, with all that stands beside them.
_MAP_BYTES_MAX: Final = 4 << 20


class TaskOptions(JobOptions, total=False):
    """What may be said about the jobs of a task: JobOptions but for `task` and `encoding`, and

    queue:  where its jobs go; `default`.
    unique: of calls with the same arguments one job lives at a time: a further submit returns the job that is there.
            A dedupe_key of the task's name and the arguments, so dedupe, dedupe_until and dedupe_ttl say more.
    """

    queue: str
    unique: bool


class Runnable:
    """A function that a worker can run for a job.

    Attributes:
        app: that it belongs to.
        name: what it is known by.
        path: `module:name`, where another process of this program finds it.
        timeout_s: how long an attempt may take; None: as long as it likes, its lease is extended meanwhile.
        is_async: whether it runs on the event loop.
    """

    def __init__(self, app: "App", function: Callable[..., Any], name: str, timeout: Duration | None) -> None:
        self.app = app
        self.__name__: str = function.__name__
        self.__qualname__ = function.__qualname__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__: Callable[..., Any] = function
        self.function = function
        self.name = name
        self.path: str = f"{function.__module__}:{function.__qualname__}"
        self.timeout_s: float | None = None if timeout is None else to_ms("timeout", timeout) / 1_000
        self.is_async: bool = inspect.iscoroutinefunction(function)

    def call_for(self, job: HeldJob) -> Call:
        """Return the arguments for a job. Raises: InvalidArgument: it has none that fit."""
        raise NotImplementedError


class Handler(Runnable):
    """A function that is given the jobs of a queue as they stand: those that name no task."""

    def call_for(self, job: HeldJob) -> Call:
        return (job,), {}


class Task(Runnable, Generic[P, R_co]):
    """A function whose calls can be submitted as jobs. Made by App.task."""

    def __init__(
        self,
        app: "App",
        function: Callable[..., Any],
        name: str,
        timeout: Duration | None,
        options: TaskOptions,
    ) -> None:
        super().__init__(app, function, name, timeout)
        self.arguments: Arguments = Arguments(function)
        self._options = options

    def __repr__(self) -> str:
        return f"<task {self.name} of {self.path}>"

    @property
    def queue(self) -> str:
        """The queue that its jobs go into."""
        return self._options.get("queue", DEFAULT_QUEUE)

    def options(self, **options: Unpack[TaskOptions]) -> Self:
        """Return this task with other options for the jobs that are submitted through it."""
        other = copy.copy(self)
        said = cast("TaskOptions", {**self._options, **options})
        if "dedupe_key" in options and "unique" not in options:
            said["unique"] = False  # the newer word
        elif "unique" in options and "dedupe_key" not in options:
            said["dedupe_key"] = None
        other._options = _checked(said)
        return other

    # --- one job ------------------------------------------------------------------------------

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
        """Submit a call; it is on disk when this returns.

        Raises: TypeError: the function cannot be called so. InvalidArgument: a value cannot be sent. And what
                AsyncClient.submit raises.
        """
        reply = await self.app.acall(self._command(args, kwargs))
        return self.handle(reply.job_id)

    def submit_sync(self, *args: P.args, **kwargs: P.kwargs) -> SyncHandle[R_co]:
        """Do what submit does, without an event loop."""
        return self.handle_sync(self.app.call(self._command(args, kwargs)).job_id)

    async def submit_and_wait(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Submit a call, wait until it has ended, and return its result. Raises: as submit and Handle.wait."""
        return await (await self.submit(*args, **kwargs)).wait()

    def submit_and_wait_sync(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Do what submit_and_wait does, without an event loop."""
        return self.submit_sync(*args, **kwargs).wait()

    def handle(self, job_id: int) -> Handle[R_co]:
        """Return the handle of a job that was submitted before, for coroutines."""
        return Handle(job_id, self.arguments.result, self.app.acall)

    def handle_sync(self, job_id: int) -> SyncHandle[R_co]:
        """Return the handle of a job that was submitted before, for threads."""
        return SyncHandle(job_id, self.arguments.result, self.app.call)

    # --- many jobs ----------------------------------------------------------------------------

    async def map(
        self: "Task[Concatenate[A, Q], R_co]", values: Iterable[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[Handle[R_co]]:
        """Submit a call for each value as first argument; what follows is the same for all of them.

        Up to 10,000 jobs, or 4 MiB of arguments, go in one request, all of them or none. A value that comes again
        in a task that is unique begins another one.

        Returns: handles in the order of the values.
        """
        ids: list[int] = []
        for command in self._commands(values, args, kwargs):
            ids += _ids(await self.app.acall(command))
        return [self.handle(job_id) for job_id in ids]

    def map_sync(
        self: "Task[Concatenate[A, Q], R_co]", values: Iterable[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[SyncHandle[R_co]]:
        """Do what map does, without an event loop."""
        ids: list[int] = []
        for command in self._commands(values, args, kwargs):
            ids += _ids(self.app.call(command))
        return [self.handle_sync(job_id) for job_id in ids]

    # --- as commands --------------------------------------------------------------------------

    def call_for(self, job: HeldJob) -> Call:
        return self.arguments.unpack(job.payload, job.encoding)

    def _job_options(self) -> tuple[str, JobOptions]:
        options: dict[str, Any] = {**self._options, "task": self.name, "encoding": "msgpack"}
        options.pop("unique", None)
        return options.pop("queue", DEFAULT_QUEUE), cast("JobOptions", options)

    @property
    def _is_unique(self) -> bool:
        return self._options.get("unique", False)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        digest = self.arguments.digest(args, kwargs)
        return f"{self.name[: NAME_CHARS_MAX - len(digest) - 1]}:{digest}"

    def _command(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Submit:
        queue, options = self._job_options()
        payload = self.arguments.pack(args, kwargs)
        if self._is_unique:
            options["dedupe_key"] = self._key(args, kwargs)
        return requests.submit(queue, payload, options)

    def _commands(
        self, values: Iterable[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[SubmitMany]:
        queue, options = self._job_options()
        # One group for all jobs; but those that are unique have a key each, which a request cannot name twice.
        groups: list[SubmitGroup] = []
        keys: set[str] = set()
        count = size = 0
        for value in values:
            call = (value, *args)
            payload = self.arguments.pack(call, kwargs)
            key = self._key(call, kwargs) if self._is_unique else None
            if groups and (
                size + len(payload) > _MAP_BYTES_MAX or count == JOBS_PER_REQUEST_MAX or key in keys
            ):
                yield requests.submit_many(groups)
                groups, count, size = [], 0, 0
                keys.clear()
            if key is not None:
                keys.add(key)
                options["dedupe_key"] = key
            if key is not None or not groups:
                groups += requests.group(queue, [payload], options)
            else:
                groups[0].payloads.append(payload)
            count += 1
            size += len(payload)
        if groups:
            yield requests.submit_many(groups)


class AsyncTask(Task[P, R_co]):
    """A task whose function is `async def`."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function, here and now."""
        result: R_co = await self.function(*args, **kwargs)
        return result


class SyncTask(Task[P, R_co]):
    """A task whose function is `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function, here and now."""
        result: R_co = self.function(*args, **kwargs)
        return result


def _ids(reply: SubmittedMany) -> list[int]:
    return [job_id for first, count, _ in reply.jobs for job_id in range(first, first + count)]


def _checked(options: TaskOptions) -> TaskOptions:
    if options.get("unique") and options.get("dedupe_key") is not None:
        raise TypeError("unique and dedupe_key: give one of them")
    for name in ("task", "encoding"):
        if name in options:
            raise TypeError(f"{name}: a task has its name and its encoding; say name= to App.task")
    unknown = options.keys() - TaskOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    return options


class _Decorator:
    """What `@app.task(...)` is applied to."""

    def __init__(self, app: "App", name: str | None, timeout: Duration | None, options: TaskOptions) -> None:
        self._made_with = app, name, timeout, options

    @overload  # what is `async def` is the narrower one, and stands first
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> SyncTask[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Task[..., Any]:
        app, name, timeout, options = self._made_with
        name = function.__name__ if name is None else name
        check_name("name", name)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{name}: a generator gives no result: a task is a def or an async def that returns"
            )
        kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
        task: Task[..., Any] = kind(app, function, name, timeout, options)
        other = app.tasks.setdefault(name, task)
        if other is not task and other.path != task.path:
            raise ValueError(
                f"task {name!r} is {other.path} already: give {task.path} another one with name="
            )
        app.tasks[name] = task  # the same function once more: its module was reloaded
        return task


class App:
    """Tasks, and the server that their jobs go to. Made when the module is imported; it connects when it is first used.

    It may be used from any thread, from any number of event loops one after the other, and on both sides of a fork.

    Args:
        url: `jqd://HOST[:PORT]` or `unix:///PATH`; default: the variable JQD_URL, else jqd://127.0.0.1:7717.
        timeout, backoff: see Client.
    """

    def __init__(
        self, url: str | None = None, *, timeout: Duration = 30, backoff: Backoff | None = None
    ) -> None:
        self.url: str = url or os.environ.get("JQD_URL") or DEFAULT_URL
        to_address(self.url, "url" if url else "$JQD_URL")
        self.tasks: dict[str, Task[..., Any]] = {}
        self.handlers: dict[str, Handler] = {}  # by queue
        self.middleware: list[Middleware] = []
        self.on_start: list[Hook] = []
        self.on_stop: list[Hook] = []
        self._timeout, self._backoff = timeout, backoff
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = WeakKeyDictionary()
        self._stand_in: tuple[SyncCall, AsyncCall] | None = None  # see redirect()

    # --- declaring ----------------------------------------------------------------------------

    def task(
        self,
        *bare: Never,
        name: str | None = None,
        timeout: Duration | None = None,
        **options: Unpack[TaskOptions],
    ) -> _Decorator:
        """Return the decorator that makes a task of a function.

        Args:
            name: what jobs name it by, and workers know it by; default: the function's name.
            timeout: Duration that one attempt may take on the worker; it fails then. None: no limit.
            options: of its jobs, see TaskOptions.
        """
        if bare:
            raise TypeError("task takes no positional arguments: write @app.task(), with its parentheses")
        return _Decorator(self, name, timeout, _checked(options))

    def handler(self, queue: str = DEFAULT_QUEUE, *, timeout: Duration | None = None) -> Callable[[F], F]:
        """Return the decorator for a function that is given the jobs of a queue that name no task, as HeldJob."""

        def register(function: F) -> F:
            if (
                queue in self.handlers
                and self.handlers[queue].path != f"{function.__module__}:{function.__qualname__}"
            ):
                raise ValueError(f"queue {queue!r} has the handler {self.handlers[queue].path} already")
            self.handlers[queue] = handler = Handler(self, function, function.__name__, timeout)
            vars(function)["__jqd_handler__"] = handler  # for a process of the pool
            return function

        check_name("queue", queue)
        return register

    def around(self, middleware: F) -> F:
        """Decorate a middleware: see Middleware. The first one that is declared is the outermost."""
        self.middleware.append(middleware)
        return middleware

    def before_start(self, hook: F) -> F:
        """Decorate a function, `def` or `async def`, that is called before a process runs its first handler."""
        self.on_start.append(hook)
        return hook

    def after_stop(self, hook: F) -> F:
        """Decorate a function, `def` or `async def`, that is called after a process has run its last handler."""
        self.on_stop.append(hook)
        return hook

    @property
    def queues(self) -> frozenset[str]:
        """The queues that its tasks and handlers are for, where a submit does not say another one."""
        return frozenset(self.handlers).union(task.queue for task in self.tasks.values())

    def runnable(self, job: HeldJob) -> Runnable | None:
        """Return what runs a job here: the task that it names, or its queue's handler; None: nothing does."""
        return self.handlers.get(job.queue) if job.task is None else self.tasks.get(job.task)

    # --- asking -------------------------------------------------------------------------------

    def call(self, command: Command[R], *, timeout: Duration | None = None) -> R:
        """Send a command and wait for its reply, in any thread."""
        if self._stand_in is not None:
            return self._stand_in[0](command, timeout=timeout)
        return self.client.call(command, timeout=timeout)

    async def acall(self, command: Command[R], *, timeout: Duration | None = None) -> R:  # noqa: ASYNC109
        """Send a command and wait for its reply, in any event loop."""
        if self._stand_in is not None:
            return await self._stand_in[1](command, timeout=timeout)
        return await self.aclient.call(command, timeout=timeout)

    async def wait_many(
        self,
        jobs: Sequence[Handle[R]],
        timeout: Duration | None = None,  # noqa: ASYNC109 - as Handle.wait has it
    ) -> list[R]:
        """Wait until all of these jobs have ended, and return what their functions returned, in the same order.

        Args:   timeout: Duration, for all of them; None: as long as it takes.
        Raises: what Handle.wait raises of the first one that has no result.
        """
        wanted = Wanted([job.job_id for job in jobs], timeout, all=True)
        return results_of(jobs, await wait_for(wanted, self.acall))

    def wait_many_sync(self, jobs: Sequence[SyncHandle[R]], timeout: Duration | None = None) -> list[R]:
        """Do what wait_many does, without an event loop."""
        wanted = Wanted([job.job_id for job in jobs], timeout, all=True)
        return results_of(jobs, wait_for_sync(wanted, self.call))

    @property
    def client(self) -> Client:
        """The client of this process's threads."""
        with self._lock:
            if self._client is None:
                self._client = Client(self.url, timeout=self._timeout, backoff=self._backoff)
            return self._client

    @property
    def aclient(self) -> AsyncClient:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is None:
                client = self._clients[loop] = AsyncClient(
                    self.url, timeout=self._timeout, backoff=self._backoff
                )
            return client

    def redirect(self, url: str | None = None, stand_in: tuple[SyncCall, AsyncCall] | None = None) -> None:
        """Send what is asked from now on elsewhere: for tests, see jqd.testing. Clients that were made are closed."""
        to_address(url or self.url)
        self.close_sync()
        with self._lock:
            self.url = url or self.url
            self._stand_in = stand_in
            self._clients.clear()

    async def close(self) -> None:
        """Close the connections of the running event loop, and those of the threads. Whoever asks makes new ones."""
        with self._lock:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()
        self.close_sync()

    def close_sync(self) -> None:
        """Close the connections of the threads."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_sync()


def pack_result(value: object) -> bytes | None:
    """Encode what a handler returned; None: nothing is kept. Raises: InvalidArgument."""
    return None if value is None else pack("result", value)
