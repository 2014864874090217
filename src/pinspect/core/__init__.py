<<<<<<< HEAD
"""What every room uses: layout, answer contract, prompts, parameters, errors, images, records."""
=======
"""What every room uses: layout, answer contract, prompts, parameters, records, errors."""
>>>>>>> ce97d76 (The wide rule set holds for all rooms but two)
