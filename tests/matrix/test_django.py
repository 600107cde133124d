"""Django in each version, under the servers that people run it with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.user_machine import Machine, until
from tests.matrix.cache import version_of
from tests.matrix.django_site import Site, Visitor, count_of_tests
from tests.matrix.pythons import django

pytestmark = pytest.mark.matrix
NewMachine = Callable[..., Machine]
VERSIONS = ("4.2", "5.2", "6.0", "6.1")
SERVERS = {
    "gunicorn --preload": ("-m", "gunicorn", "proj.wsgi", "--preload", "-w", "2", "-b", "127.0.0.1:PORT"),
    "gunicorn -k gevent": ("-m", "gunicorn", "proj.wsgi", "-k", "gevent", "-w", "2", "-b", "127.0.0.1:PORT"),
    "uvicorn": ("-m", "uvicorn", "proj.asgi:application", "--port", "PORT"),
}


@pytest.fixture(scope="module", params=[pytest.param(one, marks=[pytest.mark.ci] * (one == "5.2")) for one in VERSIONS])
def site(request: pytest.FixtureRequest, new_machine: NewMachine) -> Site:
    """The site with its worker."""
    python = django(request.param)
    assert version_of(python, "django").startswith(f"{request.param}.")
    made = Site(new_machine(f"django-{request.param}"), python)
    made.worker()
    return made


def check_order(visitor: Visitor, path: str) -> None:
    """A request submits with its transactions, its own user sees the job, a receiver writes the answers back."""
    job = visitor.get(path)["job"]
    until(lambda: visitor.get(f"/text/{job}/")["text"], what="the receiver writes the answers back")
    assert visitor.get(f"/text/{job}/")["user"] == "ann"
    assert visitor.get(f"/batchpipe/{job}/")["state"] == "succeeded"
    assert visitor.stranger().status(f"/batchpipe/{job}/") == 401
    before = visitor.get("/jobs/")
    assert visitor.status(f"{path}?fail=1") == 500
    assert visitor.get("/jobs/") == before


@pytest.mark.parametrize("server", SERVERS)
def test_a_request_submits_with_its_transactions(site: Site, server: str) -> None:
    """ATOMIC_REQUESTS on two databases, and users of the site's own kind. One that fails submits nothing."""
    check_order(site.serve(*SERVERS[server]), "/order/")


def test_an_async_view_submits_from_the_thread_of_its_transaction(site: Site) -> None:
    check_order(site.serve(*SERVERS["uvicorn"]), "/order-async/")


def test_the_tests_of_a_site_submit(site: Site) -> None:
    """TestCase, where commits are played, and TransactionTestCase; requests as transactions on two databases."""
    done = site.start("manage.py", "test", "shop").finish(90)
    assert done.code == 0, done.err
    assert count_of_tests(done.err) == 4
