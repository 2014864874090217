"""Everything that asks the model: answers, controls, evidence, operating point, baseline (stage answer)."""
