"""An invoice: as it is printed, as it is, and as a model may misread it."""

from __future__ import annotations

INVOICE = {
    "vendor": "Nordwind Ltd",
    "number": "2026-0417",
    "date": "2026-03-02",
    "currency": "EUR",
    "lines": [
        {"description": "Cable, 3 m", "quantity": 4, "unit_price": 7.5, "amount": 30.0},
        {"description": "Fitting", "quantity": 1.5, "unit_price": 60, "amount": 90.0},
    ],
    "tax": 22.8,
    "total": 142.8,
}
WRONG = INVOICE | {"total": 142.0}
TEXT = "Nordwind Ltd\nInvoice 2026-0417 of 2 March 2026\n4 cables 30.00\n1.5 h fitting 90.00\nEUR 142.80"
