<<<<<<< HEAD
"""The chat dataset and the answer checks: stages chat and check."""
=======
"""The chat dataset and the checks of its answers (stages chat and check)."""
>>>>>>> ce97d76 (The wide rule set holds for all rooms but two)
