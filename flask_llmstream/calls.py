"""One feature that calls another: the other's function, as a part of the same run."""

from __future__ import annotations

from typing import Any

from .attempts import bind
from .errors import ConfigurationError
from .log import Log
from .order import Order
from .record import Record
from .run import Run
from .schemas import load
from .writer import produce


def call(record: Record, run: Run, name: str, data: Any) -> Any:
    """Perform a feature as a part of a run: what the run may use, its time and its stop are the part's, too.

    What the part says while it works is its own, and goes nowhere.

    :param data: its input, as a client would send it.
    :returns: its result; its text, where it has none.
    :raises ConfigurationError: there is no such feature.
    :raises InvalidInput: the input is not valid.
    :raises LLMStreamError: it failed.
    """
    feature = record.feature(name)
    if feature is None:
        known = ", ".join(sorted(feature.name for feature in record.features.values()))
        raise ConfigurationError(diagnosis=f"{run.feature} calls {name}, which is no feature; there are {known}")
    value = load(record.schema(feature), data)
    order = Order(
        feature=name,
        owner=run.owner,
        user=run.user,
        input=value,
        data=data,
        context=run.context,
        extension=record.name,
    )
    part = Run(run.id, order, run.about, Log(record.settings.max_log), run.app_context)
    part.meter = run.meter
    work = record.work(feature, value)
    part.result_schema, part.caller = work.result_schema, run.caller
    bind(part, work, min(work.settings.max_tokens, run.model.settings.max_tokens))
    result = produce(part, feature.function)
    return part.text if result is None else result
