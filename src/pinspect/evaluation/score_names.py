"""Names of the headline scores, as people read them."""

SCORE_NAMES = {
    "exact_match": "exact match",
    "address_on_defective": "address (defective)",
    "mode_on_defective": "mode (defective)",
    "balanced_accuracy": "balanced accuracy",
    "escape_rate": "escape rate",
    "overkill_rate": "overkill rate",
    "auroc": "AUROC of P(defective)",
    "parse_rate": "answers that parse",
}
