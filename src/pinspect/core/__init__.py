"""What every room uses: layout, answer contract, prompts, parameters, errors, images, records."""
