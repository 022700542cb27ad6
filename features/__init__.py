"""The Feast repository: what `feast apply` reads. Its objects are derived from the contract."""
