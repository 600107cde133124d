"""What tokens cost in a batch at OpenAI's list prices. An estimate: the bill is the provider's."""

from __future__ import annotations


def batch_cost(model: str | None, usage: dict[str, int]) -> float | None:
    """US dollars for the tokens of one model, at batch prices.

    None where the price is not known: genai-prices is not installed (``pip install "batchpipe[cost]"``), or its
    bundled table, which needs no network, does not have the model.
    """
    if not usage:
        return 0.0
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    tokens = Usage(
        input_tokens=usage.get("input_tokens", 0),
        output_tokens=usage.get("output_tokens", 0),
        cache_read_tokens=usage.get("cached_tokens", 0),
    )
    try:
        # `service_tier` would be ignored silently; this is the key by which batch prices are chosen
        price = calc_price(tokens, model or "", provider_id="openai", price_context={"processing": "batch"})
    except LookupError:
        return None
    return float(price.total_price)
