"""What is asked for, and what is written down of it for other processes, also for those of another version."""

from __future__ import annotations

import msgspec

from flask_llmstream.ledger import encode
from flask_llmstream.order import About, Claim, Order

ORDER = Order(
    feature="chat",
    owner="user:ann",
    user="ann",
    input=object(),
    data={"message": "Hello"},
    view_args={"room": 1},
    context={"plan": "free"},
    conversation="c" * 16,
    parent="",
)
CLAIM = Claim("user:ann", "key:1", "print", lasting=True)


def test_all_that_others_need_is_written_down_and_no_more():
    about = About.of(ORDER, CLAIM, prompt=7, model="house")
    again = msgspec.json.decode(encode(about), type=About)
    assert again == about and again.claim == CLAIM
    for name in ("feature", "owner", "user", "data", "view_args", "context", "conversation", "parent"):
        assert getattr(again, name) == getattr(ORDER, name)
    assert (again.prompt, again.model) == (7, "house")
    assert not hasattr(again, "input"), "which is the function's, and may be anything"
    assert again.order(ORDER.input) == ORDER


def test_while_a_new_version_is_deployed_both_read_what_the_other_has_written():
    known = msgspec.json.decode(encode(About.of(ORDER, CLAIM, prompt=7, model="house")))
    assert msgspec.convert(known | {"of a later version": 1}, About).owner == "user:ann"
    least = {name: known[name] for name in ("owner", "feature", "user", "key", "fingerprint", "lasting", "created_at")}
    assert msgspec.convert(least, About).data is None
