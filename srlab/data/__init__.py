"""Picture files, the degradation, named image sets and the bank of crops."""
