"""Back-pressure from the HTTP client through Serve's proxy to the ingress replica.

Serve's proxy pulls a replica's response through an unbounded queue: ``send`` returns at once however
slowly the client reads (Ray 2.60), so a stream nobody reads would be generated to its end. Here the
proxy's side of a response tells the replica what it has passed on to the client's socket, and the
replica's ``send`` waits while more than ``WINDOW`` messages are on their way. With direct ingress the
replica itself holds the client's socket, whose ``send`` waits by nature; then none of this is installed.

The proxy's side is hooked in by the Ingress deployment's request router, which the proxy process runs and
which makes the replica wrappers that send requests. That is private to Serve: ray is pinned and a test
holds the contract.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve._private.common import RequestMetadata, RequestProtocol, RunningReplicaInfo
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS
from ray.serve._private.replica_result import ActorReplicaResult, ReplicaResult
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve._private.utils import generate_request_id
from ray.serve.context import _get_serve_request_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WINDOW = 2
"""Response messages on their way to the client before ``send`` waits."""
BODY = "http.response.body"


class ReadResult(ActorReplicaResult):
    """A streamed response that reports its reader's progress.

    Being asked for the next batch of messages means that those before it were written to the client's
    socket, which waits while the client does not read.
    """

    _report: Callable[[int], None]
    _bodies = 0

    async def __anext__(self) -> Any:
        if self._bodies:
            self._report(self._bodies)
        batch = await super().__anext__()
        self._bodies += sum(message["type"] == BODY for message in pickle.loads(batch))
        return batch


class IngressRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's own choice of ingress replica, with reports to it of what the proxy passed on."""

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """A replica whose proxied HTTP responses report to it."""
        return _ReportedReplica(replica_info)


class _ReportedReplica(RunningReplica):
    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> ReplicaResult:
        result = super().try_send_request(pr, with_rejection)
        if pr.metadata._request_protocol is RequestProtocol.HTTP and isinstance(result, ActorReplicaResult):
            result.__class__ = ReadResult
            assert isinstance(result, ReadResult)
            result._report = self._reporter(pr.metadata.internal_request_id)
        return result

    def _reporter(self, request_id: str) -> Callable[[int], None]:
        """Reports go to this very replica, which may be draining and known to no router any more."""

        def report(bodies: int) -> None:
            call = RequestMetadata(request_id, generate_request_id(), call_method="passed")
            self._actor_handle.handle_request.remote(pickle.dumps(call), request_id, bodies)

        return report


class ReaderLedger:
    """What each running response has sent and what of it was passed on."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def passed(self, request_id: str, bodies: int) -> None:
        """The proxy passed on ``bodies`` messages of a response so far; unknown ones have ended."""
        if (account := self._accounts.get(request_id)) is not None:
            account.passed(bodies)

    @contextmanager
    def account(self, request_id: str) -> Iterator[_Account]:
        """The account of one response, for as long as it runs."""
        account = self._accounts[request_id] = _Account()
        try:
            yield account
        finally:
            del self._accounts[request_id]


class _Account:
    def __init__(self) -> None:
        self._sent = 0
        self._passed = 0
        self._progress = asyncio.Event()

    def passed(self, bodies: int) -> None:
        self._passed = max(self._passed, bodies)
        self._progress.set()

    async def sent(self) -> None:
        """Count a message and wait until no more than ``WINDOW`` are on their way."""
        self._sent += 1
        while self._sent - self._passed > WINDOW:
            self._progress.clear()
            await self._progress.wait()


class ReaderCredit:
    """ASGI middleware that makes ``send`` wait for the client."""

    def __init__(self, app: ASGIApp, ledger: ReaderLedger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _get_serve_request_context()._internal_request_id
        if scope["type"] != "http" or RAY_SERVE_ENABLE_DIRECT_INGRESS or not request_id:
            await self._app(scope, receive, send)
            return
        with self._ledger.account(request_id) as account:

            async def credited(message: Message) -> None:
                await send(message)
                if message["type"] == BODY and message.get("more_body"):
                    await account.sent()

            await self._app(scope, receive, credited)
