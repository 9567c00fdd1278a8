"""The only code that touches transformers. It knows nothing of interventions."""
