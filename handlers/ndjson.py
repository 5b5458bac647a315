"""How do bytes come in? This file: publishing a stream of events, answered line by line."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar, Final

import msgspec
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.routing import Matcher
from tornado.web import stream_request_body

from handlers.base import BaseHandler
from handlers.drafting import Result, draft, error_result, idempotency_key, read_event, result
from handlers.lines import LineCutter, LineTooLong
from handlers.media import NDJSON, check_encoding, media_type
from pubsub.event import Draft
from server.errors import Internal, Refused, TokenExpired, TooLarge, Unauthorized, Unavailable
from server.principal import Principal
from server.timetable import Entry

_log: Final = logging.getLogger(__name__)

# Lines that go to the broker in one call: what has come together, up to this.
_PIECE: Final = 250
# A stream is as long as its publisher likes; only its lines are bounded.
_NO_LIMIT: Final = 1 << 62

_encode: Final = msgspec.json.Encoder().encode


def is_stream(method: str, path: str, headers: HTTPHeaders) -> bool:
    """Say whether a request publishes a stream of lines."""
    if path != NdjsonHandler.route or method != "POST":
        return False
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == NDJSON and "Ce-Specversion" not in headers


class StreamMatcher(Matcher):
    """Picks the requests that publish a stream, before the body is read."""

    def match(self, request: HTTPServerRequest) -> dict[str, object] | None:
        """Return the arguments of the handler (none), or None."""
        return {} if is_stream(request.method or "", request.path, request.headers) else None


@stream_request_body
class NdjsonHandler(BaseHandler):
    """`POST /v1/events` with `application/x-ndjson`: one event a line, one answer a line, in order.

    A line that is refused is answered by its error, and the others go on. A line may have
    `limits.frame_bytes`, like a message over WebSocket. The stream is read as fast as its answers
    are taken. It ends early, after a last error line, when the principal's time is over, when the
    node drains, or when no line was completed for `http.idle_timeout_s`.
    """

    route: ClassVar[str] = "/v1/events"

    def prepare(self) -> None:
        """Check all that can be before the first line; raises Refused."""
        super().prepare()
        self._idle: Entry | None = None
        self._busy = False
        self._place = 0
        headers = self.request.headers
        principal = self.authenticate(anonymous=True)
        media_type(self.content_type)
        check_encoding(headers.get("Content-Encoding"))
        self._who: Principal = principal
        self._key = idempotency_key(headers.get("Idempotency-Key"))
        self._cutter = LineCutter(self.node.settings.limits.frame_bytes)
        connection = self.request.connection
        connection.set_max_body_size(_NO_LIMIT)  # type: ignore[union-attr]
        self.set_header("Content-Type", NDJSON)
        # Nginx would hold answers back.
        self.set_header("X-Accel-Buffering", "no")
        self._watch()

    async def data_received(self, chunk: bytes) -> None:
        """Publish the lines that are complete; returns when their answers are on their way."""
        if self._finished:
            return
        # Who sends a line byte by byte gains no time; nor does any pass while answers are made and
        # taken, over which others watch.
        complete = b"\n" in chunk
        if complete:
            self._unwatch()
        await self._take(self._cutter.feed(chunk))
        if complete and not self._finished:
            self._watch()

    async def post(self) -> None:
        """Publish the last line, and end the answer."""
        await self._take(self._cutter.end())
        if not self._finished:
            self.finish()

    async def _take(self, lines: Iterator[bytes | LineTooLong]) -> None:
        self._busy = True
        try:
            while piece := list(islice(lines, _PIECE)):
                self._check_still()
                await self._publish(piece)
                await self.flush()
                # A flush that need not wait does not give way either.
                await asyncio.sleep(0)
        except StreamClosedError:
            self.gave_up()
        except Refused as refused:
            self._end_early(refused)
        except Exception:
            _log.exception("stream failed", extra={"request": self.request_id})
            self._end_early(Internal("something went wrong"))
        finally:
            self._busy = False

    async def _publish(self, lines: Iterable[bytes | LineTooLong]) -> None:
        results: list[Result | None] = []
        events: list[Draft] = []
        later: dict[int, int] = {}
        for line in lines:
            try:
                event, at = self._draft(line)
                if at is not None:
                    later[len(events)] = at
                events.append(event)
                results.append(None)
            except Refused as refused:
                self.node.metrics.refused(refused.reason)
                results.append(error_result(refused))
            self._place += 1
        answers = iter(await self.node.scheduling.publish(events, later) if events else ())
        for known in results:
            if known is None:
                answer = next(answers)
                if isinstance(answer, Refused):
                    self.node.metrics.refused(answer.reason)
                known = result(answer)
            self.write(_encode(known) + b"\n")

    def _draft(self, line: bytes | LineTooLong) -> tuple[Draft, int | None]:
        if isinstance(line, LineTooLong):
            most = self.node.settings.limits.frame_bytes
            raise TooLarge(f"the line is over {most} bytes", reason="limits.frame_bytes")
        key = None if self._key is None else f"{self._key}:{self._place}"
        request = read_event(line, "the line")
        event = draft(self.node, self._who, request, key)
        at = self.node.scheduling.due(request.deliver_at)
        self.exchange.pay_publish(self._who)
        return event, at

    def _check_still(self) -> None:
        """Return if the stream may go on; raises Refused."""
        principal = self.node.auth.current(self._who)
        if principal is None:
            raise Unauthorized("the credentials are no longer valid")
        if principal.expires_at is not None and principal.expires_at <= time.time():
            raise TokenExpired("token: expired")
        if self.node.lifecycle.draining:
            raise Unavailable("this node is going away")
        self._who = principal

    def _end_early(self, refused: Refused) -> None:
        self.node.metrics.refused(refused.reason)
        if not self._finished:
            self.write(_encode(error_result(refused)) + b"\n")
            self.finish()

    # ---- the end

    def _watch(self) -> None:
        self._unwatch()
        after_s = self.node.settings.http.idle_timeout_s
        self._idle = self.node.timetable.call_in(after_s, self._on_idle)

    def _on_idle(self) -> None:
        self._idle = None
        if self._busy:
            # Finishing now would lose the answer that is waited for, and with it this request.
            self._watch()
        elif not self._finished:
            self.finish()

    def on_connection_close(self) -> None:
        """Let go; the client went away."""
        super().on_connection_close()
        self._unwatch()
        self.gave_up()

    def on_finish(self) -> None:
        """Let go."""
        super().on_finish()
        self._unwatch()

    def _unwatch(self) -> None:
        idle = getattr(self, "_idle", None)
        if idle is not None:
            idle.cancel()
            self._idle = None
