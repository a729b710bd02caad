"""The claims made for tuning and distillation: what the runs say of each, and the page."""
