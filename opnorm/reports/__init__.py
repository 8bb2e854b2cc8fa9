"""Adversarial images as files, and cards of an evaluation.

This room imports linalg, attacks, analysis and runs.
"""

from opnorm.reports.card import (
    BUDGETS,
    card_text,
    make_card,
    standard_card,
    standard_threat,
)
from opnorm.reports.example_files import check_place, load_examples, save_examples
from opnorm.reports.examples import (
    ExampleSet,
    adversarial_examples,
    quantize_examples,
)
from opnorm.reports.transfer import Transfer, transfer

__all__ = [
    "BUDGETS",
    "ExampleSet",
    "Transfer",
    "adversarial_examples",
    "card_text",
    "check_place",
    "load_examples",
    "make_card",
    "quantize_examples",
    "save_examples",
    "standard_card",
    "standard_threat",
    "transfer",
]
