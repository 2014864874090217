"""Training of the default base on generic pre-text (`make base`); no other room imports this one."""
