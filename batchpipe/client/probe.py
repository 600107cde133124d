"""Finds out what an account's Batch server can do, by ten tiny rows. Leaves no file and no running batch behind."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from batchpipe.client.capabilities import Capabilities
from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import AmbiguousResult, BatchpipeError, Gone, Paused, Refused, SettingsError, Unavailable
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import Status
from batchpipe.provider import Apis

#: Completion windows that are tried beside the one that is asked for.
WINDOWS = ("48h", "7d", "14d")
#: Length of a ``custom_id`` that few servers take.
LONG_ID = 512
#: Seconds that a list may lag behind a create, and between two looks at a batch.
LIST_LAG_SECONDS, LOOK_SECONDS = 10.0, 2.0
#: How long a batch that is cancelled gets to end.
CANCEL_SECONDS = 10.0
#: Bytes of a result file that are read.
_MOST_BYTES = 1_000_000

Json = dict[str, Any]


def probe_account(
    settings: Settings,
    name: str,
    *,
    model: str,
    endpoint: str,
    window: str,
    timeout: float,
    say: Callable[[str], None] = lambda text: None,
) -> Capabilities:
    """Probe an account of these settings; Redis is not needed. Raises SettingsError, and what ``Probe.run`` raises."""
    api, account = Apis(settings)(name), settings.account(name)
    keyed = partial(api.with_header, "Idempotency-Key")
    probe = Probe(
        api, account, name, model=model, endpoint=endpoint, window=window, timeout=timeout, keyed=keyed, say=say
    )
    return probe.run()


class Probe:
    """One probe of one account; ``run`` makes it."""

    def __init__(
        self,
        api: Provider,
        account: Account,
        name: str,
        *,
        model: str,
        endpoint: str,
        window: str,
        timeout: float,
        keyed: Callable[[str], Provider] | None = None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``timeout``: seconds that the batch of the first rows gets to end. ``keyed``: the same provider with this
        ``Idempotency-Key`` in each call; without it that is not asked."""
        self._keyed = keyed
        self._api, self._account, self._say = api, account, say
        self._model, self._endpoint, self._window = model, endpoint, window
        self._timeout, self._clock, self._sleep = timeout, clock, sleep
        self._tag = uuid.uuid4().hex[:12]
        self._began = time.time()
        self._files: list[str] = []
        self._batches: list[str] = []
        self.result = Capabilities(name, model)

    def run(self) -> Capabilities:
        """Ask everything, then clean up. Raises Paused, SettingsError, and what the first upload or create raises."""
        try:
            self._ask()
        finally:
            self._clean_up()
        return self.result

    def _ask(self) -> None:
        note = self.result.note
        self._unknown_batch()
        self._unknown_file()
        self._say("uploading four rows, one of them wrong")
        rows = [self._row(f"probe-{number}") for number in range(3)]
        wrong = self._row("probe-wrong")
        wrong["body"] |= {name: [] for name in ("messages", "input") if name in wrong["body"]}
        first = self._create([*rows, wrong], self._window)
        note("metadata of a batch that was just made", bool(first.metadata.get("probe") == self._tag))
        note("uploads are listed", *self._lists_file(first.input_file_id))
        listed = self._list(first.id)
        read = self._api.retrieve(first.id)
        echoed = read.metadata.get("probe") == self._tag
        note("metadata when a batch is read", echoed)
        self._settings_of_list(listed, echoed)
        cancelled = self._cancel()
        if self._keyed is not None and cancelled is not None:
            self._idempotency_key(self._keyed(f"probe-{self._tag}"), cancelled)
        self._long_custom_id()
        self._windows()
        if listed is not None:
            self._order()
            self._paging()
        self._say("waiting for the first batch to end")
        self._results(self._ended(first.id), [str(row["custom_id"]) for row in rows])

    # -- questions -------------------------------------------------------------------------------------------------

    def _unknown_batch(self) -> None:
        try:
            self._api.retrieve(f"batch_{self._tag}")
            self.result.note("a batch that does not exist", "answers", "an unknown id is answered with a batch")
        except Gone as error:
            self.result.note("a batch that does not exist", "404", error.message)
        except Refused as error:
            self.result.note("a batch that does not exist", str(error.status or error.code), error.message)

    def _unknown_file(self) -> None:
        what = "a batch of a file that does not exist"
        try:
            made = self._api.create_batch(
                endpoint=self._endpoint,
                completion_window=self._window,
                input_file_id=f"file-{self._tag}",
                metadata={"probe": self._tag},
                extra={},
            )
            self._batches.append(made.id)
            self.result.note(what, "made", "its validation says what is wrong")
        except AmbiguousResult as error:
            self.result.note(what, None, error.message)
        except (Unavailable, Refused) as error:
            self.result.note(what, str(error.status or error.code), error.message)

    def _lists_file(self, file_id: str | None) -> tuple[bool | None, str]:
        try:
            return any(
                file.id in (file_id, *self._files) for file in _some(self._api.iter_files(self._began - 600))
            ), ""
        except BatchpipeError as error:
            return _unless_refused(error), error.message

    def _list(self, batch_id: str) -> Batch | None:
        """The batch in the list of batches, which may lag a little."""
        note, end = self.result.note, self._clock() + LIST_LAG_SECONDS
        while True:
            try:
                shown = list(_some(self._api.iter_batches(self._began - 600)))
            except BatchpipeError as error:
                note("batches are listed", _unless_refused(error), error.message)
                return None
            found = next((batch for batch in shown if batch.id == batch_id), None)
            if found is not None or self._clock() > end:
                break
            self._sleep(1.0)
        note("batches are listed", found is not None, "" if found else f"not within {LIST_LAG_SECONDS:.0f} s")
        if found is not None:
            note("metadata in the list", found.metadata.get("probe") == self._tag)
            note("input file in the list", found.input_file_id in self._files)
        return found

    def _order(self) -> None:
        """Whether the newest come first, now that several batches were made."""
        try:
            shown = [batch for batch in _some(self._api.iter_batches(self._began - 600)) if batch.id in self._batches]
        except BatchpipeError:
            return
        order = [self._batches.index(batch.id) for batch in shown]
        self.result.note("list is newest first", order == sorted(order, reverse=True) if len(order) > 1 else None)

    def _paging(self) -> None:
        """Whether a list goes on behind a batch that is named: else one of more than a page cannot be read."""
        what = "list goes on after a batch"
        if len(self._batches) < 2:
            return self.result.note(what, None, "no second batch was made")
        first, *_, last = self._batches
        try:
            newest = next((batch.id for batch in _some(self._api.iter_batches(self._began - 600))), last)
            page = [batch.id for batch in self._api.batch_page(newest).batches]
        except BatchpipeError as error:
            return self.result.note(what, _unless_refused(error), error.message)
        goes_on = newest not in page and (first in page or newest == first)
        return self.result.note(what, goes_on, "" if goes_on else "`after` is not heeded: a list is read no further")

    def _settings_of_list(self, listed: Batch | None, echoed: bool) -> None:
        can = {found.what: found.value for found in self.result.found}
        if can.get("batches are listed") is None:
            return
        self.result.settings["LISTS_BATCHES"] = _flag(listed is not None)
        if listed is not None:
            self.result.settings["ECHOES_METADATA"] = _flag(echoed and listed.metadata.get("probe") == self._tag)

    def _cancel(self) -> str | None:
        """Returns the file of the batch that was made for it; None: none was."""
        note, batch = self.result.note, None
        try:
            batch = self._create([self._row("probe-cancel")], self._window)
            cancelled = self._api.cancel_batch(batch.id)
            note("a batch can be cancelled", True, f"its status is {cancelled.status} then")
        except BatchpipeError as error:
            note("a batch can be cancelled", _unless_refused(error), error.message)
        return self._files[-1] if batch is not None else None

    def _idempotency_key(self, keyed: Provider, file_id: str) -> None:
        """Whether a create call that is repeated with the same ``Idempotency-Key`` makes no second batch."""
        what, made = "a repeated call with an Idempotency-Key", list[str]()
        try:
            for _ in range(2):
                batch = self._create_of(keyed, file_id, self._window)
                self.result.rows += batch.id not in made
                made.append(batch.id)
                with suppress(BatchpipeError):
                    self._api.cancel_batch(batch.id)
        except AmbiguousResult as error:
            self._batches += [name for name in error.named if name not in self._batches]
            return self.result.note(what, None, error.message)
        except (Unavailable, Refused) as error:
            if len(made) == 1:  # the second is refused because there is a first, or is not taken at all
                return self.result.note(what, f"refused, {error.status or error.code}", error.message)
            return self.result.note(what, None, error.message)
        same = made[0] == made[1]
        detail = "" if same else "makes a second batch: the key is not heeded"
        return self.result.note(what, "same batch" if same else "second batch", detail)

    def _long_custom_id(self) -> None:
        what = f"custom_id of {LONG_ID} characters"
        try:
            batch = self._create([self._row("x" * LONG_ID)], self._window)
        except Refused as error:
            return self.result.note(what, "refused", error.message)
        except BatchpipeError as error:
            return self.result.note(what, None, error.message)
        seen = self._ended(batch.id, most=min(self._timeout, 60.0))
        if seen.status == Status.FAILED:
            reason = seen.errors[0].message if seen.errors else ""
            return self.result.note(what, "refused", reason or "its batch failed")
        return self.result.note(what, "taken" if seen.status in Status.FINAL else None, f"its batch is {seen.status}")

    def _windows(self) -> None:
        taken = [self._window]
        for window in WINDOWS:
            if window == self._window:
                continue
            try:
                batch = self._create([self._row("probe-window")], window)
            except Refused as error:
                self.result.note(f"window of {window}", "refused", error.message)
                continue
            except BatchpipeError as error:
                self.result.note(f"window of {window}", None, error.message)
                continue
            taken.append(window)
            self.result.note(f"window of {window}", "taken")
            with suppress(BatchpipeError):
                self._api.cancel_batch(batch.id)
        if all(found.value is not None for found in self.result.found if found.what.startswith("window of ")):
            self.result.settings["LONGEST_WINDOW"] = taken[-1]

    def _results(self, batch: Batch, ids: list[str]) -> None:
        note = self.result.note
        note("status at the end", batch.status)
        if batch.status not in Status.FINAL:
            return note("results", None, f"not ended within {self._timeout:.0f} s: it is cancelled")
        note("counts of rows", batch.counts.total is not None, _words(batch.counts))
        note("usage of a batch", bool(batch.usage))
        note("error file", "named" if batch.error_file_id else "none")
        lines = self._lines(batch.output_file_id)
        errors = self._lines(batch.error_file_id)
        order = [str(line.get("custom_id")) for line in lines if line.get("custom_id") in ids]
        note("every row is answered", sorted(order) == sorted(ids), f"{len(order)} of {len(ids)}")
        note("answers in the order of the rows", order == ids if len(order) > 1 else None)
        answered = [line for line in lines if line.get("custom_id") in ids]
        note("usage of a row", any(_usage(line) for line in answered) if answered else None)
        wrong = [(name, line) for name, found in (("error", errors), ("output", lines)) for line in found]
        shape = next((f"in the {name} file: {_shape(line)}" for name, line in wrong if _is_wrong(line)), None)
        note("row that is wrong", shape)
        return None

    # -- calls -----------------------------------------------------------------------------------------------------

    def _row(self, custom_id: str) -> Json:
        return {"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": self._body()}

    def _body(self) -> Json:
        if self._endpoint == "/v1/embeddings":
            return {"model": self._model, "input": "hi"}
        if self._endpoint == "/v1/responses":
            return {"model": self._model, "input": "hi", "max_output_tokens": 16}
        return {"model": self._model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

    def _create(self, rows: list[Json], window: str) -> Batch:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        file_id = self._api.upload(io.BytesIO(data), f"probe-{self._tag}-{len(self._files)}.jsonl", lambda: None)
        self._files.append(file_id)
        batch = self._create_of(self._api, file_id, window)
        self.result.rows += len(rows)
        return batch

    def _create_of(self, api: Provider, file_id: str, window: str) -> Batch:
        batch = api.create_batch(
            endpoint=self._endpoint,
            completion_window=window,
            input_file_id=file_id,
            metadata={"probe": self._tag},
            extra={},
        )
        if batch.id not in self._batches:
            self._batches.append(batch.id)
        return batch

    def _ended(self, batch_id: str, most: float | None = None) -> Batch:
        end = self._clock() + (self._timeout if most is None else most)
        while True:
            batch = self._api.retrieve(batch_id)
            if batch.status in Status.FINAL or self._clock() > end:
                return batch
            self._sleep(LOOK_SECONDS)

    def _lines(self, file_id: str | None) -> list[Json]:
        if not file_id:
            return []
        sink = io.BytesIO()
        with suppress(BatchpipeError):
            self._api.download(file_id, sink, lambda: None)
        found = []
        for line in sink.getvalue()[:_MOST_BYTES].splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                found += [value] if isinstance(value, dict) else []
        return found

    def _clean_up(self) -> None:
        """End what runs, delete what was uploaded and answered; what cannot be is named in ``left``."""
        for batch_id in self._batches:
            try:
                batch = self._api.retrieve(batch_id)
                if batch.status not in Status.FINAL:
                    with suppress(Refused):  # it has just ended, or is being cancelled
                        self._api.cancel_batch(batch_id)
                    batch = self._ended(batch_id, most=CANCEL_SECONDS)
                self._files += [name for name in (batch.output_file_id, batch.error_file_id) if name]
                self.result.left += [] if batch.status in Status.FINAL else [batch_id]
            except (BatchpipeError, SettingsError):
                self.result.left.append(batch_id)
        for file_id in self._files:
            try:
                self._api.delete_file(file_id)
            except Gone:
                continue
            except (BatchpipeError, SettingsError):
                self.result.left.append(file_id)


def _some(items: Iterable[Any], most: int = 1_000) -> Iterator[Any]:
    """At most so many: another's list may be very long."""
    for _, item in zip(range(most), items, strict=False):
        yield item


def _unless_refused(error: BatchpipeError) -> bool | None:
    """False if the provider says that it cannot; None for trouble. Raises an error of the key."""
    if isinstance(error, Paused):
        raise error
    return False if isinstance(error, Refused) or error.code == "http_404_page" else None


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _words(counts: Any) -> str:
    return ", ".join(f"{name} {getattr(counts, name)}" for name in ("total", "completed", "failed"))


def _is_wrong(line: Json) -> bool:
    return line.get("custom_id") == "probe-wrong"


def _shape(line: Json) -> str:
    """Where the reason is in the line of a row that failed."""
    if line.get("error"):
        return f"error.code {line['error'].get('code')}" if isinstance(line["error"], dict) else "error is no object"
    response = line.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    body = response.get("body") if isinstance(response, dict) else None
    reason = body.get("error") if isinstance(body, dict) else None
    where = "response.body.error" if isinstance(reason, dict) else "no error in it"
    return f"status_code {status}, {where}"


def _usage(line: Json) -> Any:
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return body.get("usage") if isinstance(body, dict) else None
