"""Which directions networks amplify, and whether attacks point along them."""
