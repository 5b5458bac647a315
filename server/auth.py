"""Who may do what? This file answers: whose credentials these are, whatever kind they are of."""

import time
from collections.abc import Callable, Iterable, Mapping

from config.rules import ChannelRules
from config.settings import Settings
from server.api_keys import ApiKeys
from server.errors import Forbidden, Unauthorized
from server.jwks import Jwks
from server.principal import GrantsCache, GrantsRejected, Principal
from server.revocations import Revocations
from server.tickets import Carried, Redeemed, Tickets
from server.tokens import TokenSigner, TokenVerifier


class Auth:
    """Turns credentials into principals. Every call is synchronous and costs no I/O.

    Made once per node; raises KeyRejected if a key in the settings cannot be used. `rules` are
    the ones that the node shares; `now` is the wall clock in seconds since 1970. The owner of
    `jwks` starts and closes it. `ticket_secret` signs tickets where there is no `token.secret`;
    without it too they are for this node alone.
    """

    __slots__ = (
        "_anonymous",
        "_grants",
        "_rules",
        "_signer",
        "_verifier",
        "keys",
        "revocations",
        "tickets",
    )

    def __init__(
        self,
        settings: Settings,
        rules: ChannelRules,
        *,
        now: Callable[[], float] = time.time,
        jwks: Jwks | None = None,
        ticket_secret: bytes = b"",
    ) -> None:
        token = settings.token
        self._rules = rules
        self._grants = GrantsCache()
        self._verifier = TokenVerifier(token, rules, self._grants, now=now, jwks=jwks)
        self._signer = TokenSigner(token, self._grants, now=now)
        self._anonymous = (
            Principal(kind="anonymous", grants=self._grants.grants(settings.anonymous.grants))
            if settings.anonymous.grants
            else None
        )
        self.keys = ApiKeys(settings.keys)
        # Twice the leeway: a token may be this much ahead when it is issued, and late at its end.
        self.revocations = Revocations(token.max_lifetime_s + 2 * token.leeway_s, now)
        self.tickets = Tickets(
            self._restore,
            secret=token.secret.encode() or ticket_secret or None,
            ttl_s=settings.sse.ticket_ttl_s,
            now=now,
        )

    def bearer(self, header: str) -> Principal:
        """Return whom an `Authorization` header names: an API key (`id.secret`) or a token.

        Raises Unauthorized or TokenExpired.
        """
        scheme, _, text = header.strip(" \t").partition(" ")
        text = text.strip(" ")
        if scheme.lower() != "bearer" or not text:
            raise Unauthorized("Authorization has to be: Bearer, a space, an API key or a token")
        # A key has one dot, a JWT two; neither of a key's parts can hold one.
        dots = text.count(".")
        if dots not in (1, 2):
            raise Unauthorized("neither an API key (id.secret) nor a token")
        return self.keys.authenticate(text) if dots == 1 else self.token(text)

    def token(self, text: str) -> Principal:
        """Return the user of a token (JWT); raises Unauthorized or TokenExpired."""
        return self._alive(self._verifier.verify(text))

    def anonymous(self) -> Principal:
        """Return who someone without credentials is; raises Unauthorized where none is let in."""
        if self._anonymous is None:
            raise Unauthorized("a token is required")
        return self._anonymous

    def ticket(self, principal: Principal) -> str:
        """Return a ticket for `principal`, to open a stream without a header."""
        return self.tickets.issue(principal)

    def redeem(self, ticket: str, last_event_id: str | None = None) -> Redeemed:
        """Return whom a ticket stands for; see `Tickets.redeem`.

        The ticket of a user who was ended, or of a key that was removed, is refused.
        """
        return self.tickets.redeem(ticket, last_event_id)

    def refresh(self, principal: Principal, text: str) -> Principal:
        """Return the principal with which the session of `principal` goes on.

        Raises Forbidden if the token is not one of the same user, Unauthorized or TokenExpired if
        it is not valid.
        """
        newer = self.token(text)
        if newer.user != principal.user:  # who is no user has None here, a token never
            raise Forbidden("a refresh may not change the user")
        return newer

    def mint(
        self, sub: str, grants: Mapping[str, Iterable[str]], ttl_s: float | None = None
    ) -> str:
        """Return a new token; see `TokenSigner.mint`. Whoever asks was checked before."""
        return self._signer.mint(sub, grants, ttl_s)

    def end_user(self, user: str, at_s: float, until_s: float) -> None:
        """Refuse the tokens and tickets of `user` issued up to `at_s`; sessions are the hub's."""
        self.revocations.end(user, at_s, until_s)

    def current(self, principal: Principal) -> Principal | None:
        """Return who `principal` is by now, for a session that lasts; None: no longer anyone.

        A service has the scopes that its key has now. After a reload sessions go on with this.
        """
        if principal.kind == "service":
            return self.keys.service(principal.key or "")
        if principal.kind == "user" and self._ended(principal):
            return None
        return principal

    def reload(self, settings: Settings) -> None:
        """Put the API keys of `settings` in force; tokens and anonymous access need a restart."""
        self.keys.replace(settings.keys)

    def _ended(self, principal: Principal) -> bool:
        return self.revocations.refuses(principal.user or "", principal.issued_at)

    def _alive(self, principal: Principal) -> Principal:
        if self._ended(principal):
            raise Unauthorized("token: this user's sessions were ended", reason="ended")
        return principal

    def _restore(self, carried: Carried) -> Principal:
        if carried.kind == "anonymous":
            return self.anonymous()
        if carried.kind == "service":
            service = self.keys.service(carried.key or "")
            if service is None:
                raise Unauthorized("ticket: its API key is no longer valid")
            return service
        if not carried.user or carried.expires_at is None:
            raise Unauthorized("ticket: not valid")
        try:
            grants = self._grants.grants(carried.grants)
        except GrantsRejected:
            # Of another version, whose nodes know other actions or patterns.
            raise Unauthorized("ticket: its grants are not understood") from None
        return self._alive(
            Principal(
                kind="user",
                user=carried.user,
                grants=grants,
                rules=self._rules,
                issued_at=carried.issued_at,
                expires_at=carried.expires_at,
            )
        )
