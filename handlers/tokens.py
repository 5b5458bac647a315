"""How do bytes come in and go out? This file: tokens and tickets for clients."""

from typing import ClassVar, Final

import msgspec

from config.patterns import Pattern, PatternRejected
from handlers.base import BaseHandler
from handlers.drafting import read
from handlers.media import JSON, check_encoding, media_type
from handlers.models import Ticket, Token, TokenRequest
from server.errors import BadRequest, Forbidden, UnsupportedMediaType
from server.principal import Principal

_decode: Final = msgspec.json.Decoder(TokenRequest).decode


def require_covered(principal: Principal, request: TokenRequest) -> None:
    """Return if all that is to be granted is the key's own too; raises BadRequest, Forbidden.

    Subscribing and history both read a channel's events, so the key's `history` covers both.
    """
    for text, actions in request.grants.items():
        try:
            pattern = Pattern(text)
        except PatternRejected as error:
            raise BadRequest(f"grants: {error}") from None
        for action in actions:
            if not principal.grants.covers(action, pattern):
                raise Forbidden(f"this API key may not grant {action} on {pattern}")


class TokensHandler(BaseHandler):
    """`POST /v1/tokens`: mints a token for a client, within what the key may do itself."""

    route: ClassVar[str] = "/v1/tokens"

    def post(self) -> None:
        """Answer a token."""
        principal = self.authenticate()
        principal.require_scope("tokens")
        check_encoding(self.request.headers.get("Content-Encoding"))
        if media_type(self.content_type) != JSON:
            raise UnsupportedMediaType("the request is read as application/json")
        request = read(_decode, self.request.body, "the body")
        require_covered(principal, request)
        token = self.node.auth.mint(request.sub, request.grants, request.ttl_s)
        ttl_s = request.ttl_s
        if ttl_s is None:
            ttl_s = self.node.settings.token.default_ttl_s
        self.reply(Token(token=token, expires_s=int(ttl_s)))


class TicketsHandler(BaseHandler):
    """`POST /v1/tickets`: a ticket with which an EventSource opens a stream."""

    route: ClassVar[str] = "/v1/tickets"

    def post(self) -> None:
        """Answer a ticket for whom the request acts for, or for nobody where that is allowed."""
        node, principal = self.node, self.authenticate(anonymous=True)
        self.reply(
            Ticket(
                ticket=node.auth.ticket(principal), expires_s=int(node.settings.sse.ticket_ttl_s)
            )
        )
