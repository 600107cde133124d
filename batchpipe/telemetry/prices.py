"""What one row costs in a batch at OpenAI's list prices. An estimate: the bill is the provider's.

Rows are priced one by one, because a long request costs more per token; and in whole pico-dollars (a millionth of a
millionth), in which a token costs a whole number, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Any

import msgspec

PICO_PER_DOLLAR = 10**12
#: More than a record can hold, and more than anybody has paid.
MAX_COST = 2**63 - 1
#: A provider may name any model.
_LONGEST_NAME = 200
_BATCH = {"processing": "batch"}  # `service_tier` would be ignored silently; this chooses batch prices

#: Prices a row by its model and its tokens (``Answer.usage``): pico-dollars, None where the price is not known.
Pricer = Callable[[str | None, dict[str, int]], int | None]


class Rates(msgspec.Struct, frozen=True):
    """Pico-dollars for a token in a request of more than ``above`` input tokens.

    All but ``input`` and ``output`` are differences to the price of a plain token.
    """

    above: int
    input: int
    output: int
    cached: int
    written: int
    image_in: int
    image_out: int


def free(model: str | None, usage: dict[str, int]) -> int | None:
    """The price of any row if nothing is paid: in a sandbox."""
    return 0


def unknown(model: str | None, usage: dict[str, int]) -> int | None:
    """The price of any row at a provider with unknown prices."""
    return None


def openai_prices(on: date | None = None) -> Pricer:
    """A pricer with OpenAI's batch prices of a day (UTC; by default today), from the table of genai-prices.

    A model without a batch price in it costs None: the usual price would be twice as high.
    """
    day = on or datetime.now(tz=UTC).date()

    def price(model: str | None, usage: dict[str, int]) -> int | None:
        tiers = rates_of(model, day)
        return None if tiers is None else row_cost(tiers, usage)

    return price


def row_cost(tiers: tuple[Rates, ...], usage: dict[str, int]) -> int:
    """Pico-dollars for the tokens of one row. ``tiers``: longest requests first, the last one ``above`` -1."""
    get = usage.get
    given = get("input_tokens", 0)
    rates = tiers[-1]
    for tier in tiers:
        if given > tier.above:
            rates = tier
            break
    cost = given * rates.input + get("output_tokens", 0) * rates.output
    if cached := get("cached_tokens", 0):
        cost += min(cached, given) * rates.cached
    if written := get("cache_write_tokens", 0):
        cost += min(written, given) * rates.written
    if images := get("input_image_tokens", 0):
        cost += min(images, given) * rates.image_in
    if images := get("output_image_tokens", 0):
        cost += min(images, get("output_tokens", 0)) * rates.image_out
    return cost


@lru_cache(maxsize=1024)
def rates_of(model: str | None, day: date) -> tuple[Rates, ...] | None:
    """The batch prices of a model at OpenAI on a day, longest requests first; None if they are not known.

    genai-prices is called once for each tier and kind of token: its own calculation is too slow for each row.
    """
    if not model or len(model) > _LONGEST_NAME:
        return None
    from genai_prices.types import TieredPrices, Usage

    provider = _openai()
    found = provider.find_model(model)
    at = datetime.combine(day, time(12), tzinfo=UTC)
    if found is None or not _has_batch_price(found, at):
        return None

    def price(**tokens: int) -> int:
        price = found.calc_price(Usage(**tokens), provider, genai_request_timestamp=at, price_context=_BATCH)
        return int((price.total_price * PICO_PER_DOLLAR).to_integral_value())

    kinds = vars(found.get_prices(at, _BATCH)).values()
    starts = {tier.start for kind in kinds if isinstance(kind, TieredPrices) for tier in kind.tiers}
    try:
        return tuple(_rates(above, price) for above in sorted({-1, *starts}, reverse=True))
    except ValueError:  # a table that its own library cannot use
        return None


@lru_cache(maxsize=1)
def _openai() -> Any:
    """OpenAI's table. Not through ``calc_price``, which remembers each name that it was ever called with."""
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot().find_provider(None, "openai", None)


def _has_batch_price(model: Any, at: datetime) -> bool:
    variants = model.price_variants or ()
    return any(v.when == _BATCH and (v.constraint is None or v.constraint.active(at)) for v in variants)


def _rates(above: int, price: Callable[..., int]) -> Rates:
    """The price, taken from the cost of a whole request of this length."""
    given = max(above + 1, 1)
    plain = price(input_tokens=given)

    def more(**tokens: int) -> int:
        return (price(input_tokens=given, **tokens) - plain) // given

    output = more(output_tokens=given)
    return Rates(
        above=above,
        input=plain // given,
        output=output,
        cached=more(cache_read_tokens=given),
        written=more(cache_write_tokens=given),
        image_in=more(input_image_tokens=given),
        image_out=more(output_tokens=given, output_image_tokens=given) - output,
    )
