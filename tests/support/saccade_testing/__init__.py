"""What the tests of every package share: tiny models, oracles, stand-ins; no test is in here."""
