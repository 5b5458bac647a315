"""Where is an event kept? This file: schedules in the MongoDB of the archive."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from pymongo import ASCENDING
from pymongo.errors import BulkWriteError

from pubsub.envelope import pack_draft, read_draft
from pubsub.errors import ArchiveUnavailable, JunkReceived
from pubsub.mongo_documents import DUPLICATE, Document, only_duplicates
from pubsub.schedules import Added, Claimed, Key, Schedule, sort_out

# Claims that stand and are looked at; what is due behind more than that waits.
_MOST_CLAIMS: Final = 10_000


class MongoSchedules:
    """Keeps schedules in a MongoDB; see `Schedules` for what it promises.

    `calling` is what the archive puts around each call. Where the server does not delete atomically
    (FerretDB), two may take over the same claim when it ends, which does no harm: see `Firing`.
    """

    def __init__(self, calling: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._calling = calling
        self._schedules: Any = None
        self._claims: Any = None

    async def open(self, database: Any) -> None:
        """Take the collections, and make their indexes."""
        schedules = database["schedules"]
        for names in (("deliver_at", "id"), ("channel", "deliver_at", "id")):
            await schedules.create_index([(name, ASCENDING) for name in names])
        self._claims = database["claims"]
        await self._claims.create_index([("till", ASCENDING)])
        self._schedules = schedules

    async def add(self, schedules: Sequence[Schedule], most: int) -> list[Added]:
        async with self._calling():
            counts: dict[str, int] = {}
            if most:
                for channel in {each.draft.channel for each in schedules}:
                    counts[channel] = await self._schedules.count_documents({"channel": channel})
            known = await self._known(schedules)
            answers, fresh = sort_out(schedules, known, counts, most)
            refused = set(await _insert(self._schedules, [_document(each) for each in fresh]))
            if not refused:
                return answers
            # Others have added the same ids meanwhile.
            late = [each for each in fresh if _id(each.key) in refused]
            known = await self._known(late)
            if missing := [each.key for each in late if each.key not in known]:
                await self._drop(list(map(_id, missing)))
                raise ArchiveUnavailable("a schedule was there and is not")
            found = {each.key: known[each.key] for each in late}
            return [
                (Added.SAME if found[schedule.key].is_same(schedule) else Added.OTHER)
                if schedule.key in found
                else answer
                for schedule, answer in zip(schedules, answers, strict=True)
            ]

    async def find(self, channel: str, event_id: str) -> Schedule | None:
        async with self._calling():
            found = await self._schedules.find_one({"_id": _id((channel, event_id))})
        return next(iter(_readable([found] if found else [])), None)

    async def page(
        self,
        channel: str,
        *,
        after: tuple[int, str] = (-1, ""),
        user: str | None = None,
        limit: int,
    ) -> list[Schedule]:
        if limit <= 0:
            return []
        time, event_id = after
        where: Document = {
            "channel": channel,
            "$or": [
                {"deliver_at": {"$gt": time}},
                {"deliver_at": time, "id": {"$gt": event_id}},
            ],
        }
        if user is not None:
            where["user"] = user
        async with self._calling():
            return _readable(await self._sorted(where, limit))

    async def earliest(self, after_ms: int = -1) -> int | None:
        async with self._calling():
            found = await self._schedules.find_one(
                {"deliver_at": {"$gt": after_ms}},
                {"deliver_at": True},
                sort=[("deliver_at", ASCENDING), ("id", ASCENDING)],
            )
        return None if found is None else int(found["deliver_at"])

    async def pending(self) -> int:
        async with self._calling():
            return int(await self._schedules.estimated_document_count())

    async def claim(self, holder: str, now_ms: int, till_ms: int, limit: int) -> Claimed:
        if limit <= 0:
            return Claimed()
        async with self._calling():
            standing = self._claims.find({"till": {"$gt": now_ms}}, {"_id": True})
            taken = [each["_id"] for each in await standing.limit(_MOST_CLAIMS).to_list(None)]
            due: Document = {"deliver_at": {"$lte": now_ms}}
            wanted = {
                each["channel"]
                for each in await self._sorted({**due, "channel": {"$nin": taken}}, limit)
            }
            if not wanted:
                return Claimed()
            await self._claims.delete_many({"_id": {"$in": list(wanted)}, "till": {"$lte": now_ms}})
            claims = [{"_id": each, "holder": holder, "till": till_ms} for each in wanted]
            mine = wanted.difference(await _insert(self._claims, claims))
            # Only now: who had the claim before may have done some of it.
            found = await self._sorted({**due, "channel": {"$in": list(mine)}}, limit)
            schedules = _readable(found)
            await self._release(holder, mine.difference(each["channel"] for each in found))
            if len(schedules) < len(found):
                readable = {_id(each.key) for each in schedules}
                await self._drop([each["_id"] for each in found if each["_id"] not in readable])
            return Claimed(tuple(schedules), len(found) - len(schedules))

    async def keep(self, holder: str, channels: Sequence[str], till_ms: int) -> None:
        async with self._calling():
            await self._claims.update_many(
                {"_id": {"$in": list(channels)}, "holder": holder}, {"$set": {"till": till_ms}}
            )

    async def release(self, holder: str, channels: Sequence[str]) -> None:
        async with self._calling():
            await self._release(holder, channels)

    async def remove(self, schedules: Sequence[Schedule]) -> int:
        if not schedules:
            return 0
        async with self._calling():
            result = await self._schedules.delete_many(
                {
                    "_id": {"$in": [_id(each.key) for each in schedules]},
                    "serial": {"$in": [each.serial for each in schedules]},
                }
            )
        return int(result.deleted_count)

    async def _known(self, schedules: Sequence[Schedule]) -> dict[Key, Schedule]:
        keys = list({_id(each.key) for each in schedules})
        found = await self._schedules.find({"_id": {"$in": keys}}).to_list(None)
        return {each.key: each for each in _readable(found)}

    async def _sorted(self, where: Document, limit: int) -> list[Document]:
        order = [("deliver_at", ASCENDING), ("id", ASCENDING)]
        found: list[Document] = (
            await self._schedules.find(where).sort(order).limit(limit).to_list(None)
        )
        return found

    async def _release(self, holder: str, channels: Collection[str]) -> None:
        if channels:
            await self._claims.delete_many({"_id": {"$in": list(channels)}, "holder": holder})

    async def _drop(self, ids: list[str]) -> None:
        await self._schedules.delete_many({"_id": {"$in": ids}})


def _id(key: Key) -> str:
    # No channel has a blank in its name.
    channel, event_id = key
    return f"{channel} {event_id}"


def _document(schedule: Schedule) -> Document:
    channel, event_id = schedule.key
    return {
        "_id": _id(schedule.key),
        "channel": channel,
        "id": event_id,
        "deliver_at": schedule.deliver_at,
        "serial": schedule.serial,
        "user": schedule.draft.user,
        "body": pack_draft(schedule.draft),
    }


def _readable(documents: Sequence[Document]) -> list[Schedule]:
    found = []
    for each in documents:
        try:
            draft = read_draft(each["channel"], each["body"])
            found.append(Schedule(draft, int(each["deliver_at"]), each["serial"]))
        except (JunkReceived, KeyError, TypeError, ValueError):
            continue
    return found


async def _insert(collection: Any, documents: list[Document]) -> list[str]:
    """Insert what is not there yet; return the keys of what is."""
    if not documents:
        return []
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if not only_duplicates(error):
            raise
        failed = (error.details or {}).get("writeErrors", ())
        return [documents[each["index"]]["_id"] for each in failed if each["code"] == DUPLICATE]
    return []
