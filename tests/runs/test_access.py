"""Who may do what with a run, and until when."""

import pytest

from tests.conversation import ask, events, problem
from tests.puppet import eventually, stage

EVERY_VIEW = pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")], ids=str
)


@EVERY_VIEW
def test_for_others_it_does_not_exist(live, method, path):
    client, url = live
    theirs = client.open(url + path, method=method, headers={"X-User": "bob"})
    nobodys = client.open("/api/runs/nothing" + path, method=method, headers={"X-User": "bob"})
    assert theirs.status_code == nobodys.status_code == 404
    assert problem(theirs) == problem(nobodys)
    assert client.get(url).json["status"] == "in_progress"


@EVERY_VIEW
def test_after_its_retention_it_is_gone(method, path):
    with stage() as (app, llm):
        client = app.test_client()
        response = ask(client)
        events(response)
        url = response.headers["Location"]
        kept = llm.record(app).registry._kept
        eventually(lambda: kept._expiry)
        ((timer, _),) = kept._expiry.values()
        timer.action()
        gone = client.open(url + path, method=method)
        assert gone.status_code == 410
        assert problem(gone)["type"].endswith("run-expired")
        assert client.open(url + path, method=method, headers={"X-User": "bob"}).status_code == 404


@pytest.mark.parametrize(("name", "status"), [("ann", 200), ("bob", 404)])
def test_head_tells_as_much_of_the_events_as_get(live, name, status):
    client, url = live
    for run, expected in ((url, status), ("/api/runs/nothing", 404)):
        assert client.head(f"{run}/events", headers={"X-User": name}).status_code == expected


@EVERY_VIEW
@pytest.mark.parametrize("site", ["none", "same-origin", "cross-site"])
def test_an_address_that_is_opened_from_anywhere_is_answered(ended, method, path, site):
    """From the address bar, a bookmark, a mail: no page asks there, so there is none to be refused."""
    client, url = ended
    with client.open(url + path, method=method, headers={"Sec-Fetch-Site": site}) as response:
        assert response.status_code in (200, 204)


@EVERY_VIEW
def test_foreign_pages_are_refused(ended, method, path):
    client, url = ended
    refused = client.open(url + path, method=method, headers={"Origin": "https://evil.example"})
    assert problem(refused)["type"].endswith("origin-refused")
    assert client.get(url).status_code == 200
