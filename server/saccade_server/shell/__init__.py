"""What the command line says, looked at before torch is imported and a model loads."""
