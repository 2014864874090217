"""The inspection station: page, API, watched folder, corrections, drift."""
