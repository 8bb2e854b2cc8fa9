"""The claim of Farnia, Zhang & Tse 2019."""
