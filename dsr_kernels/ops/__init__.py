"""The operations as torch knows them: schemas and checks, derivatives, meaning."""
