"""Registered versions in MLflow: registration, look-up, comparison, promotion and rollback."""
