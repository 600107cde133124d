"""The scripts with one clause of the protocol taken out, each: the model must notice."""

from __future__ import annotations

from dataclasses import dataclass

from batchpipe.store.scripts import source


@dataclass(frozen=True)
class Mutation:
    """A script in which a piece of the text is replaced."""

    script: str
    old: str
    new: str

    def __call__(self, name: str) -> str:
        text = source(name)
        if self.script not in (name, "common"):  # which is part of all
            return text
        if text.count(self.old) != 1:
            raise LookupError(f"{self.script}.lua has no longer one {self.old!r}: mend this mutation")
        return text.replace(self.old, self.new)


MUTATIONS = {
    "a claim ignores a living lease": Mutation(
        "claim", "if leased(rec, now) then return { 'lease'", "if false then return { 'lease'"
    ),
    "an advance is not fenced": Mutation("advance", "if not holds(rec, token, now) then return { 'lost' } end", ""),
    "a renewal revives an ended lease": Mutation(
        "renew", "if not holds(KEYS[1], ARGV[3], now) then", "if get(KEYS[1], 'token') ~= ARGV[3] then"
    ),
    "an epoch is bumped while a lease lives": Mutation(
        "bump_epoch", "local lives = leased(rec, now)", "local lives = false"
    ),
    "a second batch replaces the recorded one": Mutation(
        "settle", "or recorded or get(rec, 'stage') ~= 'uploaded'", ""
    ),
    "a further call keeps the time of the empty look": Mutation(
        "intent", "redis.call('HDEL', KEYS[1], 'empty_at', 'named')", "redis.call('HDEL', KEYS[1], 'named')"
    ),
    "a cancelled job is given a further round": Mutation("plan", "if flag(job, 'cancel') == 1 then", "if false then"),
    "an intent does not tell of the cancel": Mutation(
        "intent", "flag(KEYS[1], 'republish'), flag(KEYS[2], 'cancel')", "flag(KEYS[1], 'republish'), 0"
    ),
    "the last shard does not start merge": Mutation("advance", "if open == 0 and", "if open < 0 and"),
    "a repeated advance counts down twice": Mutation(
        "advance",
        "if get(rec, 'last') == token then",
        "if get(rec, 'last') == token then redis.call('HINCRBY', job, 'open', -1)",
    ),
}

#: The same for what walks through the list prove; the model of an outage must notice. When a call is over, and who is
#: in the index of unanswered creates, its schedules do not tell: tests/contract/store/test_unanswered.py does.
OF_WALKS = {
    "a further call keeps the time of the empty look": MUTATIONS["a further call keeps the time of the empty look"],
}
