"""What clients may send to the chat, and how they are told what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema, fields

from flask_llmstream.errors import InvalidInput
from flask_llmstream.schemas import MOST_MESSAGES, Bounds, Chat, ChatInput, load

HELLO = {"role": "user", "content": "Hello"}


def schema(**bounds):
    usual = {"roles": ("user", "assistant"), "models": ("small", "large"), "max_message": 20, "max_input": 50}
    return ChatInput(bounds=Bounds(**{**usual, **bounds}))


def errors(data, **bounds):
    with pytest.raises(InvalidInput) as refusal:
        load(schema(**bounds), data)
    return refusal.value.problem()["errors"]


def test_a_conversation_and_its_wishes():
    messages = [HELLO, {"role": "assistant", "content": "Hi"}, HELLO]
    data = {"messages": messages, "model": "large", "max_tokens": 10, "temperature": 0.5}
    assert load(schema(), data) == Chat(messages=messages, model="large", max_tokens=10, temperature=0.5)


def test_wishes_need_not_be_said():
    assert load(schema(), {"messages": [HELLO]}) == Chat(messages=[HELLO])


def test_each_field_that_is_wrong_is_named():
    wrong = errors({"messages": [{"role": 1}], "max_tokens": "many", "colour": "blue"})
    assert set(wrong) == {"messages", "max_tokens", "colour"}
    assert set(wrong["messages"][0]) == {"role", "content"}


def test_the_first_mistake_is_also_a_sentence():
    with pytest.raises(InvalidInput) as refusal:
        load(schema(), {"messages": [HELLO, {"role": "user"}]})
    assert refusal.value.detail == ("The input is not valid: messages.1.content: Missing data for required field.")


@pytest.mark.parametrize("data", [None, [], "text", 1, [HELLO]], ids=repr)
def test_anything_but_an_object_is_refused(data):
    with pytest.raises(InvalidInput, match="JSON object"):
        load(schema(), data)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"messages": []}, ("messages",)),
        ({"messages": "Hello"}, ("messages",)),
        ({"messages": None}, ("messages",)),
        ({"messages": [1]}, ("messages", 0)),
        ({"messages": [{"role": "user", "content": None}]}, ("messages", 0, "content")),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ("messages", 0, "content")),
        ({"messages": [{**HELLO, "name": "x"}]}, ("messages", 0, "name")),
        ({"model": ""}, ("model",)),
        ({"model": 1}, ("model",)),
        ({"max_tokens": 0}, ("max_tokens",)),
        ({"max_tokens": -1}, ("max_tokens",)),
        ({"max_tokens": "10"}, ("max_tokens",)),
        ({"max_tokens": 1.5}, ("max_tokens",)),
        ({"max_tokens": True}, ("max_tokens",)),
        ({"temperature": -0.1}, ("temperature",)),
        ({"temperature": 2.1}, ("temperature",)),
        ({"temperature": "NaN"}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"tools": []}, ("tools",)),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else repr(value)[:62],
)
def test_what_is_refused(change, place):
    found = errors({"messages": [HELLO], **change})
    assert set(found) == {place[0]}
    for step in place:
        found = found[step]
    assert found


def test_only_the_roles_of_the_feature():
    data = {"messages": [{"role": "system", "content": "Be rude"}, HELLO]}
    assert errors(data) == {"messages": {0: {"role": ["Must be one of: user, assistant."]}}}
    assert load(schema(roles=("system", "user")), data).messages[0]["role"] == "system"


@pytest.mark.parametrize("length", [20, 21])
def test_a_message_has_a_limit(length):
    data = {"messages": [HELLO, {"role": "user", "content": "é" * length}]}
    if length == 20:
        assert load(schema(), data)
    else:
        assert errors(data) == {"messages": {1: {"content": ["Longer than 20 characters."]}}}


@pytest.mark.parametrize("length", [10, 11])
def test_all_messages_together_have_one(length):
    messages = [{"role": "user", "content": "x" * 20}] * 2 + [{"role": "user", "content": "x" * length}]
    if length == 10:
        assert load(schema(), {"messages": messages})
    else:
        assert errors({"messages": messages}) == {"messages": ["Longer than 50 characters together."]}


def test_and_so_has_their_number():
    assert load(schema(max_input=10**6), {"messages": [HELLO] * MOST_MESSAGES})
    assert errors({"messages": [HELLO] * (MOST_MESSAGES + 1)}, max_input=10**6)


def test_only_the_models_that_are_allowed():
    assert errors({"messages": [HELLO], "model": "huge"}) == {"model": ["Must be one of: small, large."]}
    assert load(schema(models=None), {"messages": [HELLO], "model": "huge"}).model == "huge"


def test_several_kinds_of_mistakes_are_told_together():
    wrong = errors({"messages": [{"role": "system", "content": "x"}], "model": "huge"})
    assert set(wrong) == {"messages", "model"}


@pytest.mark.parametrize(
    ("mistake", "place"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 21}]}, "messages"),
        ({"messages": [HELLO] * 11}, "messages"),
        ({"model": "huge"}, "model"),
    ],
    ids=["role", "message", "all messages", "model"],
)
@pytest.mark.parametrize("other", [{"temperature": 9}, {"colour": "blue"}, {"max_tokens": "many"}], ids=str)
def test_a_bound_is_named_whatever_else_is_wrong(mistake, place, other):
    """Who mends one mistake is not to be told of the next only then."""
    alone = errors({"messages": [HELLO], **mistake})
    both = errors({"messages": [HELLO], **mistake, **other})
    assert both[place] == alone[place]
    assert set(both) == {place, *other}


def test_a_bound_is_named_beside_a_message_that_lacks_something():
    wrong = errors({"messages": [{"role": "user"}, HELLO], "model": "huge"})
    assert set(wrong) == {"messages", "model"}


def test_where_no_model_has_a_name_the_refusal_says_who_chooses():
    assert errors({"messages": [HELLO], "model": "huge"}, models=("",)) == {
        "model": ["The application chooses the model."]
    }


def test_to_ask_for_many_tokens_is_no_mistake():
    """It is clamped to what the run may have."""
    assert load(schema(), {"messages": [HELLO], "max_tokens": 10**9}).max_tokens == 10**9


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
near_misses = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": json_values, "content": json_values}), max_size=3)},
    optional={"model": json_values, "max_tokens": json_values, "temperature": json_values},
)


@given(json_values | near_misses)
def test_whatever_comes_is_loaded_or_refused(data):
    try:
        chat = load(schema(), data)
    except InvalidInput as refusal:
        assert refusal.problem()["status"] == 422
        return
    assert chat.messages and all(message["role"] in ("user", "assistant") for message in chat.messages)


def test_a_schema_of_the_applications_own():
    class Text(Schema):
        text = fields.String(required=True)

    assert load(Text(), {"text": "a"}) == {"text": "a"}
    with pytest.raises(InvalidInput, match="text: Missing"):
        load(Text(), {})


def test_what_a_schema_adds_to_the_conversation_is_apart_from_it():
    class Essay(ChatInput):
        words = fields.Integer(required=True)

    bounds = schema().bounds
    chat = load(Essay(bounds=bounds), {"messages": [HELLO], "model": "small", "words": 300})
    assert chat == Chat(messages=[HELLO], model="small", more={"words": 300})
    with pytest.raises(InvalidInput):
        load(Essay(bounds=bounds), {"messages": [HELLO]})
