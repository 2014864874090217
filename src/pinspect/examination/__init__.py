"""Everything that asks the model: answers, controls, evidence, operating point, baselines (stage answer)."""
