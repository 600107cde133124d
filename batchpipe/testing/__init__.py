"""Fakes for tests of programs that use batchpipe, and for batchpipe's own.

``FakeOpenAI`` stands in for one account at the provider, in this process and without HTTP::

    fake = FakeOpenAI(autofinish=True)
    fake.fail_next("create_batch", AmbiguousResult("dropped"), processed=True)

``Pump`` runs whole jobs on it with the real pipeline and the real scripts (on fakeredis), but without Celery,
threads or waiting: it delivers the messages itself and moves the clock to the next one::

    pump = Pump(tmp_path)
    job_id = pump.submit([{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}])
    pump.run_until_idle()
    assert pump.job(job_id).state is State.SUCCEEDED

For a program that talks HTTP there is ``batchpipe.sandbox``.
"""

from __future__ import annotations

from batchpipe.testing.provider import FakeOpenAI
from batchpipe.testing.pump import Delivery, Pump, Vanished
from batchpipe.testing.things import Answer, Call, FakeBatch, FakeFile, polite_answer

__all__ = ["Answer", "Call", "Delivery", "FakeBatch", "FakeFile", "FakeOpenAI", "Pump", "Vanished", "polite_answer"]
