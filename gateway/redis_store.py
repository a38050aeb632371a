"""Accounts in Redis, for as many processes and machines as share one: the rules of `gateway.limit_store`, in Lua.

All accounts of a call are asked for in one round trip, and by its clock. What is lost with a Redis that restarts without
its data, or with a primary whose last writes had not got to the replica that has taken its place, comes back by itself:
everybody says again what he has, and the ledger what has been spent.

Lua's numbers are doubles: whole up to 2^53, which is nine million USD in nano-USD. Limits, and what has been spent, are
exact beyond that; what one process has on lease at once is exact up to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from gateway.allowance import Ask, Grant
from gateway.limit_store import DEAD_AFTER_S, FORGOTTEN_AFTER_S, SETTLING_S, LimitStoreAway
from gateway.redis_client import PREFIX, asked, client_of, hear
from gateway.redis_url import RedisUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

log = logging.getLogger(__name__)

_META, _HEARD, _NEWS = PREFIX + "meta", PREFIX + "heard", PREFIX + "news"
_ASKED, _BUDGETS = PREFIX + "asked", PREFIX + "budgets:"
_AGAIN_S = 0.5
_FINDING_S = 2.0
"""Who has to find it first, at another address than before, takes longer to say what he has."""

_ARRIVE = """
-- Another server than the last time, or the same one started anew: it may have lost what it knew.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if redis.call('HGET', KEYS[1], 'run') ~= run then
    local now = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'run', run, 'since', string.format('%.0f', now[1] * 1000000 + now[2]))
end
"""

_EXCHANGE = """
-- KEYS: meta, heard, the asker's budgets, asked, and an account for each six of ARGV behind the first eight.
local function whole(number) return string.format('%.0f', number) end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local process, dead_us, settling_us, news = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local kept_s, known_since, number, budgets = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
redis.call('ZADD', KEYS[2], whole(now_us), process)
local since = redis.call('HGET', KEYS[1], 'since')
-- A Redis that hung may come to a question only after the next one, which says more of what is so.
if since and number <= tonumber(redis.call('ZSCORE', KEYS[4], process) or '0') then return {tonumber(since)} end
redis.call('ZADD', KEYS[4], number, process)

local function lost(account)
    -- Somebody has something of it on lease: so it was there, and has been thrown out.
    for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
        if redis.call('SISMEMBER', budgets .. name, account) == 1 then return true end
    end
    return false
end

-- Begun anew: with nothing, without some of it, or at a clock that has been set back.
local anew = not since or tonumber(since) > now_us
for i = 5, #KEYS do
    if ARGV[9 + (i - 5) * 6] == 'usd' and redis.call('EXISTS', KEYS[i]) == 0 and lost(KEYS[i]) then anew = true end
end
if anew then
    since = whole(now_us)
    redis.call('HSET', KEYS[1], 'since', since)
end
local settling = math.max(since == known_since and 0 or 1, tonumber(since) + settling_us - now_us)

-- Texts of digits, exact beyond what a number can be.
local function larger(one, other)
    if #one > #other or (#one == #other and one > other) then return one end
    return other
end
local function split(text)
    local cut = #text - 12
    if cut <= 0 then return 0, tonumber(text) end
    return tonumber(string.sub(text, 1, cut)), tonumber(string.sub(text, cut + 1))
end

local alive = {}
local function is_alive(name)
    if alive[name] == nil then
        local heard = redis.call('ZSCORE', KEYS[2], name)
        alive[name] = heard and now_us - tonumber(heard) < dead_us or false
    end
    return alive[name]
end

local function grant(account, kind, limit, said, had, need, wanted)
    local stored, at, short_at, others_high, others_low, mine = '0', 0, 0, 0, 0, 0
    local fields = redis.call('HGETALL', account)
    for i = 1, #fields, 2 do
        local name, value = fields[i], fields[i + 1]
        if name == 'spent' then stored = value
        elseif name == 'at' then at = tonumber(value)
        elseif name == 'short' then short_at = tonumber(value)
        elseif name == 'l:' .. process then mine = tonumber(value)
        elseif kind == 'usd' or is_alive(string.sub(name, 3)) then
            local high, low = split(value)
            others_high, others_low = others_high + high, others_low + low
        else redis.call('HDEL', account, name) end
    end
    local spent
    if kind == 'rate' then
        local drained = tonumber(limit) * math.max(0, now_us - at) / 60000000
        local left = math.max(0, math.max(0, tonumber(stored) - drained) + tonumber(said))
        stored, spent = string.format('%.17g', left), whole(math.ceil(left))
    else
        stored = larger(stored, said)
        spent = stored
    end
    local limit_high, limit_low = split(limit)
    local spent_high, spent_low = split(spent)
    local others = others_high * 1e12 + others_low
    local wait = kind == 'usd' and settling or 0
    local room = (limit_high - spent_high - others_high) * 1e12 + (limit_low - spent_low - others_low)
    room = wait > 0 and 0 or math.min(room, 2^53)
    local lease = had
    if wanted <= had or room >= wanted then lease = wanted
    elseif room >= need then lease = math.max(had, room) end
    redis.call('HSET', account, 'spent', stored, 'at', whole(now_us), 'l:' .. process, whole(lease))
    redis.call('EXPIRE', account, kept_s)
    if kind == 'usd' then
        redis.call(lease > 0 and 'SADD' or 'SREM', KEYS[3], account)
        redis.call('EXPIRE', KEYS[3], kept_s)
    end
    if lease < need and others > 0 and wait == 0 then
        redis.call('HSET', account, 'short', whole(now_us))
        redis.call('PUBLISH', news, 'short ' .. process .. ' ' .. account)
    elseif lease < mine and now_us - short_at < 2000000 then
        redis.call('PUBLISH', news, 'back ' .. process .. ' ' .. account)
    end
    return lease, spent, others, math.ceil(wait / 1000)
end

local out = {tonumber(since)}
for i = 5, #KEYS do
    local at = 8 + (i - 5) * 6
    local lease, spent, others, wait = grant(
        KEYS[i], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3],
        tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]))
    for _, figure in ipairs({lease, spent, others, wait}) do out[#out + 1] = figure end
end
return out
"""

_ENDED = """
-- KEYS: heard, the dead one's budgets, asked, and an account for each of ARGV behind the first, the dead one's name.
local process = ARGV[1]
for i = 4, #KEYS do
    local spent, said = redis.call('HGET', KEYS[i], 'spent') or '0', ARGV[i - 2]
    if #said > #spent or (#said == #spent and said > spent) then redis.call('HSET', KEYS[i], 'spent', said) end
    redis.call('HDEL', KEYS[i], 'l:' .. process)
    redis.call('SREM', KEYS[2], KEYS[i])
end
if redis.call('SCARD', KEYS[2]) == 0 then
    redis.call('ZREM', KEYS[1], process)
    redis.call('ZREM', KEYS[3], process)
end
"""


_KNOWN = """
-- KEYS: meta, heard.
local time, since = redis.call('TIME'), redis.call('HGET', KEYS[1], 'since')
local settling_us = since and tonumber(since) + tonumber(ARGV[1]) - (time[1] * 1000000 + time[2]) or tonumber(ARGV[1])
return {math.max(0, math.ceil(settling_us / 1000)), redis.call('ZRANGE', KEYS[2], 0, -1)}
"""

_REPAIR = """
-- KEYS: meta, and an account for each two of ARGV: what it is expected to have, and what it is to have.
local repaired = {}
for i = 2, #KEYS do
    if redis.call('HGET', KEYS[i], 'spent') == ARGV[2 * i - 3] then
        redis.call('HSET', KEYS[i], 'spent', ARGV[2 * i - 2])
        repaired[#repaired + 1] = KEYS[i]
    end
end
if #repaired > 0 then
    -- As if it had begun anew: nobody is given more of a budget before he has read the ledger again.
    local now = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now[1] * 1000000 + now[2]))
end
return repaired
"""


class _Script:
    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_EXCHANGING, _ENDING, _REPAIRING = _Script(_EXCHANGE), _Script(_ENDED), _Script(_REPAIR)
_KNOWING = _Script(_KNOWN)


class RedisStore:
    """Accounts in one Redis: whichever server it is at the moment."""

    shared = True

    def __init__(
        self,
        url: str,
        *,
        settling_s: float | None = None,
        dead_after_s: float = DEAD_AFTER_S,
        forgotten_after_s: float = FORGOTTEN_AFTER_S,
    ) -> None:
        where = RedisUrl.parse(url)
        self._redis = client_of(where, arrive=self._arrive)
        if settling_s is None:
            settling_s = SETTLING_S + (0 if where.kind == "single" else _FINDING_S)
        self._settling_us = int(settling_s * 1e6)
        self._dead_us = int(dead_after_s * 1e6)
        self._forgotten_us = int(forgotten_after_s * 1e6)
        self._kept_s = int(3 * forgotten_after_s) + 1
        self._asked = 0

    async def close(self) -> None:
        await self._redis.aclose()

    async def exchange(self, process: str, since: int, asks: Sequence[Ask]) -> tuple[int, list[Grant]]:
        keys = [_META, _HEARD, _BUDGETS + process, _ASKED, *(PREFIX + ask.account for ask in asks)]
        self._asked += 1
        given: list[str | int] = [process, self._dead_us, self._settling_us, _NEWS, self._kept_s, since]
        given += (self._asked, _BUDGETS)
        for ask in asks:
            given += (ask.kind, ask.limit, ask.spent, ask.had, ask.need, ask.wanted)
        figures = [int(figure) for figure in await self._run(_EXCHANGING, keys, given)]
        return figures[0], [Grant(*figures[at : at + 4]) for at in range(1, len(figures), 4)]

    async def accounts_of(self, process: str) -> list[str]:
        async with _away():
            found = await asked(self._redis, lambda: self._redis.smembers(_BUDGETS + process))
        return sorted(name.removeprefix(PREFIX) for name in found)

    async def ended(self, process: str, spent: Mapping[str, int]) -> None:
        keys = [_HEARD, _BUDGETS + process, _ASKED, *(PREFIX + account for account in spent)]
        await self._run(_ENDING, keys, [process, *spent.values()])

    async def heard(self) -> tuple[int, set[str]]:
        settling_ms, names = await self._run(_KNOWING, [_META, _HEARD], [self._settling_us])
        return int(settling_ms), set(names)

    async def forgotten(self) -> list[str]:
        async with _away():
            seconds, micros = await self._redis.time()
            until_us = seconds * 1_000_000 + micros - self._forgotten_us
            found: list[str] = await self._redis.zrange(_HEARD, "-inf", until_us, byscore=True)
            return found

    async def spent(self) -> dict[str, int]:
        spent = {}
        async with _away():
            async for key in self._redis.scan_iter(match=PREFIX + "*/usd/*", count=1000):
                value = await self._redis.hget(key, "spent")
                if value is not None:
                    spent[key.removeprefix(PREFIX)] = int(value)
        return spent

    async def repair(self, accounts: Mapping[str, tuple[int, int]]) -> list[str]:
        given = [figure for pair in accounts.values() for figure in pair]
        repaired = await self._run(_REPAIRING, [_META, *(PREFIX + account for account in accounts)], given)
        return [key.removeprefix(PREFIX) for key in repaired]

    async def listen(self, process: str, told: Callable[[str, str], None]) -> None:
        """For ever: `told(what, account)`, what being `short` where another process is short of it, or `back`."""

        def take(message: str) -> None:
            what, who, account = message.split(" ", 2)
            if who != process:
                told(what, account.removeprefix(PREFIX))

        while True:
            with suppress(RedisError, OSError, TimeoutError):  # that it is away is said by whoever asks it
                await hear(self._redis, _NEWS, take)
            await asyncio.sleep(_AGAIN_S)

    async def _run(self, script: _Script, keys: list[str], given: Sequence[str | int]) -> Any:
        async def run() -> Any:
            try:
                return await self._redis.evalsha(script.sha, len(keys), *keys, *given)
            except NoScriptError:
                return await self._redis.eval(script.text, len(keys), *keys, *given)

        async with _away():
            return await asked(self._redis, run)

    async def _arrive(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("EVAL", _ARRIVE, 1, _META)
        await connection.read_response()


@asynccontextmanager
async def _away() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as failure:
        raise LimitStoreAway(str(failure) or type(failure).__name__) from failure
