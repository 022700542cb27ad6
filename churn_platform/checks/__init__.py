"""Asset checks: the quality gates. Each looks at one property and says, where it fails, what to do."""
