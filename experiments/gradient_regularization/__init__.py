"""The claim of Finlay & Oberman 2019."""
